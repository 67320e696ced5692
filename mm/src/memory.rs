//! The memory of one machine: everything of `mm` hangs off this one value, so that many simulated machines can share a
//! process.

use crate::address::Pfn;
use crate::address_space::Mm;
use crate::deferred::Deferred;
use crate::frame::FrameAllocator;
use crate::machine::Machine;
use crate::object::{Object, ObjectNode};
use crate::page::MemMap;
use crate::pgtable::pgtable_init;
pub use crate::slab::OutOfMemory;
use crate::slab::{Slab, SlabKind};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::OwnLine;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::rcu::Rcu;
use crate::vma::{Node, Vma};
use core::ptr::NonNull;

/// Frames, small objects, grace periods and the zero page of one machine.
pub struct Memory<M: Machine> {
    machine: M,
    frames: FrameAllocator<M>,
    slab: Slab<M>,
    rcu: Rcu,
    deferred: Deferred<M>,
    zero_page: Pfn,
    next_mm_id: OwnLine<AtomicUsize>,
}

impl<M: Machine> Memory<M> {
    /// Takes over the frames of `frames`, which already has its free ranges.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is not even a frame for the zero page.
    ///
    /// # Panics
    ///
    /// See [`pgtable_init`].
    pub fn new(machine: M, frames: FrameAllocator<M>) -> Result<Self, OutOfMemory> {
        let zero_page = frames.alloc_zeroed(machine)?;
        let slab = Slab::new()
            .register::<Vma<M>>(SlabKind::Vma)
            .register::<Node>(SlabKind::VmaNode)
            .register::<Mm<M>>(SlabKind::AddressSpace)
            .register::<Object<M>>(SlabKind::Object)
            .register::<ObjectNode>(SlabKind::ObjectNode);
        let slab = pgtable_init(slab, machine, &frames);
        Ok(Self {
            machine,
            frames,
            slab,
            rcu: Rcu::new(),
            deferred: Deferred::new(),
            zero_page,
            next_mm_id: OwnLine(AtomicUsize::new(1)),
        })
    }

    /// The machine.
    pub fn machine(&self) -> M {
        self.machine
    }

    /// The machine, to borrow mapped tables from.
    pub(crate) fn machine_ref(&self) -> &M {
        &self.machine
    }

    /// The frame descriptors.
    pub fn memmap(&self) -> MemMap<M::Lock> {
        self.frames.memmap()
    }

    /// The frame allocator.
    pub fn frames(&self) -> &FrameAllocator<M> {
        &self.frames
    }

    /// The small-object caches.
    pub fn slab(&self) -> &Slab<M> {
        &self.slab
    }

    /// Puts `value` into the cache for its kind, or gives it back.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn alloc_value<T>(&self, kind: SlabKind, value: T) -> Result<NonNull<T>, (OutOfMemory, T)> {
        self.slab.alloc_value(self.machine, &self.frames, kind, value)
    }

    /// Drops a value and frees its object.
    ///
    /// # Safety
    ///
    /// It came from [`Self::alloc_value`] with the same kind, and nobody reaches it any more.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn free_value<T>(&self, kind: SlabKind, value: NonNull<T>) {
        // SAFETY: the caller's promise.
        unsafe { self.slab.free_value(self.machine, &self.frames, kind, value) }
    }

    /// Grace periods.
    pub fn rcu(&self) -> &Rcu {
        &self.rcu
    }

    pub(crate) fn deferred(&self) -> &Deferred<M> {
        &self.deferred
    }

    /// The frame every read of untouched anonymous memory shows.
    pub fn zero_page(&self) -> Pfn {
        self.zero_page
    }

    /// A number for an address space. Where words are small they come round, and one that is used again tells a CPU with one
    /// ASID nothing wrong: it keeps nothing of what it had loaded before.
    pub(crate) fn next_mm_id(&self) -> usize {
        // Relaxed: only uniqueness matters.
        self.next_mm_id.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Drops one reference to a page and frees its frame, or its whole block, with the last. Of a block the first frame
    /// counts the references.
    pub(crate) fn put_page(&self, pfn: Pfn) {
        let page = self.memmap().page(pfn);
        // A block is only split by the owner of its one reference.
        let order = page.order();
        if page.put() {
            match order {
                0 => self.frames.free(self.machine, pfn),
                _ => self.frames.free_order(self.machine, pfn, order),
            }
        }
    }

    /// Number of live page tables (`NR_PAGETABLE`, I5).
    pub fn page_tables(&self) -> u64 {
        let stats = StatsSnapshot::sum(self.machine.cpus());
        stats[Counter::TablesAllocated].wrapping_sub(stats[Counter::TablesFreed])
    }

    /// Gives back what other CPUs hold in reserve and what waits for a grace period; the last resort of an allocation that
    /// failed. Not in a read section and under no lock.
    pub(crate) fn reclaim(&self) {
        self.drain_deferred_expedited();
        self.slab.shrink(self.machine, &self.frames);
        self.frames.drain(self.machine);
    }

    /// Runs `operation`; if it ends with `out_of_memory`, frees what can be freed and runs it once more. Not in a read
    /// section and under no lock.
    pub(crate) fn with_reclaim<T, E: PartialEq>(
        &self,
        out_of_memory: E,
        mut operation: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        operation().or_else(|error| {
            if error != out_of_memory {
                return Err(error);
            }
            self.reclaim();
            operation()
        })
    }
}
