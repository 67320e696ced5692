//! Entries of a simulated machine: each access by software is a point where its CPU may dawdle, speculate or take an
//! interrupt. That is where the races over page tables are.

use super::{current, host};
use crate::pgtable::{Entry, EntrySlot, PagingMode, shaped_as};
use std::marker::PhantomData;
use std::sync::atomic::AtomicU64;

/// The paging mode `Mode`, with entries that the machine watches.
pub struct SimMode<Mode>(PhantomData<fn() -> Mode>);

impl<Mode: PagingMode> PagingMode for SimMode<Mode> {
    type Slot = SimSlot<Mode::Slot>;
    shaped_as!(Mode);
}

/// An entry that software accesses through the CPU it runs on. The machine's walkers go past that.
#[repr(transparent)]
pub struct SimSlot<S>(S);

impl<S> SimSlot<S> {
    /// The entry as the walker sees it.
    pub(super) fn hardware(&self) -> Hardware<'_, S> {
        Hardware(&self.0)
    }

    /// The same eight bytes in a frame of data.
    pub(super) fn word(&self) -> &AtomicU64 {
        const { assert!(size_of::<S>() == 8 && align_of::<S>() == 8) };
        // SAFETY: as large and as aligned as the slot, which is made of atomics and lives as long. A frame is never a table and
        // data at once, and the allocator orders the one before the other; so accesses of both sizes never meet.
        unsafe { AtomicU64::from_ptr(std::ptr::from_ref(self).cast_mut().cast()) }
    }
}

/// An entry that a walker accesses, each time at once: no interrupt and no other CPU comes between.
pub(super) struct Hardware<'a, S>(&'a S);

impl<S: EntrySlot> Hardware<'_, S> {
    pub(super) fn load(&self) -> Entry {
        host::quietly(|| self.0.load())
    }

    pub(super) fn compare_exchange(&self, current: Entry, new: Entry) -> Result<(), Entry> {
        host::quietly(|| self.0.compare_exchange(current, new))
    }
}

impl<S: EntrySlot> EntrySlot for SimSlot<S> {
    const ONE_ACCESS: bool = S::ONE_ACCESS;

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
