//! Which lock protects which entry (spec 2.1), and the guards that prove it is held.
//!
//! | entry lives in | single lock | split PTE | split PTE + PMD |
//! | --- | --- | --- | --- |
//! | PTE table | `page_table_lock` | the table's | the table's |
//! | PMD table | `page_table_lock` | `page_table_lock` | the table's |
//! | above | `page_table_lock` | `page_table_lock` | `page_table_lock` |
//!
//! Order: PMD lock outer, PTE lock inner (I22). Where two names may mean one lock, [`PtlGuard::nested`] compares before it
//! takes the second, and the guard it does not make is not released either.

use super::ptlock::{PtlGuard, ptl};
use super::{Entry, HugeSize, Level, PteMap, Slot};
use crate::address_space::Mm;
use crate::config::{USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use crate::machine::Machine;
use crate::sync::{LockClass, Nesting};

const fn class_of(level: Level) -> LockClass {
    match level {
        Level::Pte => LockClass::Pte,
        Level::Pmd => LockClass::Pmd,
        _ => LockClass::PageTable,
    }
}

/// The lock of the PTE table that `pmd`, a stable table pointer, names: the lock of the *child*.
pub fn pte_lockptr<M: Machine>(mm: &Mm<M>, pmd: Entry) -> &M::Lock {
    let has_own = USE_SPLIT_PTE_PTLOCKS && !sabotaged!("pte-lockptr");
    if has_own { ptl(mm.memory().memmap().page(pmd.pfn())) } else { mm.page_table_lock().lock() }
}

/// The lock of the PMD table that *contains* `pmd`.
pub fn pmd_lockptr<'m, M: Machine>(mm: &'m Mm<M>, pmd: Slot<'_, M>) -> &'m M::Lock {
    debug_assert_eq!(pmd.table().level(), Level::Pmd);
    if USE_SPLIT_PMD_PTLOCKS && !sabotaged!("lockptr") { ptl(pmd.table().page()) } else { mm.page_table_lock().lock() }
}

/// Takes the PMD lock of `pmd`.
#[track_caller]
pub fn pmd_lock<'m, M: Machine>(mm: &'m Mm<M>, pmd: Slot<'_, M>) -> PtlGuard<'m, M> {
    PtlGuard::lock(mm.machine(), pmd_lockptr(mm, pmd), class_of(Level::Pmd))
}

/// Takes a PTE lock that a lookup has returned (`pte_offset_map_rw_nolock`) too, which by the caller's own order comes
/// after `first`; `None` if that is the same lock, which is then neither taken nor released again.
#[track_caller]
pub fn pte_lock_second<'l, M: Machine>(first: &PtlGuard<'_, M>, lock: &'l M::Lock) -> Option<PtlGuard<'l, M>> {
    first.lock_second(lock, class_of(Level::Pte), Nesting::SingleDepth)
}

/// Takes the PMD lock of `pmd` under a PTE lock if it is free (I22). Fails too if that is the same lock (spec 2.1).
#[track_caller]
pub fn pmd_trylock<'m, M: Machine>(
    under: &PtlGuard<'_, M>,
    mm: &'m Mm<M>,
    pmd: Slot<'_, M>,
) -> Option<PtlGuard<'m, M>> {
    under.try_lock_second(pmd_lockptr(mm, pmd), class_of(Level::Pmd))
}

/// The lock of the PTE table that is mapped, by the slot: that of the *containing* table, as for [`pmd_lockptr`].
pub fn ptep_lockptr<'m, M: Machine>(mm: &'m Mm<M>, pte: &PteMap<'m, M>) -> &'m M::Lock {
    if USE_SPLIT_PTE_PTLOCKS { ptl(pte.slot().table().page()) } else { mm.page_table_lock().lock() }
}

/// The lock of the levels above the PMD: always `mm->page_table_lock`.
pub fn pud_lockptr<'m, M: Machine>(mm: &'m Mm<M>, pud: Slot<'_, M>) -> &'m M::Lock {
    debug_assert!(pud.table().level() > Level::Pmd);
    mm.page_table_lock().lock()
}

/// Takes the lock of the levels above the PMD (`pud_lock`): always `mm->page_table_lock`.
#[track_caller]
pub fn pud_lock<M: Machine>(mm: &Mm<M>) -> PtlGuard<'_, M> {
    PtlGuard::lock(mm.machine(), mm.page_table_lock().lock(), class_of(Level::Pud))
}

/// The lock of an explicit huge entry of `size`: what a walker of the core takes for the table that holds `slot`
/// (`huge_pte_lockptr`, spec 10). 2 MiB: the PMD lock. 1 GiB: `page_table_lock`.
pub fn huge_pte_lockptr<'m, M: Machine>(mm: &'m Mm<M>, size: HugeSize, slot: Slot<'_, M>) -> &'m M::Lock {
    debug_assert_eq!(slot.table().level(), size.level());
    match size {
        HugeSize::Pmd => pmd_lockptr(mm, slot),
        HugeSize::Pud => mm.page_table_lock().lock(),
    }
}

/// Takes the lock of [`huge_pte_lockptr`].
#[track_caller]
pub fn huge_pte_lock<'m, M: Machine>(mm: &'m Mm<M>, size: HugeSize, slot: Slot<'_, M>) -> PtlGuard<'m, M> {
    PtlGuard::lock(mm.machine(), huge_pte_lockptr(mm, size, slot), class_of(size.level()))
}

/// Takes the lock of the table that contains `slot`, whatever its level.
#[track_caller]
pub(super) fn lock_table_of<'m, M: Machine>(mm: &'m Mm<M>, slot: Slot<'_, M>) -> PtlGuard<'m, M> {
    match slot.table().level() {
        Level::Pmd => pmd_lock(mm, slot),
        _ => pud_lock(mm),
    }
}

impl<'m, M: Machine> PtlGuard<'m, M> {
    /// Takes the lock of the PTE table `pmd` names.
    #[track_caller]
    pub(super) fn pte(mm: &'m Mm<M>, pmd: Entry) -> Self {
        Self::pte_lock(mm.machine(), pte_lockptr(mm, pmd))
    }

    /// Takes `lock`, which a lookup has named as that of a PTE table.
    #[track_caller]
    pub(super) fn pte_lock(machine: M, lock: &'m M::Lock) -> Self {
        Self::lock(machine, lock, class_of(Level::Pte))
    }

    /// Takes, inside this PMD lock, the lock of the table of `level` that `entry` names; `None` when it is the same lock
    /// or that level has none of its own.
    #[track_caller]
    pub(super) fn nested(&self, mm: &'m Mm<M>, entry: Entry, level: Level) -> Option<Self> {
        let lock = match level {
            Level::Pte => pte_lockptr(mm, entry),
            Level::Pmd if USE_SPLIT_PMD_PTLOCKS => ptl(mm.memory().memmap().page(entry.pfn())),
            _ => return None,
        };
        self.lock_second(lock, class_of(level), Nesting::Plain)
    }
}
