//! Visiting every leaf slot of a range, and unhooking tables nothing reaches into any more.
//!
//! Rules kept: a slot of the range is judged under its own lock, none slots included, after its region was marked detached.
//! A fault that still believes in the region has stored already, and is seen here, or will recheck under the same lock and
//! give up. A table is unhooked under its parent's lock and its own, marked detached, and then belongs to the gather (I2,
//! I10); nobody waits for a PMD lock while holding a PTE lock (I22).

use super::bad::entry_or_clear_bad;
use super::lockptr::lock_table_of;
use super::reclaim::unlink;
use super::{HugeLocked, Level, PagingMode, PteLocked, Slot, Table, pte_offset_map_lock};
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

/// A leaf slot of a range, with its table's lock held.
pub(crate) enum Leaf<'l, 'm, 't, M: Machine> {
    /// A PTE, present or not.
    Pte(&'l PteLocked<'m, M>),
    /// A huge entry; all it translates lies in the range.
    Huge(&'l HugeLocked<'m, 't, M>),
}

/// Calls `visit` for each PTE slot of `range` that has a table and each huge entry in it, under the slot's lock, and returns
/// the address to go on from if `visit` broke off (that slot has been visited), else the range's end. A huge page that
/// reaches out of the range is split first. Takes and drops one lock a table.
pub(crate) fn for_each_leaf<M: Machine>(
    mm: &Mm<M>,
    _write: &MmapWrite<'_, M>,
    range: VirtRange,
    mut visit: impl FnMut(VirtAddr, Leaf<'_, '_, '_, M>) -> ControlFlow<()>,
) -> VirtAddr {
    let mut address = range.start;
    while address < range.end {
        let rcu = rcu::read_lock(mm.machine());
        let (table, entry) = lowest_table_of(mm, &rcu, address, Regions::Detached);
        let slot = table.slot(address);
        let end = entry_end::<M>(table.level(), address, range.end);
        if entry.is_huge() {
            // None: it was split meanwhile. Look again; so after a split of our own.
            if let Some(huge) = HugeLocked::lock(mm, slot, address).and_then(|huge| huge.inside(range)) {
                address = end;
                if visit(huge.span().start, Leaf::Huge(&huge)).is_break() {
                    return address;
                }
            }
            continue;
        }
        if table.level() != Level::Pmd || !entry.is_table() {
            address = end;
            continue;
        }
        // None: the table went meanwhile. Look again.
        let Some(mut pte) = pte_offset_map_lock(mm, slot, address) else { continue };
        while address < end {
            pte.move_to(address);
            let flow = visit(address, Leaf::Pte(&pte));
            address = VirtAddr(address.0 + PAGE_SIZE as u64);
            if flow.is_break() {
                return address;
            }
        }
    }
    range.end
}

/// The PMD table for `address`, or the table above it whose entry for it is no pointer to a table; and that entry, if it is
/// none as `regions` wants it judged.
pub(super) fn lowest_table_of<'r, M: Machine>(
    mm: &'r Mm<M>,
    rcu: &'r RcuRead<M>,
    address: VirtAddr,
    regions: Regions,
) -> (Table<'r, M>, Entry) {
    let mut table = Table::top(mm);
    loop {
        let level = table.level();
        let entry = regions.look(mm, table.slot(address));
        match M::Mode::below(level) {
            Some(below) if level != Level::Pmd && entry.is_table() => {
                table = Table::map(mm.memory(), rcu, entry.pfn(), below);
            }
            _ => return (table, entry),
        }
    }
}

/// The PMD table for `address`, or the level of the table above it whose entry for it is no pointer to a table.
pub(crate) fn pmd_table_of<'r, M: Machine>(
    mm: &'r Mm<M>,
    rcu: &'r RcuRead<M>,
    address: VirtAddr,
    regions: Regions,
) -> Result<Table<'r, M>, Level> {
    let (table, _) = lowest_table_of(mm, rcu, address, regions);
    if table.level() == Level::Pmd { Ok(table) } else { Err(table.level()) }
}

impl Regions {
    /// The entry of `slot`, a bad one cleared. Of detached regions a none entry is read again under the slot's lock: no fault of
    /// theirs can fill it afterwards (R41).
    pub(crate) fn look<M: Machine>(self, mm: &Mm<M>, slot: Slot<'_, M>) -> Entry {
        let entry = entry_or_clear_bad(mm.machine(), slot);
        if !entry.is_none() || self == Self::Kept || sabotaged!("none-unlocked") {
            return entry;
        }
        let _guard = lock_table_of(mm, slot);
        entry_or_clear_bad(mm.machine(), slot)
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
            if bounds.start <= address && address.0 + span <= bounds.end.0 || sabotaged!("floor-and-ceiling") {
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
        let _own = parent.nested(mm, entry, level).filter(|_| !sabotaged!("unlock-early"));
        unlink(mm, slot, entry, level);
        entry
    };
    gather.free_tlb(level, entry.pfn(), address);
}
