//! Visiting every PTE slot of a range, and unhooking tables nothing reaches into any more.
//!
//! Rules kept: a slot of the range is judged under its own lock, none slots included, after its region was marked detached.
//! A fault that still believes in the region has stored already, and is seen here, or will recheck under the same lock and
//! give up. A table is unhooked under its parent's lock and its own, marked detached, and then belongs to the gather (I2,
//! I10); nobody waits for a PMD lock while holding a PTE lock (I22).

use super::lockptr::lock_table_of;
use super::reclaim::unlink;
use super::{Level, PagingMode, PteLocked, Slot, Table, pte_offset_map_lock};
use crate::address::{VirtAddr, VirtRange};
use crate::address_space::{Mm, MmapWrite};
use crate::config::PAGE_SIZE;
use crate::gather::MmuGather;
use crate::machine::Machine;
use crate::pgtable::Entry;
use crate::sync::rcu::{self, RcuRead};
use core::ops::ControlFlow;

/// What becomes of the regions of a range whose slots are visited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Regions {
    /// They are detached: none slots are judged under their lock too. The holder of `mmap_lock` for writing says so.
    Detached,
    /// They stay, and faults go on filling slots.
    Kept,
}

/// Calls `visit` for each PTE slot of `range` that has a table, under the slot's lock, and returns the address to go on
/// from if `visit` broke off (that slot has been visited), else the range's end. Takes and drops one PTE lock a table.
pub(crate) fn for_each_pte<M: Machine>(
    mm: &Mm<M>,
    _write: &MmapWrite<'_, M>,
    range: VirtRange,
    mut visit: impl FnMut(VirtAddr, &PteLocked<'_, M>) -> ControlFlow<()>,
) -> VirtAddr {
    let mut address = range.start;
    while address < range.end {
        let rcu = rcu::read_lock(mm.machine());
        let pmd_table = match pmd_table_of(mm, &rcu, address, Regions::Detached) {
            Ok(table) => table,
            Err(hole) => {
                address = entry_end::<M>(hole, address, range.end);
                continue;
            }
        };
        let pmd = pmd_table.slot(address);
        let end = entry_end::<M>(Level::Pmd, address, range.end);
        if Regions::Detached.look(mm, pmd).is_none() {
            address = end;
            continue;
        }
        // None here is an entry that is no table pointer; there is nothing below it to visit.
        let Some(mut pte) = pte_offset_map_lock(mm, pmd, address) else {
            address = end;
            continue;
        };
        while address < end {
            pte.move_to(address);
            let flow = visit(address, &pte);
            address = VirtAddr(address.0 + PAGE_SIZE as u64);
            if flow.is_break() {
                return address;
            }
        }
    }
    range.end
}

/// The PMD table for `address`, or the level of the table whose entry for it is none, as `regions` wants it judged.
pub(crate) fn pmd_table_of<'r, M: Machine>(
    mm: &'r Mm<M>,
    rcu: &'r RcuRead<M>,
    address: VirtAddr,
    regions: Regions,
) -> Result<Table<'r, M>, Level> {
    let mut table = Table::top(mm);
    while table.level() != Level::Pmd {
        let level = table.level();
        let entry = regions.look(mm, table.slot(address));
        let Some(below) = M::Mode::below(level).filter(|_| entry.is_table()) else {
            return Err(level);
        };
        table = Table::map(mm.memory(), rcu, entry.pfn(), below);
    }
    Ok(table)
}

impl Regions {
    /// The entry of `slot`. If it looks none and the regions are detached, as it is under the slot's lock, so that no fault
    /// of theirs can fill it afterwards.
    pub(crate) fn look<M: Machine>(self, mm: &Mm<M>, slot: Slot<'_, M>) -> Entry {
        let entry = slot.load();
        if !entry.is_none() || self == Self::Kept {
            return entry;
        }
        let _guard = lock_table_of(mm, slot);
        slot.load()
    }
}

/// First address behind the entry of a table of `level` that translates `address`, but no further than `limit`.
pub(crate) fn entry_end<M: Machine>(level: Level, address: VirtAddr, limit: VirtAddr) -> VirtAddr {
    let span = M::Mode::entry_span(level);
    VirtAddr(((address.0 & !(span - 1)) + span).min(limit.0))
}

/// Unhooks every table that translates part of `range` and nothing outside `bounds`, the free space around it (the floor
/// and ceiling rule of spec 2.4). The range is zapped already.
pub(crate) fn free_pgtables<M: Machine>(
    mm: &Mm<M>,
    _write: &MmapWrite<'_, M>,
    range: VirtRange,
    bounds: VirtRange,
    gather: &mut MmuGather<'_, M>,
) {
    free_below(mm, &Table::top(mm), range, bounds, gather);
}

fn free_below<M: Machine>(
    mm: &Mm<M>,
    table: &Table<'_, M>,
    range: VirtRange,
    bounds: VirtRange,
    gather: &mut MmuGather<'_, M>,
) {
    let Some(below) = M::Mode::below(table.level()) else { return };
    let span = M::Mode::entry_span(table.level());
    let mut address = VirtAddr(range.start.0 & !(span - 1));
    while address < range.end {
        let slot = table.slot(address);
        let entry = slot.load();
        if entry.is_table() {
            if let Some(part) = VirtRange::new(address.0, address.0 + span).and_then(|s| s.intersection(&range)) {
                // The table stays hooked during this: whoever unhooks tables holds `mmap_lock`, at least for reading.
                let child = Table::map_private(mm.memory(), entry.pfn(), below);
                free_below(mm, &child, part, bounds, gather);
            }
            if bounds.start <= address && address.0 + span <= bounds.end.0 {
                unhook(mm, slot, below, address, gather);
            }
        }
        address = VirtAddr(address.0 + span);
    }
}

/// Takes the table of `level` out of `slot`, holding the slot's lock and the table's own.
fn unhook<M: Machine>(mm: &Mm<M>, slot: Slot<'_, M>, level: Level, address: VirtAddr, gather: &mut MmuGather<'_, M>) {
    let entry = {
        let parent = lock_table_of(mm, slot);
        let entry = slot.load();
        let _own = parent.nested(mm, entry, level);
        unlink(mm, slot, entry, level);
        entry
    };
    gather.free_tlb(level, entry.pfn(), address);
}
