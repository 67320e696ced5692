//! `mm_struct`: one address space, its reference, and what hangs off it.
//!
//! Rule: the fields a fault reads lie on lines that no fault writes; the lock of the upper tables, the mask of CPUs and
//! `mmap_lock` each have a line of their own.
#![allow(unsafe_code)]

mod advise;
mod collapse;
mod fork;
mod map;
mod remap;

pub use collapse::CollapseError;
pub use map::{MapError, Mapping};

use crate::address::{PhysAddr, VirtAddr};
use crate::config::PAGE_SIZE;
use crate::gather::FlushPending;
use crate::machine::Machine;
use crate::memory::{Memory, OutOfMemory};
use crate::pgtable::{DepositList, PageTableLock, PagingMode, pgd_alloc, pgd_free, pgd_mop_up};
use crate::slab::SlabKind;
use crate::sync::OwnLine;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use crate::sync::rcu::RcuRead;
pub(crate) use crate::sync::rwlock::MmapHeld;
use crate::sync::rwlock::{MmapLock, MmapWriteGuard};
use crate::tlb::{self, MmTlb};
use crate::vma::{Vma, VmaTree};
use core::ptr::NonNull;

/// Proof that `mmap_lock` of some address space is held for writing.
pub type MmapWrite<'m, M> = MmapWriteGuard<'m, M>;

/// An address space. Reached through [`MmRef`].
pub struct Mm<M: Machine> {
    memory: &'static Memory<M>,
    pgd: PhysAddr,
    vmas: VmaTree<M>,
    mmap_lock: OwnLine<MmapLock>,
    page_table_lock: OwnLine<PageTableLock<M::Lock>>,
    /// Tables set aside for the split of huge pages, where PMD tables have no lock of their own (`pmd_huge_pte`).
    deposits: OwnLine<DepositList>,
    tlb: MmTlb,
    counts: OwnLine<Counts>,
}

struct Counts {
    /// Bytes of linked tables, the top one not counted (spec 3.2).
    pgtables_bytes: AtomicUsize,
    references: AtomicU32,
    /// Gathers under way (`tlb_flush_pending`).
    flush_pending: FlushPending,
}

impl<M: Machine> Mm<M> {
    /// An address space with no region (`mm_alloc`, `pgd_alloc`).
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; whatever had been taken is given back.
    pub fn create(memory: &'static Memory<M>) -> Result<MmRef<M>, OutOfMemory> {
        memory.with_reclaim(OutOfMemory, || Self::try_create(memory))
    }

    fn try_create(memory: &'static Memory<M>) -> Result<MmRef<M>, OutOfMemory> {
        let pgd = pgd_alloc(memory).map_err(|_| OutOfMemory)?;
        let mm = Self {
            memory,
            pgd: pgd.address(),
            vmas: VmaTree::new(),
            mmap_lock: OwnLine(MmapLock::new()),
            page_table_lock: OwnLine(PageTableLock::new()),
            deposits: OwnLine(DepositList::new()),
            tlb: MmTlb::new(memory.next_mm_id(), pgd.address()),
            counts: OwnLine(Counts {
                pgtables_bytes: AtomicUsize::new(M::Mode::PREALLOCATED * PAGE_SIZE),
                references: AtomicU32::new(1),
                flush_pending: FlushPending::new(),
            }),
        };
        match memory.alloc_value(SlabKind::AddressSpace, mm) {
            Ok(mm) => {
                pgd.keep();
                Ok(MmRef(mm))
            }
            Err((error, _)) => Err(error),
        }
    }

    /// The memory it lives in.
    pub fn memory(&self) -> &'static Memory<M> {
        self.memory
    }

    /// The machine it runs on.
    pub fn machine(&self) -> M {
        self.memory.machine()
    }

    /// Where the top table lies.
    pub fn pgd(&self) -> PhysAddr {
        self.pgd
    }

    /// The region that covers `address`, if any (`find_vma`, but never one further up). It may be detached at any moment.
    pub fn find_vma<'r>(&'r self, rcu: &'r RcuRead<M>, address: VirtAddr) -> Option<&'r Vma<M>> {
        self.vmas.lookup(rcu, address)
    }

    pub(crate) fn vmas(&self) -> &VmaTree<M> {
        &self.vmas
    }

    /// The sleeping lock of the set of regions: writers change it, and a fault that keeps losing races reads under it.
    pub fn mmap_lock(&self) -> &MmapLock {
        &self.mmap_lock.0
    }

    /// `mm->page_table_lock`: of every table that has no lock of its own.
    pub(crate) fn page_table_lock(&self) -> &PageTableLock<M::Lock> {
        &self.page_table_lock.0
    }

    /// Under `page_table_lock`; see [`DepositList`].
    pub(crate) fn deposits(&self) -> &DepositList {
        &self.deposits.0
    }

    /// Who has it loaded.
    pub fn tlb(&self) -> &MmTlb {
        &self.tlb
    }

    pub(crate) fn pgtables_bytes(&self) -> &AtomicUsize {
        &self.counts.0.pgtables_bytes
    }

    pub(crate) fn flush_pending(&self) -> &FlushPending {
        &self.counts.0.flush_pending
    }

    /// Whether the last reference has gone.
    pub(crate) fn is_ending(&self) -> bool {
        // Relaxed: whoever asks has a reference, or is the one who dropped the last.
        self.counts.0.references.load(Ordering::Relaxed) == 0
    }

    /// Bytes of linked tables below the top one (I7).
    pub fn linked_table_bytes(&self) -> u64 {
        self.pgtables_bytes().load(Ordering::Relaxed) as u64
    }
}

/// A reference to an address space. With the last one its regions, tables and itself go.
pub struct MmRef<M: Machine>(NonNull<Mm<M>>);

// SAFETY: an address space may be used from any CPU; each of its parts says how.
unsafe impl<M: Machine> Send for MmRef<M> {}
// SAFETY: as above.
unsafe impl<M: Machine> Sync for MmRef<M> {}

impl<M: Machine> core::ops::Deref for MmRef<M> {
    type Target = Mm<M>;

    fn deref(&self) -> &Mm<M> {
        // SAFETY: the reference keeps the address space.
        unsafe { self.0.as_ref() }
    }
}

impl<M: Machine> Clone for MmRef<M> {
    fn clone(&self) -> Self {
        // Relaxed: the existing reference keeps the address space.
        self.counts.0.references.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<M: Machine> Drop for MmRef<M> {
    fn drop(&mut self) {
        // Release: this holder's uses come before the end; pairs with the fence of the last.
        if self.counts.0.references.fetch_sub(1, Ordering::Release) != 1 || crate::is_unwinding() {
            return;
        }
        fence(Ordering::Acquire);
        let memory = self.memory;
        self.exit_mmap();
        tlb::evict_lazy(memory.machine(), &self.tlb);
        self.pgtables_bytes().fetch_sub(pgd_mop_up(memory, self.pgd) * PAGE_SIZE, Ordering::Relaxed);
        debug_assert_eq!(self.linked_table_bytes(), 0, "page tables left behind (I6)");
        assert!(self.deposits.0.is_empty(), "deposited tables left behind (I13)");
        pgd_free(memory, self.pgd);
        // SAFETY: allocated by `create`; this was the last reference.
        unsafe { memory.free_value(SlabKind::AddressSpace, self.0) };
    }
}

/// The address space a CPU has loaded, or none: the kernel's own. A CPU that runs a thread of an address space holds one.
pub struct LoadedMm<M: Machine> {
    machine: M,
    mm: Option<MmRef<M>>,
    /// Belongs to the CPU it was made on.
    _not_send: core::marker::PhantomData<*const ()>,
}

impl<M: Machine> LoadedMm<M> {
    /// Of the current CPU, which has the kernel's own table loaded.
    pub const fn none(machine: M) -> Self {
        Self { machine, mm: None, _not_send: core::marker::PhantomData }
    }

    /// Loads `mm` on the current CPU; `None` loads the kernel's own table, and nobody will send this CPU a flush.
    pub fn switch_to(&mut self, mm: Option<MmRef<M>>) {
        // SAFETY: the reference is kept until the CPU has loaded something else, or lazily, which `evict_lazy` ends.
        unsafe { tlb::switch(self.machine, mm.as_deref().map(Mm::tlb)) };
        self.mm = mm;
    }

    /// Keeps what is loaded for a kernel thread that is in no address space, without a reference: it may come back soon,
    /// and until then only a flush that frees tables, or the end of the address space, interrupts this CPU for it. Not
    /// before a halt: an idle CPU loads the kernel's own table.
    pub fn enter_lazy(&mut self) {
        tlb::enter_lazy(self.machine);
        self.mm = None;
    }

    /// What is loaded, and not only lazily.
    pub fn get(&self) -> Option<&MmRef<M>> {
        self.mm.as_ref()
    }
}

impl<M: Machine> Drop for LoadedMm<M> {
    fn drop(&mut self) {
        if (self.mm.is_some() || self.machine.local().tlb.is_lazy()) && !crate::is_unwinding() {
            self.switch_to(None);
        }
    }
}

impl<M: Machine> Mm<M> {
    /// Removes everything; nobody else has the address space (`exit_mmap`).
    fn exit_mmap(&self) {
        let everything = crate::address::VirtRange { start: VirtAddr(0), end: M::Mode::USER_END };
        // Removing whole regions allocates nothing, so it cannot fail.
        let removed = self.munmap(everything);
        debug_assert!(removed.is_ok());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
