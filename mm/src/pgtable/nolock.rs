//! `pte_offset_map_ro_nolock` and `pte_offset_map_rw_nolock`: a PTE with its lock named, not taken (spec 1.6).
//!
//! Rules kept: lock and table come from one snapshot of the PMD, so they match (I17). The table may be unhooked at any
//! moment, before the lock is taken as well as after. So what is mapped read-only has no way to store, locked or not (I20);
//! what is mapped for writing turns into a [`PteLocked`] only by a check under the lock that proves the table attached
//! (I21), and a saved none is no such proof, since an unhooked table is all none (R6): [`SeenPte`] cannot hold it. Only a
//! collapse unhooks a table that is not: whoever compares entries keeps it out.

use super::ptlock::PtlGuard;
use super::{Entry, PteLocked, PteMap, Slot, pte_lockptr, pte_offset_map};
use crate::address::VirtAddr;
use crate::address_space::Mm;
use crate::machine::Machine;

/// Whether two values of a PMD slot are one: the same table, with the same bits.
pub const fn pmd_same(one: Entry, other: Entry) -> bool {
    one.0 == other.0
}

/// Whether two values of a PTE are one.
pub const fn pte_same(one: Entry, other: Entry) -> bool {
    one.0 == other.0
}

/// A PTE that was read without its lock and was not none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenPte(Entry);

impl SeenPte {
    /// `None` for none, which proves nothing.
    pub fn new(pte: Entry) -> Option<Self> {
        (!pte.is_none() || sabotaged!("none-proof")).then_some(Self(pte))
    }

    /// What was seen.
    pub const fn entry(self) -> Entry {
        self.0
    }
}

/// A PTE mapped for reading, and the lock of its table. Holds a read section, so neither is freed.
pub struct PteMapRo<'m, M: Machine> {
    map: PteMap<'m, M>,
    lock: &'m M::Lock,
    machine: M,
}

impl<'m, M: Machine> PteMapRo<'m, M> {
    /// The entry at one instant.
    pub fn load(&self) -> Entry {
        self.map.load()
    }

    /// The lock of the mapped table.
    pub fn lockptr(&self) -> &'m M::Lock {
        self.lock
    }

    /// Takes the PTE lock: from now on nobody stores to the mapped table, which may be unhooked all the same.
    #[track_caller]
    pub fn lock(&self) -> PtlGuard<'_, M> {
        let guard = PtlGuard::pte_lock(self.machine, self.lock);
        self.map.assert_constructed();
        guard
    }
}

/// Maps the PTE of `address` below `pmd` for reading and names its lock; `None` as for [`pte_offset_map`]. Takes no lock.
pub fn pte_offset_map_ro_nolock<'m, M: Machine>(
    mm: &'m Mm<M>,
    pmd: Slot<'_, M>,
    address: VirtAddr,
) -> Option<PteMapRo<'m, M>> {
    let map = pte_offset_map(mm, pmd, address)?;
    let lock = pte_lockptr(mm, map.pmd());
    Some(PteMapRo { map, lock, machine: mm.machine() })
}

/// A PTE mapped for writing, the lock of its table, and the PMD slot it was reached by. Holds a read section. No store is
/// possible before one of the checks below has succeeded.
pub struct PteMapRw<'m, 's, M: Machine> {
    map: PteMap<'m, M>,
    lock: &'m M::Lock,
    pmd: Slot<'s, M>,
    machine: M,
}

impl<'m, M: Machine> PteMapRw<'m, '_, M> {
    /// The entry at one instant.
    pub fn load(&self) -> Entry {
        self.map.load()
    }

    /// The PMD value the map was made from.
    pub fn pmd(&self) -> Entry {
        self.map.pmd()
    }

    /// The lock of the mapped table.
    pub fn lockptr(&self) -> &'m M::Lock {
        self.lock
    }

    /// Takes the PTE lock and compares the PMD slot with its snapshot: if they are the same, the table is attached, and
    /// stays so while the lock is held. Else everything is let go.
    #[track_caller]
    pub fn lock_if_pmd_same(self) -> Option<PteLocked<'m, M>> {
        let (pmd, snapshot) = (self.pmd, self.pmd());
        self.lock_if(|_| pmd_same(pmd.load(), snapshot))
    }

    /// Takes the PTE lock and compares the PTE with what was seen: if they are the same, the table is attached, since only
    /// an empty one is unhooked, and under this lock. Else everything is let go.
    ///
    /// That holds while nobody collapses the region's pages, which unhooks a table with all that is in it (spec 1.6 c). The
    /// caller holds `mmap_lock`, or looks next whether the region [is marked](crate::vma::Vma::is_detached): it is marked before
    /// that, and stays so at least until the read section in this map has ended.
    #[track_caller]
    pub fn lock_if_pte_same(self, seen: SeenPte) -> Option<PteLocked<'m, M>> {
        self.lock_if(|map| pte_same(map.load(), seen.entry()))
    }

    /// Takes the PTE lock if a comparison with any saved value, none included, succeeds: what R6 warns of. For the tests
    /// that show why.
    #[cfg(any(test, loom))]
    #[track_caller]
    pub fn lock_if_same_or_none(self, saved: Entry) -> Option<PteLocked<'m, M>> {
        self.lock_if(|map| pte_same(map.load(), saved))
    }

    #[track_caller]
    fn lock_if(self, proof: impl FnOnce(&PteMap<'m, M>) -> bool) -> Option<PteLocked<'m, M>> {
        let guard = PtlGuard::pte_lock(self.machine, self.lock);
        self.map.assert_constructed();
        if proof(&self.map) || sabotaged!("nolock-recheck") {
            return Some(PteLocked::new(guard, self.map));
        }
        if sabotaged!("section-first") {
            drop(self.map);
        }
        // Unlocks; the section, which is of what was passed in, ends after it (I19).
        None
    }
}

/// Maps the PTE of `address` below `pmd` for writing, names its lock and keeps the PMD value; `None` as for
/// [`pte_offset_map`]. Takes no lock.
pub fn pte_offset_map_rw_nolock<'m, 's, M: Machine>(
    mm: &'m Mm<M>,
    pmd: Slot<'s, M>,
    address: VirtAddr,
) -> Option<PteMapRw<'m, 's, M>> {
    let map = pte_offset_map(mm, pmd, address)?;
    let lock = pte_lockptr(mm, map.pmd());
    Some(PteMapRw { map, lock, pmd, machine: mm.machine() })
}

#[cfg(all(test, not(loom)))]
mod tests;
