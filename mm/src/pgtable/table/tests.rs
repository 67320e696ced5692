//! Which reads of an entry of two words keep interrupts out: those of a pointer that is followed without a lock (R29).

use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{Entry, EntrySlot, Pae, PagingMode, SlotPae, leaf_at, pmd_offset, pte_offset_map, shaped_as};
use crate::sync::rcu;
use crate::testing::{World, map_anonymous, page, pages};
use crate::vma::Access;
use std::cell::Cell;

/// PAE, with slots that say whether they were read with interrupts on.
struct Watched;

#[repr(transparent)]
struct WatchedSlot(SlotPae);

thread_local! {
    /// Whose interrupts to look at, if anybody's.
    static WATCHED: Cell<Option<Sim<Watched>>> = const { Cell::new(None) };
    /// Reads so far with interrupts off, and with them on.
    static READS: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// The reads that `work` does on `sim`: with interrupts off, and with them on.
fn reads(sim: Sim<Watched>, work: impl FnOnce()) -> (u32, u32) {
    READS.set((0, 0));
    WATCHED.set(Some(sim));
    work();
    WATCHED.set(None);
    READS.get()
}

impl EntrySlot for WatchedSlot {
    const ONE_ACCESS: bool = SlotPae::ONE_ACCESS;

    fn new(entry: Entry) -> Self {
        Self(SlotPae::new(entry))
    }

    fn load(&self) -> Entry {
        if let Some(sim) = WATCHED.get() {
            let (off, on) = READS.get();
            READS.set(if sim.irqs_enabled() { (off, on + 1) } else { (off + 1, on) });
        }
        self.0.load()
    }

    fn store(&self, entry: Entry) {
        self.0.store(entry);
    }

    fn swap(&self, entry: Entry) -> Entry {
        self.0.swap(entry)
    }

    fn compare_exchange(&self, current: Entry, new: Entry) -> Result<(), Entry> {
        self.0.compare_exchange(current, new)
    }
}

impl PagingMode for Watched {
    type Slot = WatchedSlot;
    shaped_as!(Pae);
}

/// An interrupt between the words would let whoever takes a table out of the slot fill it again, and the words be of two tables.
#[test]
fn a_pointer_that_is_followed_without_a_lock_is_read_with_interrupts_off() {
    let world = World::<Watched>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let (sim, mm) = (world.machine.handle(), world.mm());
        map_anonymous(&mm, pages(0x200, 0x201));
        handle_mm_fault(&mm, page(0x200), Access::Write).unwrap();
        let walk = || {
            let rcu = rcu::read_lock(sim);
            let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
            drop(pte_offset_map(&mm, pmds.slot(page(0x200)), page(0x200)).unwrap());
        };
        assert_eq!(reads(sim, walk), (2, 0), "a table, then one below it");
        assert_eq!(reads(sim, || assert!(leaf_at(&mm, page(0x200)).is_some())), (3, 0), "the page too");
    });
}
