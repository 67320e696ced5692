//! Compile-time configuration in one place (spec 2.1). Nothing else in the crate decides what a build contains.
//!
//! | features | configuration | lock of a PTE table | lock of a PMD table |
//! | --- | --- | --- | --- |
//! | `single-lock` | A | `page_table_lock` | `page_table_lock` |
//! | `split-pte` | B | its own | `page_table_lock` |
//! | neither | C | its own | its own |
//!
//! `debug-locks` goes with each.

#[cfg(all(feature = "single-lock", feature = "split-pte"))]
compile_error!("features `single-lock` and `split-pte` contradict each other: a build has one place for its locks");

/// CPUs the per-CPU arrays have room for; CPU numbers are below it.
pub const NR_CPUS: usize = if cfg!(loom) {
    3
} else if cfg!(shuttle) {
    4
} else {
    64
};

/// Page-table locks are split when [`NR_CPUS`] reaches this. The single-lock build sets it out of reach.
pub const SPLIT_PTLOCK_CPUS: usize = if cfg!(feature = "single-lock") {
    999_999
} else if cfg!(loom) {
    2
} else {
    4
};

/// Whether PMD tables may carry their own lock. x86 allows it in every mode built here; `split-pte` stands for an
/// architecture that does not.
pub const ARCH_ENABLE_SPLIT_PMD_PTLOCK: bool = !cfg!(feature = "split-pte");

/// Each PTE table has its own lock (configurations B and C).
pub const USE_SPLIT_PTE_PTLOCKS: bool = NR_CPUS >= SPLIT_PTLOCK_CPUS;

/// Each PMD table has its own lock (configuration C). Never without [`USE_SPLIT_PTE_PTLOCKS`].
pub const USE_SPLIT_PMD_PTLOCKS: bool = USE_SPLIT_PTE_PTLOCKS && ARCH_ENABLE_SPLIT_PMD_PTLOCK;

/// Every lock of the build is a [`DebugLock`](crate::sync::debug::DebugLock), which is larger than a word.
pub const DEBUG_SPINLOCK: bool = cfg!(all(feature = "debug-locks", not(loom)));

/// The order in which a CPU takes locks, and what it does while it holds one, are checked
/// ([`sync::order`](crate::sync::order)). A debug build checks without `debug-locks` too.
pub const CHECK_LOCK_ORDER: bool = DEBUG_SPINLOCK || cfg!(debug_assertions);

/// Whether a lock of type `L` is too large for `page->ptl`, which then points to it (spec 4.2).
pub const fn alloc_split_ptlocks<L>() -> bool {
    // The model checker's atomics have a size of their own; its locks live in the descriptor.
    !cfg!(loom) && size_of::<L>() > size_of::<usize>()
}

/// Whether this build's locks are too large for `page->ptl`.
pub const ALLOC_SPLIT_PTLOCKS: bool = alloc_split_ptlocks::<crate::sync::BuildLock>();

/// The build's locks in logs and reports; `cargo xtask` calls it so too.
pub const CONFIG_NAME: &str = match (USE_SPLIT_PTE_PTLOCKS, USE_SPLIT_PMD_PTLOCKS, DEBUG_SPINLOCK) {
    (true, true, false) => "split",
    (true, false, false) => "split-pte",
    (false, _, false) => "single",
    (true, true, true) => "split+debug",
    (true, false, true) => "split-pte+debug",
    (false, _, true) => "single+debug",
};

/// Bytes in a page frame.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

const _: () = assert!(NR_CPUS <= 64, "a CpuSet is one 64-bit word");
const _: () = assert!(USE_SPLIT_PTE_PTLOCKS || !USE_SPLIT_PMD_PTLOCKS, "split PMD locks need split PTE locks");
