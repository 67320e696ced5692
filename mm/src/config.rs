//! Compile-time configuration in one place (spec 2.1). Nothing else in the crate decides what a build contains.

/// CPUs the per-CPU arrays have room for; CPU numbers are below it.
pub const NR_CPUS: usize = if cfg!(loom) { 3 } else { 64 };

/// Page-table locks are split when [`NR_CPUS`] reaches this. The single-lock build sets it out of reach.
pub const SPLIT_PTLOCK_CPUS: usize = if cfg!(feature = "single-lock") {
    999_999
} else if cfg!(loom) {
    2
} else {
    4
};

/// Whether the architecture lets PMD tables carry their own lock; x86 does in every mode built here.
pub const ARCH_ENABLE_SPLIT_PMD_PTLOCK: bool = true;

/// Each PTE table has its own lock (configurations B and C).
pub const USE_SPLIT_PTE_PTLOCKS: bool = NR_CPUS >= SPLIT_PTLOCK_CPUS;

/// Each PMD table has its own lock (configuration C). Never without [`USE_SPLIT_PTE_PTLOCKS`].
pub const USE_SPLIT_PMD_PTLOCKS: bool = USE_SPLIT_PTE_PTLOCKS && ARCH_ENABLE_SPLIT_PMD_PTLOCK;

/// Bytes in a page frame.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

const _: () = assert!(NR_CPUS <= 64, "a CpuMask is one 64-bit word");
