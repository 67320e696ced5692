//! The two moments of a collapse at which a PMD slot changes: table → none, and none → huge.
//!
//! Rules kept: the table is unhooked under the PMD lock and its own, so a holder of `pte_offset_map_lock` keeps it (I16);
//! the flush that follows happens under both and covers the paging-structure caches, so no walker reaches the table any more
//! and its entries change no further. It becomes the deposit of the huge entry (spec 9.2), all none by then (I14).

use super::alloc::UnpublishedTable;
use super::lockptr::pmd_lock;
use super::{Entry, EntrySlot, Level, Table, deposit, pmd_offset, span_of};
use crate::address::{Pfn, VirtAddr};
use crate::address_space::{Mm, MmapWrite};
use crate::machine::Machine;
use crate::sync::rcu;
use crate::tlb::{self, TlbFlush};

/// A PTE table taken out of its PMD slot, with everything in it. Only its owner and those that found it before reach it;
/// after a grace period its owner alone.
pub(crate) struct Unhooked {
    pfn: Pfn,
}

/// Takes the PTE table for `address` out of its slot, if there is one and `judge` accepts its entries, and flushes
/// what all CPUs know through it. Until it is put back or replaced, the region's faults are kept out by its mark.
///
/// # Errors
///
/// What `judge` returns, with nothing changed; `Ok(None)` where there is no PTE table.
pub(crate) fn unhook_for_collapse<M: Machine, E>(
    mm: &Mm<M>,
    _write: &MmapWrite<'_, M>,
    address: VirtAddr,
    judge: impl FnOnce(&mut dyn Iterator<Item = Entry>) -> Result<(), E>,
) -> Result<Option<Unhooked>, E> {
    let rcu = rcu::read_lock(mm.machine());
    let Some(pmds) = pmd_offset(mm, &rcu, address) else { return Ok(None) };
    let pmd = pmds.slot(address);
    let guard = pmd_lock(mm, pmd);
    let entry = pmd.load();
    if !entry.is_table() {
        return Ok(None);
    }
    // Released before `guard`: in the single-lock build there is no second one.
    let _own = guard.nested(mm, entry, Level::Pte);
    let table = Table::map(mm.memory(), &rcu, entry.pfn(), Level::Pte);
    judge(&mut table.slots().iter().map(EntrySlot::load))?;
    pmd.swap(Entry::NONE);
    // As of a freed table: no CPU may walk the table any more, lazy ones included. The slot may point to another table soon.
    let range = span_of::<M::Mode>(Level::Pmd, address);
    tlb::flush_and_sync(mm, TlbFlush { range, stride: Level::Pte, freed_tables: true, top_changed: false });
    if sabotaged!("sleep-under-lock") {
        rcu::synchronize(mm.memory().rcu(), mm.machine());
    }
    Ok(Some(Unhooked { pfn: entry.pfn() }))
}

impl Unhooked {
    /// Takes every entry out, in order, and hands it to `take`. A grace period has passed since the table was unhooked, so
    /// nobody sees it half empty.
    pub(crate) fn empty<M: Machine>(&self, mm: &Mm<M>, mut take: impl FnMut(u64, Entry)) {
        let table = Table::map_private(mm.memory(), self.pfn, Level::Pte);
        for (number, slot) in (0..).zip(table.slots()) {
            take(number, slot.swap(Entry::NONE));
        }
    }

    /// Installs `huge`, a huge entry, where the table was, and makes the table, which is empty, its deposit.
    pub(crate) fn replace<M: Machine>(self, mm: &Mm<M>, _write: &MmapWrite<'_, M>, address: VirtAddr, huge: Entry) {
        let rcu = rcu::read_lock(mm.machine());
        let Some(pmds) = pmd_offset(mm, &rcu, address) else {
            unreachable!("a PMD table goes only under `mmap_lock`, which is held")
        };
        let pmd = pmds.slot(address);
        let guard = pmd_lock(mm, pmd);
        // A linked table before, a deposited one now: `pgtables_bytes` stays (I7).
        deposit(mm, pmd, &guard, UnpublishedTable::adopt(mm.memory(), self.pfn, Level::Pte));
        pmd.fill(&guard, huge);
    }
}
