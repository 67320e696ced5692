//! An entry of PAE: two words, with an order between them (spec 6.2).
//!
//! Rules kept:
//! - P is in the low word, which is stored last and cleared first, so whoever reads the same present low word before and after
//!   the high one has a pair that belongs together, unless the entry went and came again in between: see
//!   [`Slot::load_stable`](super::Slot::load_stable) (I40, R29);
//! - a low word of 0 is none, whatever the high word holds. So nothing is written once an entry is gone: whoever takes a bad
//!   entry out without the lock cannot spoil what the lock's holder stores next;
//! - A and D are in the low word too, so an exchange of that word alone loses neither (I35);
//! - of two present values with different high words the second replaces the first by way of one that is not present, and for
//!   a huge entry not none either (I28);
//! - no 64-bit access: those are x87 or `cmpxchg8b` here, and atomics of mixed sizes are not defined.

use super::entry::{Entry, EntrySlot};
use crate::sync::atomic::{AtomicU32, Ordering};

/// The two words of an entry, in the order the walker reads them.
#[repr(C, align(8))]
pub struct SlotPae {
    low: AtomicU32,
    high: AtomicU32,
}

const fn low(entry: Entry) -> u32 {
    entry.0 as u32
}

const fn high(entry: Entry) -> u32 {
    (entry.0 >> 32) as u32
}

const fn join(low: u32, high: u32) -> Entry {
    if low == 0 { Entry::NONE } else { Entry((high as u64) << 32 | low as u64) }
}

/// What stands in the low word of a changing entry while its high word is replaced: nothing, or a huge entry that the walker
/// refuses.
const fn between(current: Entry) -> u32 {
    if current.is_huge() { low(current.invalidated()) } else { 0 }
}

impl SlotPae {
    /// As [`load`](EntrySlot::load), with `between` done after each access but the last: for tests, which write then.
    pub fn load_in_steps(&self, mut between: impl FnMut()) -> Entry {
        // Acquire, all three: with the first, what the entry publishes (pairs with the last store of `store`). With the
        // second, that what went before the high word in `store` is seen by the third: the low word has changed then.
        let mut seen = self.low.load(Ordering::Acquire);
        loop {
            if seen == 0 {
                return Entry::NONE;
            }
            between();
            let high = self.high.load(Ordering::Acquire);
            between();
            let again = self.low.load(Ordering::Acquire);
            if again == seen || sabotaged!("pae-second-look") {
                return join(seen, high);
            }
            seen = again;
        }
    }

    /// As [`store`](EntrySlot::store), with `between` done after each access but the last: for tests, which read then.
    pub fn store_in_steps(&self, entry: Entry, between: impl Fn()) {
        debug_assert!(low(entry) != 0 || entry.is_none(), "an entry with nothing in its low word");
        if sabotaged!("pae-store-order") {
            self.low.store(low(entry), Ordering::Release);
            between();
        }
        // Release: after the low word was cleared, for the reader's third load.
        self.high.store(high(entry), Ordering::Release);
        between();
        // Release: the high word, and what the entry publishes; pairs with `load`.
        self.low.store(low(entry), Ordering::Release);
    }

    /// The high word of an entry that only the caller may replace.
    fn own_high(&self) -> u32 {
        // Relaxed: whoever stored it held the table's lock, as the caller does.
        self.high.load(Ordering::Relaxed)
    }
}

impl EntrySlot for SlotPae {
    const ONE_ACCESS: bool = false;

    fn new(entry: Entry) -> Self {
        Self { low: AtomicU32::new(low(entry)), high: AtomicU32::new(high(entry)) }
    }

    fn load(&self) -> Entry {
        self.load_in_steps(|| ())
    }

    fn store(&self, entry: Entry) {
        self.store_in_steps(entry, || ());
    }

    fn swap(&self, entry: Entry) -> Entry {
        if entry.is_none() {
            let high = self.own_high();
            return join(self.low.swap(0, Ordering::AcqRel), high);
        }
        let mut old = self.load();
        while let Err(current) = self.compare_exchange(old, entry) {
            old = current;
        }
        old
    }

    fn compare_exchange(&self, current: Entry, new: Entry) -> Result<(), Entry> {
        let is_other = !current.is_none() && self.own_high() != high(current);
        // Where nothing is or will be, the high word does not matter.
        let one_step = new.is_none() || !current.is_none() && high(current) == high(new);
        let step = if one_step { low(new) } else { between(current) };
        if is_other || self.low.compare_exchange(low(current), step, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(self.load());
        }
        if !one_step {
            self.store(new);
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
