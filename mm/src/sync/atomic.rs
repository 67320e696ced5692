//! The only place that names atomic types: `core`'s, or `loom`'s under `cfg(loom)`, where the model checker owns every
//! access. Protocol state uses these; what no protocol reads uses [`plain`].

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// `core`'s atomics even under the model checker: for counts, for reports, and for state that only its own CPU reads.
pub mod plain {
    pub use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, compiler_fence};
}
