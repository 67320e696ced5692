//! Freeing an empty PTE table while its region stays (spec 9.1).
//!
//! Lockless readers may be walking the table; they find it all none until it is freed, after their read sections. Faults
//! that saw a none entry in it lock it, find that the PMD slot names it no more, and look again.
//!
//! Rules kept: a table is unlinked under its parent's lock and its own, and only if every entry is none. The PMD lock is
//! never waited for under the PTE lock (I22, R7): whoever holds the PTE lock tries, and else lets go and takes both in
//! their order, by when a fault may have filled the table again (R8).

use super::lockptr::{lock_table_of, pmd_lock, pmd_trylock};
use super::{Entry, EntrySlot, Level, PteLocked, Slot, Table, pmd_offset};
use crate::address::{Pfn, VirtAddr};
use crate::address_space::Mm;
use crate::config::PAGE_SIZE;
use crate::machine::{Machine, SlotOf};
use crate::sync::atomic::Ordering;
use crate::sync::rcu;
use crate::tlb;

/// Unlinks the table of `pte`, which is in `pmd`, if its PMD lock is free now. The caller has cleared every entry since it
/// took the PTE lock. Never where the two locks are one (spec 2.1).
pub(super) fn try_unlink_held<M: Machine>(mm: &Mm<M>, pte: &PteLocked<'_, M>, pmd: Slot<'_, M>) -> Option<Pfn> {
    let _parent = if sabotaged!("lock-order") { pmd_lock(mm, pmd) } else { pmd_trylock(pte.guard(), mm, pmd)? };
    // The slot names the table as long as its lock is held (I16).
    unlink(mm, pmd, pte.pmd(), Level::Pte);
    sync_readers(mm);
    Some(pte.pmd().pfn())
}

/// Unlinks the PTE table that maps `address`, if there is one and all its entries are none. Takes the PMD lock and the
/// PTE lock. No page-table lock may be held.
pub(super) fn try_unlink_empty<M: Machine>(mm: &Mm<M>, address: VirtAddr) -> Option<Pfn> {
    let rcu = rcu::read_lock(mm.machine());
    let pmd_table = pmd_offset(mm, &rcu, address)?;
    let pmd = pmd_table.slot(address);
    let parent = lock_table_of(mm, pmd);
    // Stable: a slot changes under its table's lock.
    let entry = pmd.load();
    if !entry.is_table() {
        return None;
    }
    let _own = parent.nested(mm, entry, Level::Pte);
    if !is_empty(&Table::map(mm.memory(), &rcu, entry.pfn(), Level::Pte)) && !sabotaged!("empty-recheck") {
        return None;
    }
    unlink(mm, pmd, entry, Level::Pte);
    sync_readers(mm);
    Some(entry.pfn())
}

/// Takes the table of `level` that `entry` names out of `slot`. The caller holds the slot's lock and the table's own. The
/// table must be flushed and wait for its readers before it is freed.
pub(super) fn unlink<M: Machine>(mm: &Mm<M>, slot: Slot<'_, M>, entry: Entry, level: Level) {
    debug_assert!(is_empty(&Table::map_private(mm.memory(), entry.pfn(), level)), "a table in use is unlinked");
    if !sabotaged!("unhook") {
        slot.swap(Entry::NONE);
    }
    mm.memory().memmap().page(entry.pfn()).mark_detached();
    // Now, not when it is freed: that will not know the address space (spec 3.2).
    mm.pgtables_bytes().fetch_sub(PAGE_SIZE, Ordering::Relaxed);
}

/// A fault may store a pointer to another table as soon as the PMD lock drops. Where a reader of the slot takes two accesses,
/// none may have made one of them by then (R29), on whatever CPU (R30): they make both with interrupts off.
fn sync_readers<M: Machine>(mm: &Mm<M>) {
    if !<SlotOf<M> as EntrySlot>::ONE_ACCESS && !sabotaged!("halves-sync") {
        tlb::sync_all_cpus(mm.machine());
    }
}

fn is_empty<M: Machine>(table: &Table<'_, M>) -> bool {
    table.slots().iter().all(|slot| slot.load().is_none())
}
