//! Page tables: entries, modes, where a table's lock lives, and the helpers that map and lock them.

mod alloc;
mod bad;
mod collapse;
mod deposit;
mod entry;
#[cfg(all(test, not(loom)))]
mod five_level_tests;
mod huge;
mod install;
mod lockptr;
mod mode;
mod nolock;
mod offset;
#[cfg(all(test, not(loom)))]
mod pae_tests;
mod pgd;
mod ptlock;
mod reclaim;
mod remove;
mod second;
mod slot_pae;
mod table;
mod zap;

pub(crate) use alloc::pagetable_dtor_free;
pub use alloc::{OutOfTables, UnpublishedTable, pmd_alloc_one, pmd_free, pte_alloc_one, pte_free};
pub(crate) use collapse::{Unhooked, unhook_for_collapse};
pub use deposit::deposited_tables;
pub(crate) use deposit::{DepositList, deposit};
pub use entry::{Entry, EntrySlot, Protection, Slot64};
pub(crate) use huge::{HugeLocked, span_of, split_huge_pmd};
pub use huge::{HugeSize, leaf_at};
pub(crate) use install::table_alloc;
pub use install::{TableError, get_locked_pte, pmd_alloc, pmd_install, pte_alloc, pte_alloc_map, pte_alloc_map_lock};
pub use lockptr::{
    huge_pte_lock, huge_pte_lockptr, pmd_lock, pmd_lockptr, pmd_trylock, pte_lock_second, pte_lockptr, ptep_lockptr,
    pud_lock, pud_lockptr,
};
#[cfg(all(any(test, feature = "sim"), not(loom)))]
pub(crate) use mode::shaped_as;
pub use mode::{FiveLevel, FourLevel, Level, Pae, PagingMode, Tiny};
pub use nolock::{PteMapRo, PteMapRw, SeenPte, pmd_same, pte_offset_map_ro_nolock, pte_offset_map_rw_nolock, pte_same};
pub use offset::{
    PteLocked, PteMap, pmd_offset, pte_at, pte_offset_map, pte_offset_map_lock, pte_unmap, pte_unmap_unlock,
};
#[cfg(all(any(test, feature = "sim"), not(loom)))]
pub(crate) use pgd::pgd_layout;
pub(crate) use pgd::{pgd_alloc, pgd_free, pgd_mop_up};
pub use pgd::{pgtable_cache_init, pgtable_init};
pub use ptlock::{PageTableLock, PtlGuard, PtlStorage, ptlock_cache_init};
pub(crate) use remove::{Leaf, Regions, entry_end, for_each_leaf, free_pgtables, pmd_table_of};
pub(crate) use second::{PteSecond, pte_offset_map_lock_second};
pub use slot_pae::SlotPae;
pub use table::{Slot, Table};
pub(crate) use zap::unmap_page_range;
