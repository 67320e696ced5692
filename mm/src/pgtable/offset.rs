//! `pte_offset_map` and its family: from a PMD slot to a PTE, mapped and, if asked, locked (spec 1).
//!
//! Rules kept: the PTE comes from one snapshot of the PMD, never from a second read (1.3). After the lock is taken the slot
//! is compared with the snapshot, and since unhooking a table needs that same lock, the guard pins the table (I16). Lock
//! and table come from the same snapshot, so they match (I17). A failed lookup leaves no read section behind (I18); unlock
//! comes before the section's end (I19, the order of fields below).

use super::bad::entry_or_clear_bad;
use super::ptlock::PtlGuard;
use super::{Entry, Level, PagingMode, Slot, Table, pmd_same};
use crate::address::VirtAddr;
use crate::address_space::Mm;
use crate::machine::Machine;
use crate::sync::rcu::{self, RcuRead};

/// A PTE mapped for reading. Holds a read section: the table's frame stays, though it may be unhooked and its entries may
/// change. Dropping it is [`pte_unmap`].
pub struct PteMap<'m, M: Machine> {
    // Dropped in this order: unmap first, then the read section that kept the frame.
    table: Table<'m, M>,
    _rcu: RcuRead<M>,
    snapshot: Entry,
    address: VirtAddr,
}

impl<M: Machine> PteMap<'_, M> {
    /// The entry at one instant.
    pub fn load(&self) -> Entry {
        self.slot().load()
    }

    /// The PMD value the map was made from.
    pub fn pmd(&self) -> Entry {
        self.snapshot
    }

    pub(super) fn slot(&self) -> Slot<'_, M> {
        self.table.slot(self.address)
    }

    /// Fills a none entry. The caller holds the table's lock, here and below.
    pub(super) fn set(&self, entry: Entry) {
        debug_assert!(self.load().is_none(), "a present entry is replaced by exchange (I35)");
        self.slot().store(entry);
    }

    /// See [`PteLocked::update`].
    pub(super) fn update(&self, change: impl Fn(Entry) -> Entry) -> (Entry, Entry) {
        self.slot().update(change)
    }

    /// Turns to another address of the same table.
    pub(super) fn move_to(&mut self, address: VirtAddr) {
        self.address = address;
    }

    /// In debug builds, fails unless the table's constructor has run and its destructor has not (I11, R5).
    pub(super) fn assert_constructed(&self) {
        self.table.assert_constructed();
    }
}

/// Ends a [`pte_offset_map`]: unmaps, then leaves the read section.
pub fn pte_unmap<M: Machine>(map: PteMap<'_, M>) {
    drop(map);
}

/// A PTE table mapped and locked. While it lives the table stays where it is and only its holder stores to it.
/// Dropping it is [`pte_unmap_unlock`].
pub struct PteLocked<'m, M: Machine> {
    // Dropped in this order: unlock first, then the read section (I19).
    guard: PtlGuard<'m, M>,
    map: PteMap<'m, M>,
}

impl<'m, M: Machine> PteLocked<'m, M> {
    /// `guard` is of the lock of the table in `map`, and the caller has proved or is about to prove it attached.
    pub(super) fn new(guard: PtlGuard<'m, M>, map: PteMap<'m, M>) -> Self {
        Self { guard, map }
    }

    /// The held lock, to take a second one beside it ([`super::pte_lock_second`]).
    pub fn guard(&self) -> &PtlGuard<'_, M> {
        &self.guard
    }

    /// The PMD value that names the locked table; the slot holds it as long as this lives (I16).
    pub fn pmd(&self) -> Entry {
        self.map.snapshot
    }

    /// The entry of the address the lookup was made for.
    pub fn load(&self) -> Entry {
        self.map.load()
    }

    /// Fills a none entry.
    pub(crate) fn set(&self, entry: Entry) {
        self.map.set(entry);
    }

    /// Takes the entry out, with the A and D bits a walker has set until now (I35).
    pub(crate) fn clear(&self) -> Entry {
        if sabotaged!("dirty-exchange") {
            let entry = self.load();
            self.map.slot().store(Entry::NONE);
            return entry;
        }
        self.map.slot().swap(Entry::NONE)
    }

    /// Changes a present entry to another for the same page, and returns the old and the new one. Walkers may set A and D
    /// meanwhile, so it is retried until nothing came between.
    pub(crate) fn update(&self, change: impl Fn(Entry) -> Entry) -> (Entry, Entry) {
        self.map.update(change)
    }

    /// Whether somebody waits for the lock in its queue.
    pub(super) fn is_contended(&self) -> bool {
        self.guard.is_contended()
    }

    /// Turns to another address of the same table; the lock stays held.
    pub(crate) fn move_to(&mut self, address: VirtAddr) {
        self.map.move_to(address);
    }
}

/// Ends a [`pte_offset_map_lock`]: unlocks, then unmaps and leaves the read section.
pub fn pte_unmap_unlock<M: Machine>(locked: PteLocked<'_, M>) {
    drop(locked);
}

/// Maps the PTE of `address` below `pmd`. `None` when the slot is none, huge, just being changed, or bad; a bad entry is
/// reported and cleared. Takes no lock; the entry may change at once, and the table may be unhooked.
pub fn pte_offset_map<'m, M: Machine>(mm: &'m Mm<M>, pmd: Slot<'_, M>, address: VirtAddr) -> Option<PteMap<'m, M>> {
    let rcu = rcu::read_lock(mm.machine());
    let snapshot = entry_or_clear_bad(mm.machine(), pmd);
    if !snapshot.is_table() {
        return None;
    }
    // The lifetime is the address space's, but the read section in the same value is what keeps the frame.
    let table = Table::map_private(mm.memory(), snapshot.pfn(), Level::Pte);
    Some(PteMap { table, _rcu: rcu, snapshot, address })
}

/// Maps and locks the PTE of `address` below `pmd`. `None` as for [`pte_offset_map`], possibly after retries.
/// Takes the PTE lock.
#[track_caller]
pub fn pte_offset_map_lock<'m, M: Machine>(
    mm: &'m Mm<M>,
    pmd: Slot<'_, M>,
    address: VirtAddr,
) -> Option<PteLocked<'m, M>> {
    loop {
        let map = pte_offset_map(mm, pmd, address)?;
        let guard = PtlGuard::pte(mm, map.snapshot);
        if pmd_same(pmd.load(), map.snapshot) || sabotaged!("pmd-recheck") {
            map.assert_constructed();
            return Some(PteLocked::new(guard, map));
        }
        // The slot moved on between snapshot and lock (R3): this table may be unhooked. Let go of it and look again.
    }
}

/// The PMD table for `address`, if it is an address of the user half and all tables above exist and hold table pointers
/// (`pmd_offset`). Takes no lock.
pub fn pmd_offset<'r, M: Machine>(mm: &'r Mm<M>, rcu: &'r RcuRead<M>, address: VirtAddr) -> Option<Table<'r, M>> {
    if address >= M::Mode::USER_END {
        // The kernel's entries are no business of `mm`'s: it would take them for bad ones.
        return None;
    }
    let mut table = Table::top(mm);
    while table.level() != Level::Pmd {
        let entry = entry_or_clear_bad(mm.machine(), table.slot(address));
        let below = M::Mode::below(table.level()).filter(|_| entry.is_table())?;
        table = Table::map(mm.memory(), rcu, entry.pfn(), below);
    }
    Some(table)
}

/// The PTE of `address` at one instant, `None` where no PTE table is. Takes no lock; for oracles and reports.
pub fn pte_at<M: Machine>(mm: &Mm<M>, address: VirtAddr) -> Option<Entry> {
    let rcu = rcu::read_lock(mm.machine());
    let pmd_table = pmd_offset(mm, &rcu, address)?;
    Some(pte_offset_map(mm, pmd_table.slot(address), address)?.load())
}

#[cfg(all(test, not(loom)))]
mod tests;
