//! Deposited PTE tables: one for each transparent huge entry, so that a split never needs memory (spec 4.1).
//!
//! | build | the list hangs in | under |
//! | --- | --- | --- |
//! | split PTE + PMD | the descriptor of the PMD table's frame | the PMD lock |
//! | split PTE, single lock | the address space | `page_table_lock` |
//!
//! In each build that is the lock [`pmd_lockptr`] names. Rules kept: as many deposits as transparent huge entries, each
//! table all none (I14); a PMD table is destroyed, and an address space ends, without a deposit (I13). A deposit counts as a
//! linked table (spec 3.2): putting it on the list and taking it off for good change `pgtables_bytes`, a split does not.
//!
//! Nobody reads a deposited table without a lock. One that came with the fault was never published; one that collapse
//! leaves here has been unhooked for a whole grace period (`address_space::collapse`). So a split may fill it, and a zap
//! free it, at once.

use super::alloc::UnpublishedTable;
use super::lockptr::pmd_lockptr;
use super::ptlock::PtlGuard;
use super::{Level, Slot};
use crate::address::Pfn;
use crate::address_space::Mm;
use crate::config::USE_SPLIT_PMD_PTLOCKS;
use crate::machine::Machine;
use crate::memory::Memory;
use crate::page::{decode, encode};
use crate::sync::atomic::{AtomicUsize, Ordering};

/// The head of a list of deposited tables: a frame, or nothing. The tables are linked through their descriptors.
pub(crate) struct DepositList(AtomicUsize);

impl DepositList {
    /// An empty list.
    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(encode(None)))
    }

    /// Whether nothing is left, for the end of what the list hangs in (I13).
    pub(crate) fn is_empty(&self) -> bool {
        is_empty(&self.0)
    }
}

/// Whether no table hangs at `head`.
pub(super) fn is_empty(head: &AtomicUsize) -> bool {
    first(head).is_none()
}

/// Makes `head`, a word of a fresh frame's descriptor, the head of an empty list.
pub(super) fn clear(head: &AtomicUsize) {
    // Relaxed, here and below: the words are read and written under the lock named above, or by a frame's only owner.
    head.store(encode(None), Ordering::Relaxed);
}

fn first(head: &AtomicUsize) -> Option<Pfn> {
    decode(head.load(Ordering::Relaxed))
}

fn next_of<M: Machine>(memory: &Memory<M>, table: Pfn) -> &'static AtomicUsize {
    &memory.memmap().page(table).rcu_next
}

/// The list that goes with `pmd`; proof that its lock is held is `guard`.
fn list_of<'l, M: Machine>(mm: &'l Mm<M>, pmd: Slot<'l, M>, guard: &PtlGuard<'_, M>) -> &'l AtomicUsize {
    debug_assert!(guard.holds(pmd_lockptr(mm, pmd)), "a deposit is touched under another lock than its own");
    if USE_SPLIT_PMD_PTLOCKS { &pmd.table().page().freelist } else { &mm.deposits().0 }
}

/// Puts `table`, all none and nobody else's, aside for the huge entry that `pmd` holds or is about to get
/// (`pgtable_trans_huge_deposit`).
pub(crate) fn deposit<M: Machine>(
    mm: &Mm<M>,
    pmd: Slot<'_, M>,
    guard: &PtlGuard<'_, M>,
    table: UnpublishedTable<'_, M>,
) {
    let head = list_of(mm, pmd, guard);
    let pfn = table.into_pfn();
    next_of(mm.memory(), pfn).store(encode(first(head)), Ordering::Relaxed);
    head.store(encode(Some(pfn)), Ordering::Relaxed);
}

/// Takes a deposited table for the huge entry that `pmd` holds or has just lost (`pgtable_trans_huge_withdraw`). Which of
/// those in the list is all the same: they are alike.
///
/// # Panics
///
/// If there is none: more transparent huge entries than deposits (I14).
pub(crate) fn withdraw<'m, M: Machine>(
    mm: &'m Mm<M>,
    pmd: Slot<'_, M>,
    guard: &PtlGuard<'_, M>,
) -> UnpublishedTable<'m, M> {
    let head = list_of(mm, pmd, guard);
    let Some(pfn) = first(head) else { panic!("a huge entry without a deposited table (I14)") };
    let next = next_of(mm.memory(), pfn);
    head.store(next.load(Ordering::Relaxed), Ordering::Relaxed);
    UnpublishedTable::adopt(mm.memory(), pfn, Level::Pte)
}

/// Number of tables deposited where `pmd`'s would be: of its PMD table where that has its own lock, else of the whole
/// address space. Takes the PMD lock; for oracles.
pub fn deposited_tables<M: Machine>(mm: &Mm<M>, pmd: Slot<'_, M>) -> usize {
    let guard = super::pmd_lock(mm, pmd);
    let mut next = first(list_of(mm, pmd, &guard));
    core::iter::from_fn(|| {
        let table = next?;
        next = first(next_of(mm.memory(), table));
        Some(table)
    })
    .count()
}
