//! Entries of a simulated machine: each access by software is a point where its CPU may dawdle, speculate or take an
//! interrupt. That is where the races over page tables are.

use super::current;
use crate::address::VirtAddr;
use crate::pgtable::{Entry, EntrySlot, Level, PagingMode};
use std::marker::PhantomData;

/// The paging mode `Mode`, with entries that the machine watches.
pub struct SimMode<Mode>(PhantomData<fn() -> Mode>);

impl<Mode: PagingMode> PagingMode for SimMode<Mode> {
    type Slot = SimSlot<Mode::Slot>;
    const NAME: &'static str = Mode::NAME;
    const TOP: Level = Mode::TOP;
    const USER_END: VirtAddr = Mode::USER_END;

    fn entries(level: Level) -> usize {
        Mode::entries(level)
    }

    fn shift(level: Level) -> u32 {
        Mode::shift(level)
    }

    fn below(level: Level) -> Option<Level> {
        Mode::below(level)
    }
}

/// An entry that software accesses through the CPU it runs on. The machine's walkers go past that.
#[repr(transparent)]
pub struct SimSlot<S>(S);

impl<S> SimSlot<S> {
    /// The entry as the walker sees it, which no interrupt comes between.
    pub(super) fn hardware(&self) -> &S {
        &self.0
    }
}

impl<S: EntrySlot> EntrySlot for SimSlot<S> {
    fn new(entry: Entry) -> Self {
        Self(S::new(entry))
    }

    fn load(&self) -> Entry {
        current::passes();
        self.0.load()
    }

    fn store(&self, entry: Entry) {
        current::passes();
        self.0.store(entry);
    }

    fn swap(&self, entry: Entry) -> Entry {
        current::passes();
        self.0.swap(entry)
    }

    fn compare_exchange(&self, current: Entry, new: Entry) -> Result<(), Entry> {
        current::passes();
        self.0.compare_exchange(current, new)
    }
}
