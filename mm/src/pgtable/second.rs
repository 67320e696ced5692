//! A second PTE table mapped and locked beside a first, of the same address space or another: `fork` and `mremap`.
//!
//! Rule: the second lock is taken only if it is another than the first, which is compared before; a guard that is not made
//! is not released, so there is nothing to compare at the second unlock (spec 2.1, I23).

use super::lockptr::{pte_lock_second, pte_lockptr};
use super::{Entry, PteLocked, PteMap, PtlGuard, Slot, pmd_same, pte_offset_map};
use crate::address::VirtAddr;
use crate::address_space::Mm;
use crate::machine::Machine;

/// As [`PteLocked`], under the first table's lock if it is the same. Dropped before the first.
pub(crate) struct PteSecond<'m, M: Machine> {
    // Dropped in this order: unlock first, then the read section (I19).
    _guard: Option<PtlGuard<'m, M>>,
    map: PteMap<'m, M>,
}

impl<M: Machine> PteSecond<'_, M> {
    /// The entry.
    pub(crate) fn load(&self) -> Entry {
        self.map.load()
    }

    /// Fills a none entry.
    pub(crate) fn set(&self, entry: Entry) {
        self.map.set(entry);
    }

    /// See [`PteLocked::update`].
    pub(crate) fn update(&self, change: impl Fn(Entry) -> Entry) -> (Entry, Entry) {
        self.map.update(change)
    }

    /// Turns to another address of the same table; the lock stays held.
    pub(crate) fn move_to(&mut self, address: VirtAddr) {
        self.map.move_to(address);
    }
}

/// As `pte_offset_map_lock`, beside `first`, which by the caller's own order comes first (spec 2.2): fork's destination before
/// its source, mremap's old place before its new one.
#[track_caller]
pub(crate) fn pte_offset_map_lock_second<'m, M: Machine>(
    first: &PteLocked<'_, M>,
    mm: &'m Mm<M>,
    pmd: Slot<'_, M>,
    address: VirtAddr,
) -> Option<PteSecond<'m, M>> {
    loop {
        let map = pte_offset_map(mm, pmd, address)?;
        let guard = pte_lock_second(first.guard(), pte_lockptr(mm, map.pmd()));
        if pmd_same(pmd.load(), map.pmd()) {
            return Some(PteSecond { _guard: guard, map });
        }
    }
}
