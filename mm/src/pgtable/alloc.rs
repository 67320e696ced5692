//! Making and destroying tables: frame, constructor, publication; destructor and frame together (spec 3).
//!
//! Rules kept: a constructor that fails changes nothing and its frame is freed without a destructor; one destructor per
//! successful constructor (I4); a table that owns a lock is a whole frame of the frame allocator, never a slab object (I8).

use super::deposit;
use super::ptlock::{ptlock_free, ptlock_init};
use super::{Entry, Level};
use crate::address::Pfn;
use crate::config::{USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use crate::frame::OutOfFrames;
use crate::machine::{FrameUse, Machine};
use crate::memory::Memory;
use crate::page::{Page, PageType};
use crate::stats::Counter;

/// Why a constructor refused: no memory for the table's lock (or an injected failure that stands for it).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PtlockAllocError;

/// Constructs a PTE table in fresh frame `pfn`: its lock, its type, the count of page tables.
///
/// # Errors
///
/// [`PtlockAllocError`], with nothing changed.
#[cfg_attr(test, track_caller)]
pub(crate) fn pagetable_pte_ctor<M: Machine>(memory: &Memory<M>, pfn: Pfn) -> Result<(), PtlockAllocError> {
    construct(memory, pfn, USE_SPLIT_PTE_PTLOCKS)
}

/// Constructs a PMD table in fresh frame `pfn`.
///
/// # Errors
///
/// [`PtlockAllocError`], with nothing changed.
#[cfg_attr(test, track_caller)]
pub(crate) fn pagetable_pmd_ctor<M: Machine>(memory: &Memory<M>, pfn: Pfn) -> Result<(), PtlockAllocError> {
    construct(memory, pfn, USE_SPLIT_PMD_PTLOCKS)
}

/// Constructs a PUD table in fresh frame `pfn`. It has no lock of its own, so nothing can fail; nor can it a level up.
pub(crate) fn pagetable_pud_ctor<M: Machine>(memory: &Memory<M>, pfn: Pfn) {
    account(memory, pfn);
}

/// Constructs a P4D table in fresh frame `pfn`.
pub(crate) fn pagetable_p4d_ctor<M: Machine>(memory: &Memory<M>, pfn: Pfn) {
    account(memory, pfn);
}

/// Constructs a PGD table in fresh frame `pfn`.
pub(crate) fn pagetable_pgd_ctor<M: Machine>(memory: &Memory<M>, pfn: Pfn) {
    account(memory, pfn);
}

/// Destroys the table in `pfn`, of whatever level: unlinked, flushed, and past its grace period, or never published.
pub(crate) fn pagetable_dtor<M: Machine>(memory: &Memory<M>, pfn: Pfn) {
    let page = memory.memmap().page(pfn);
    assert_eq!(page.page_type(), PageType::Table, "destructor of {pfn:?}, which is no table (I4)");
    ptlock_free(memory, page);
    assert!(deposit::is_empty(&page.freelist), "destructor of {pfn:?}, which has deposits left (I13)");
    page.set_state(PageType::Data, 0, 0);
    if !sabotaged!("table-count") {
        memory.machine().local().stats.bump(Counter::TablesFreed);
    }
}

/// [`pagetable_dtor`], then the frame.
pub(crate) fn pagetable_dtor_free<M: Machine>(memory: &Memory<M>, pfn: Pfn) {
    if !sabotaged!("dtor") {
        pagetable_dtor(memory, pfn);
    }
    memory.frames().free(memory.machine(), pfn);
}

#[cfg_attr(test, track_caller)]
fn construct<M: Machine>(memory: &Memory<M>, pfn: Pfn, has_lock: bool) -> Result<(), PtlockAllocError> {
    if has_lock {
        ptlock_init(memory, memory.memmap().page(pfn))?;
    }
    account(memory, pfn);
    Ok(())
}

fn account<M: Machine>(memory: &Memory<M>, pfn: Pfn) {
    let page: &Page<M::Lock> = memory.memmap().page(pfn);
    assert_eq!(page.page_type(), PageType::Data, "constructor of {pfn:?}, which is in use (I8)");
    deposit::clear(&page.freelist);
    page.set_state(PageType::Table, 0, 0);
    memory.machine().note_frame(pfn, FrameUse::Table);
    memory.machine().local().stats.bump(Counter::TablesAllocated);
}

/// No frame, or no lock, for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfTables;

impl From<OutOfFrames> for OutOfTables {
    fn from(_: OutOfFrames) -> Self {
        Self
    }
}

impl From<PtlockAllocError> for OutOfTables {
    fn from(_: PtlockAllocError) -> Self {
        Self
    }
}

/// A constructed table nobody else can reach. Publishing consumes it; dropping it instead destroys it at once, which is
/// legal because it was never published (spec 3.4).
pub struct UnpublishedTable<'m, M: Machine> {
    memory: &'m Memory<M>,
    pfn: Pfn,
    level: Level,
}

impl<'m, M: Machine> UnpublishedTable<'m, M> {
    /// Allocates a zeroed frame and constructs a table of `level` in it.
    ///
    /// # Errors
    ///
    /// [`OutOfTables`]; whatever had been taken is given back.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn allocate(memory: &'m Memory<M>, level: Level) -> Result<Self, OutOfTables> {
        let (frames, machine) = (memory.frames(), memory.machine());
        let pfn = match level {
            Level::Pte => frames.alloc_zeroed_table(machine)?,
            // The lock of a PMD table is found by the address of a slot in it, so that must not change (spec 1.2).
            _ => frames.alloc_zeroed_low(machine)?,
        };
        let mut constructed = Ok(());
        match level {
            Level::Pte => constructed = pagetable_pte_ctor(memory, pfn),
            Level::Pmd => constructed = pagetable_pmd_ctor(memory, pfn),
            Level::Pud => pagetable_pud_ctor(memory, pfn),
            Level::P4d => pagetable_p4d_ctor(memory, pfn),
            Level::Pgd => pagetable_pgd_ctor(memory, pfn),
        }
        if let Err(error) = constructed {
            if !sabotaged!("ctor-unwind") {
                memory.frames().free(memory.machine(), pfn);
            }
            return Err(error.into());
        }
        Ok(Self { memory, pfn, level })
    }

    /// Takes over a constructed table that nobody else can reach: never published, or unhooked and past its readers.
    pub(super) fn adopt(memory: &'m Memory<M>, pfn: Pfn, level: Level) -> Self {
        Self { memory, pfn, level }
    }

    /// The frame of the table.
    pub fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// The level it was constructed for.
    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// Gives the table to whoever stores the returned entry.
    pub(super) fn into_entry(self) -> Entry {
        Entry::table(self.into_pfn())
    }

    /// Gives the table to an owner that frees it by [`pagetable_dtor_free`].
    pub(crate) fn into_pfn(self) -> Pfn {
        let pfn = self.pfn;
        core::mem::forget(self);
        pfn
    }
}

/// Makes a PTE table that nobody can reach yet, for [`pmd_install`](super::pmd_install) or [`pte_free`].
///
/// # Errors
///
/// [`OutOfTables`]; whatever had been taken is given back.
pub fn pte_alloc_one<M: Machine>(memory: &Memory<M>) -> Result<UnpublishedTable<'_, M>, OutOfTables> {
    UnpublishedTable::allocate(memory, Level::Pte)
}

/// Destroys and frees a PTE table that was never published, at once.
pub fn pte_free<M: Machine>(table: UnpublishedTable<'_, M>) {
    debug_assert_eq!(table.level, Level::Pte);
    drop(table);
}

/// Makes a PMD table that nobody can reach yet.
///
/// # Errors
///
/// [`OutOfTables`]; whatever had been taken is given back.
pub fn pmd_alloc_one<M: Machine>(memory: &Memory<M>) -> Result<UnpublishedTable<'_, M>, OutOfTables> {
    UnpublishedTable::allocate(memory, Level::Pmd)
}

/// Destroys and frees a PMD table that was never published, at once.
pub fn pmd_free<M: Machine>(table: UnpublishedTable<'_, M>) {
    debug_assert_eq!(table.level, Level::Pmd);
    drop(table);
}

impl<M: Machine> Drop for UnpublishedTable<'_, M> {
    fn drop(&mut self) {
        pagetable_dtor_free(self.memory, self.pfn);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
