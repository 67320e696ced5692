//! A 64-bit number in two words. A 64-bit atomic of a machine of 32 bits would make every load and every store of it a locked
//! write, which is dear, and faults where only reading is allowed.
//!
//! Rule: the writer stores the high half first. So a reader that finds the same high half before and after the low one may have
//! it together with the low half of an older number, but not with that of a newer.

use core::sync::atomic::{AtomicU32, Ordering};

/// A number that one writer at a time changes and anybody may read. A reader may be behind; while the number grows past a
/// multiple of 2^32 it may get one too large by less than that, and while it shrinks, one of another time.
#[derive(Debug)]
pub struct Solo64 {
    high: AtomicU32,
    low: AtomicU32,
}

impl Solo64 {
    /// `value` at first.
    pub const fn new(value: u64) -> Self {
        Self { high: AtomicU32::new((value >> 32) as u32), low: AtomicU32::new(value as u32) }
    }

    /// The number.
    pub fn get(&self) -> u64 {
        // Acquire: the loads stay in this order; that of the low half pairs with the Release in `set`.
        let mut high = self.high.load(Ordering::Acquire);
        loop {
            let low = self.low.load(Ordering::Acquire);
            let again = self.high.load(Ordering::Acquire);
            if high == again {
                return u64::from(high) << 32 | u64::from(low);
            }
            high = again;
        }
    }

    /// Changes it. No other writer is at work.
    pub fn set(&self, value: u64) {
        let high = (value >> 32) as u32;
        // Relaxed: only writers store it. Most changes leave it as it is.
        if self.high.load(Ordering::Relaxed) != high {
            self.high.store(high, Ordering::Relaxed);
        }
        // Release: who sees this low half sees the high one that belongs to it.
        self.low.store(value as u32, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Solo64;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_number_is_what_was_set() {
        let number = Solo64::new(0x1_2345_6789);
        assert_eq!(number.get(), 0x1_2345_6789);
        for value in [0, u64::MAX, 1 << 32, u64::from(u32::MAX)] {
            number.set(value);
            assert_eq!(number.get(), value);
        }
    }

    /// With the low half stored first a reader would see the number fall by 2^32 at each carry.
    #[test]
    fn a_number_that_grows_is_never_seen_smaller_than_it_was() {
        const STEP: u64 = 0x7fff_ffff;
        const LAST: u64 = 2_000_000 * STEP;
        let (number, was) = (Solo64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        // Acquire: pairs with the Release below.
                        let before = was.load(Ordering::Acquire);
                        let seen = number.get();
                        assert!(seen >= before, "{before:#x} before, then {seen:#x}");
                        if before == LAST {
                            break;
                        }
                    }
                });
            }
            for value in (STEP..=LAST).step_by(STEP as usize) {
                number.set(value);
                was.store(value, Ordering::Release);
            }
        });
    }
}
