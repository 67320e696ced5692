//! The only place that names atomic types: `core`'s, or `loom`'s under `cfg(loom)`, where the model checker owns every
//! access. Protocol state uses these; plain statistics use [`core::sync::atomic`] through `stats`.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
