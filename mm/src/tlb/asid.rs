//! ASIDs: what a CPU's TLB may still hold of address spaces it had loaded before.
//!
//! Rule kept (I31): a slot's generation is at most the address space's, and no translation tagged with the slot's ASID is
//! older than the slot says. So whoever comes back to an address space keeps what is cached if the generations are equal,
//! and drops it if they are not; a slot that changes hands is dropped whole.
//!
//! Where words are small, numbers of address spaces and generations come round, so nothing may be kept under an old one: a
//! machine of 32 bits has one ASID, as processors there have (a PCID needs 64-bit mode).
//!
//! The hardware's name for it is PCID, and QEMU's TCG has none: there [`Machine::asids`](crate::machine::Machine::asids) is
//! 1, every load of a top table drops everything, and the one slot only says how current the loaded translations are. What
//! is here runs with six ASIDs on the simulated machine of the host tests.

use crate::sync::atomic::{Ordering, const_new, plain};

/// ASIDs a CPU tells apart at most (spec 8.4).
pub const MAX_ASIDS: usize = 6;

/// Tag of translations, of one CPU; below [`MAX_ASIDS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Asid(pub u8);

/// What a CPU finds of an address space it is about to load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Translations as new as the tables.
    Current,
    /// Translations, some of which may be older.
    Behind,
    /// Nothing; the slot was another's.
    Nothing,
}

/// One ASID: whose translations it tags, and how new they are.
struct Slot {
    /// 0 for nobody's.
    ctx_id: plain::AtomicUsize,
    tlb_gen: plain::AtomicUsize,
}

impl Slot {
    const fn new() -> Self {
        Self { ctx_id: plain::AtomicUsize::new(0), tlb_gen: plain::AtomicUsize::new(0) }
    }
}

/// The ASIDs of one CPU. Only that CPU uses them, with interrupts off; so no access orders anything.
pub(super) struct AsidSlots {
    slots: [Slot; MAX_ASIDS],
    /// The ASID of the address space loaded last.
    current: plain::AtomicU8,
    /// Whose turn it is to be given up.
    next: plain::AtomicU8,
}

impl AsidSlots {
    const_new! {
        pub(super) fn new() -> Self {
            Self {
                slots: [const { Slot::new() }; MAX_ASIDS],
                current: plain::AtomicU8::new(0),
                next: plain::AtomicU8::new(0),
            }
        }
    }

    /// Makes the ASID of `ctx_id` the current one, as new as `tlb_gen`, and says what the TLB held of it. `count` is the
    /// machine's number of ASIDs. The caller drops what is not [`Found::Current`].
    pub(super) fn take(&self, count: usize, ctx_id: usize, tlb_gen: usize) -> (Asid, Found) {
        debug_assert!(count == 1 || usize::BITS == 64, "numbers come round, and something is kept that long");
        let slots = &self.slots[..count.clamp(1, MAX_ASIDS)];
        let known = slots.iter().position(|slot| slot.ctx_id.load(Ordering::Relaxed) == ctx_id);
        let index = known.unwrap_or_else(|| {
            let turn = usize::from(self.next.load(Ordering::Relaxed)) % slots.len();
            self.next.store(((turn + 1) % slots.len()) as u8, Ordering::Relaxed);
            turn
        });
        let found = match known {
            Some(_) if slots[index].tlb_gen.load(Ordering::Relaxed) == tlb_gen => Found::Current,
            Some(_) => Found::Behind,
            None => Found::Nothing,
        };
        slots[index].ctx_id.store(ctx_id, Ordering::Relaxed);
        slots[index].tlb_gen.store(tlb_gen, Ordering::Relaxed);
        self.current.store(index as u8, Ordering::Relaxed);
        (Asid(index as u8), found)
    }

    fn current(&self) -> &Slot {
        &self.slots[usize::from(self.current.load(Ordering::Relaxed))]
    }

    /// How new the translations of the current ASID are.
    pub(super) fn tlb_gen(&self) -> usize {
        self.current().tlb_gen.load(Ordering::Relaxed)
    }

    /// The current ASID's translations have been brought up to `tlb_gen`.
    pub(super) fn set_tlb_gen(&self, tlb_gen: usize) {
        self.current().tlb_gen.store(tlb_gen, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Asid, AsidSlots, Found, MAX_ASIDS};

    #[test]
    fn an_address_space_comes_back_to_its_asid() {
        let slots = AsidSlots::new();
        assert_eq!(slots.take(MAX_ASIDS, 10, 1), (Asid(0), Found::Nothing));
        assert_eq!(slots.take(MAX_ASIDS, 11, 1), (Asid(1), Found::Nothing));
        assert_eq!(slots.take(MAX_ASIDS, 10, 1), (Asid(0), Found::Current));
        assert_eq!(slots.take(MAX_ASIDS, 11, 2), (Asid(1), Found::Behind));
        assert_eq!(slots.take(MAX_ASIDS, 11, 2), (Asid(1), Found::Current));
    }

    #[test]
    fn asids_are_given_up_in_turn() {
        let slots = AsidSlots::new();
        for round in 0..3 {
            for index in 0..MAX_ASIDS {
                let asid = slots.take(MAX_ASIDS, 100 + round * 10 + index, 1);
                assert_eq!(asid, (Asid(index as u8), Found::Nothing));
            }
        }
        // All but the last six have lost theirs.
        assert_eq!(slots.take(MAX_ASIDS, 100, 1).1, Found::Nothing);
        assert_eq!(slots.take(MAX_ASIDS, 125, 1), (Asid(5), Found::Current));
    }

    #[test]
    fn a_machine_without_asids_has_one() {
        let slots = AsidSlots::new();
        assert_eq!(slots.take(1, 10, 1), (Asid(0), Found::Nothing));
        assert_eq!(slots.take(1, 11, 1), (Asid(0), Found::Nothing));
        assert_eq!(slots.take(1, 10, 1), (Asid(0), Found::Nothing));
    }

    /// I31: what is noted for one address space says nothing of another's.
    #[test]
    fn each_asid_has_its_own_generation() {
        let slots = AsidSlots::new();
        slots.take(MAX_ASIDS, 10, 5);
        slots.take(MAX_ASIDS, 11, 1);
        slots.set_tlb_gen(9);
        assert_eq!(slots.tlb_gen(), 9);
        assert_eq!(slots.take(MAX_ASIDS, 10, 5).1, Found::Current);
        assert_eq!(slots.tlb_gen(), 5);
    }
}
