//! The only place that names atomic types: `core`'s, or `loom`'s under `cfg(loom)`, where the model checker owns every
//! access. Protocol state uses these; what no protocol reads uses [`plain`].

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// `core`'s atomics even under the model checker: for counts, for reports, and for state that only its own CPU reads.
pub mod plain {
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, compiler_fence};
}

/// Declares a constructor without arguments that works in the initialiser of a `static`, except under the model checker,
/// whose atomics are made at run time only.
macro_rules! const_new {
    ($(#[$about:meta])* $visibility:vis fn new() -> Self $body:block) => {
        $(#[$about])*
        #[cfg(not(loom))]
        $visibility const fn new() -> Self $body

        $(#[$about])*
        #[cfg(loom)]
        $visibility fn new() -> Self $body
    };
}

/// An array of `count` values made by `value` each; constant where [`const_new`] is.
#[cfg(not(loom))]
macro_rules! array_of {
    ($value:expr; $count:expr) => {
        [const { $value }; $count]
    };
}
#[cfg(loom)]
macro_rules! array_of {
    ($value:expr; $count:expr) => {
        core::array::from_fn::<_, { $count }, _>(|_| $value)
    };
}

pub(crate) use {array_of, const_new};
