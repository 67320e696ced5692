//! The only place that names atomic types: `core`'s; `loom`'s under `cfg(loom)`, where the model checker owns every access;
//! those of `scheduled` under `cfg(shuttle)`, where a seed decides which task runs. Protocol state uses these; what no
//! protocol reads uses [`plain`].
//!
//! It is also the only place that knows the size of a word. A machine of 32 bits has no 64-bit atomic that costs one access, so
//! what is shared by every machine is made of words: see [`is_older`] for numbers that grow for ever, and
//! [`plain::Solo64`] for counts.

#[cfg(all(not(any(loom, shuttle)), target_has_atomic = "64"))]
pub use core::sync::atomic::AtomicU64;
#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(shuttle)]
pub use scheduled::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(shuttle)]
pub mod scheduled;

/// `core`'s atomics even under the model checker: for counts, for reports, and for state that only its own CPU reads.
pub mod plain {
    #[cfg(target_pointer_width = "32")]
    pub use super::halves::Solo64;
    #[cfg(target_pointer_width = "64")]
    pub use super::whole::Solo64;
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, compiler_fence};
}

#[cfg(any(target_pointer_width = "32", all(test, not(loom))))]
mod halves;

#[cfg(target_pointer_width = "64")]
mod whole {
    use core::sync::atomic::{AtomicU64, Ordering};

    /// A number that one writer at a time changes and anybody may read. A reader may be behind; where words are small it may,
    /// while a growing number changes, also get one between the old and the new, or one of another time if it shrinks.
    #[derive(Debug)]
    pub struct Solo64(AtomicU64);

    impl Solo64 {
        /// `value` at first.
        pub const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        /// The number.
        pub fn get(&self) -> u64 {
            // Relaxed, here and below: the number publishes nothing.
            self.0.load(Ordering::Relaxed)
        }

        /// Changes it. No other writer is at work.
        pub fn set(&self, value: u64) {
            self.0.store(value, Ordering::Relaxed);
        }
    }
}

/// Whether `number` was counted before `other`. Numbers that grow for ever come round where words are small: this is right as
/// long as the two are less than half a round apart.
pub(crate) const fn is_older(number: usize, other: usize) -> bool {
    (number.wrapping_sub(other) as isize) < 0
}

/// Half of the half round in which [`is_older`] is right: who may fall behind without limit is brought up to date each time a
/// number is a multiple of this.
pub(crate) const REFRESH: usize = 1 << (usize::BITS - 2);

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
