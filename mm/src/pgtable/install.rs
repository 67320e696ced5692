//! Allocating and publishing missing tables on the way to a PTE (spec 7.4).
//!
//! Rules kept: a table is constructed before its entry is visible (I3: release store here, acquire load in the walk). Both
//! "still none" and "the region is still there" are checked under the lock of the slot, at every level, before the store
//! (I15, R1, and the design's rule for lockless region lookup). The loser of a race destroys its spare. Where CPUs latch the top
//! table's entries, all that run on it know a new one before the lock of the slot drops (R31).

use super::alloc::{OutOfTables, UnpublishedTable};
use super::bad::entry_or_clear_bad;
use super::lockptr::lock_table_of;
use super::{Entry, Level, PagingMode, PteLocked, PteMap, Slot, Table, pte_offset_map, pte_offset_map_lock};
use crate::address::VirtAddr;
use crate::address_space::Mm;
use crate::config::PAGE_SIZE;
use crate::machine::Machine;
use crate::sync::atomic::Ordering;
use crate::sync::rcu::{self, RcuRead};
use crate::tlb;
use crate::vma::Vma;

/// Why a table could not be provided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// No frame or lock for it.
    OutOfTables,
    /// The region went away, or a huge page came, meanwhile: look again.
    Raced,
    /// An entry on the way is neither none nor a table pointer.
    Bad,
}

impl From<OutOfTables> for TableError {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

/// Walks to the PMD table for `address`, making the tables above it as needed. Takes `page_table_lock` for each it makes.
///
/// # Errors
///
/// See [`TableError`].
#[cfg_attr(test, track_caller)]
pub fn pmd_alloc<'r, M: Machine>(
    mm: &'r Mm<M>,
    rcu: &'r RcuRead<M>,
    vma: &Vma<M>,
    address: VirtAddr,
) -> Result<Table<'r, M>, TableError> {
    table_alloc(mm, rcu, vma, address, Level::Pmd)
}

/// As [`pmd_alloc`], down to the table of `level`, the PMD's or above.
#[cfg_attr(test, track_caller)]
pub(crate) fn table_alloc<'r, M: Machine>(
    mm: &'r Mm<M>,
    rcu: &'r RcuRead<M>,
    vma: &Vma<M>,
    address: VirtAddr,
    level: Level,
) -> Result<Table<'r, M>, TableError> {
    let mut table = Table::top(mm);
    while let Some(below) = M::Mode::below(table.level()).filter(|_| table.level() != level) {
        let slot = table.slot(address);
        let mut entry = entry_or_clear_bad(mm.machine(), slot);
        if entry.is_none() {
            entry = populate(mm, slot, below, vma)?;
        }
        if !entry.is_table() {
            return Err(not_a_table(entry));
        }
        table = Table::map(mm.memory(), rcu, entry.pfn(), below);
    }
    Ok(table)
}

/// Makes the PTE table below `pmd` if there is none (`pte_alloc`). Takes the PMD lock if it does.
///
/// # Errors
///
/// See [`TableError`].
#[cfg_attr(test, track_caller)]
pub fn pte_alloc<M: Machine>(mm: &Mm<M>, pmd: Slot<'_, M>, vma: &Vma<M>) -> Result<(), TableError> {
    let mut entry = entry_or_clear_bad(mm.machine(), pmd);
    if entry.is_none() {
        entry = populate(mm, pmd, Level::Pte, vma)?;
    }
    if entry.is_table() { Ok(()) } else { Err(not_a_table(entry)) }
}

/// A huge entry where a table was wanted belongs to another fault, or to a region that has just come or gone.
fn not_a_table(entry: Entry) -> TableError {
    if entry.is_huge() { TableError::Raced } else { TableError::Bad }
}

/// [`pte_alloc`], then `pte_offset_map`.
///
/// # Errors
///
/// See [`TableError`]: out of memory and a lost race are told apart (spec 1.4).
pub fn pte_alloc_map<'m, M: Machine>(
    mm: &'m Mm<M>,
    pmd: Slot<'_, M>,
    vma: &Vma<M>,
    address: VirtAddr,
) -> Result<PteMap<'m, M>, TableError> {
    pte_alloc(mm, pmd, vma)?;
    pte_offset_map(mm, pmd, address).ok_or(TableError::Raced)
}

/// [`pte_alloc`], then `pte_offset_map_lock`.
///
/// # Errors
///
/// See [`TableError`]: out of memory and a lost race are told apart (spec 1.4).
#[track_caller]
pub fn pte_alloc_map_lock<'m, M: Machine>(
    mm: &'m Mm<M>,
    pmd: Slot<'_, M>,
    vma: &Vma<M>,
    address: VirtAddr,
) -> Result<PteLocked<'m, M>, TableError> {
    pte_alloc(mm, pmd, vma)?;
    pte_offset_map_lock(mm, pmd, address).ok_or(TableError::Raced)
}

/// The PTE of `address`, an address of `vma`, mapped and locked, with every table above it made where it is missing.
///
/// # Errors
///
/// See [`TableError`].
#[track_caller]
pub fn get_locked_pte<'m, M: Machine>(
    mm: &'m Mm<M>,
    vma: &Vma<M>,
    address: VirtAddr,
) -> Result<PteLocked<'m, M>, TableError> {
    let rcu = rcu::read_lock(mm.machine());
    let pmds = pmd_alloc(mm, &rcu, vma, address)?;
    pte_alloc_map_lock(mm, pmds.slot(address), vma, address)
}

/// Fills `slot` with a new table of `level` unless somebody else has (`pud_populate`); returns the entry that is there
/// then.
#[cfg_attr(test, track_caller)]
fn populate<M: Machine>(mm: &Mm<M>, slot: Slot<'_, M>, level: Level, vma: &Vma<M>) -> Result<Entry, TableError> {
    let mut spare = Some(UnpublishedTable::allocate(mm.memory(), level)?);
    let entry = publish(mm, slot, &mut spare, vma);
    // A spare that is left is destroyed here, outside the lock.
    if sabotaged!("spare-left") {
        core::mem::forget(spare);
    }
    entry
}

/// Fills `pmd` with the PTE table `spare` (of another level: a bug, which debug builds stop at) if the slot is none; else leaves the table to the caller. Takes the PMD lock.
///
/// # Errors
///
/// [`TableError::Raced`] when the region has gone.
pub fn pmd_install<M: Machine>(
    mm: &Mm<M>,
    pmd: Slot<'_, M>,
    spare: &mut Option<UnpublishedTable<'_, M>>,
    vma: &Vma<M>,
) -> Result<(), TableError> {
    debug_assert_eq!(pmd.table().level(), Level::Pmd);
    publish(mm, pmd, spare, vma).map(|_| ())
}

fn publish<M: Machine>(
    mm: &Mm<M>,
    slot: Slot<'_, M>,
    spare: &mut Option<UnpublishedTable<'_, M>>,
    vma: &Vma<M>,
) -> Result<Entry, TableError> {
    debug_assert!(
        spare.as_ref().is_none_or(|table| M::Mode::below(slot.table().level()) == Some(table.level())),
        "a table of another level"
    );
    let _guard = lock_table_of(mm, slot);
    if vma.is_detached() && !sabotaged!("table-region-recheck") {
        return Err(TableError::Raced);
    }
    let current = slot.load();
    if !current.is_none() && !sabotaged!("slot-recheck") {
        return Ok(current);
    }
    let Some(table) = spare.take() else { return Ok(current) };
    // Relaxed: a count, checked when nobody changes it any more (I6, I7).
    mm.pgtables_bytes().fetch_add(if sabotaged!("pgtables-bytes") { 0 } else { PAGE_SIZE }, Ordering::Relaxed);
    let entry = table.into_entry();
    slot.store(entry);
    if sabotaged!("two-slots") {
        slot.table().slot_at(7).store(entry);
    }
    if slot.table().level() == M::Mode::TOP && !sabotaged!("top-flush") {
        tlb::flush_top(mm);
    }
    Ok(entry)
}

#[cfg(all(test, not(loom)))]
mod tests;
