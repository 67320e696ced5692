//! Atomics under `cfg(shuttle)`: `core`'s, with a point before each access where the scheduler may let another task run. As
//! large as `core`'s and constant where those are, so that descriptors and tables are what they are in every build.
//!
//! Rule: all tasks share one host thread, so whatever is not separated by a point happens at once, and every access is
//! sequentially consistent. Orders are what the loom models check.

use core::sync::atomic as core_atomic;
pub use core_atomic::{Ordering, fence};
use std::cell::Cell;
use std::time::Duration;

thread_local! {
    /// Whether there are other tasks to let run.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// A point where any other task may run. Nothing while only one task does.
pub fn point() {
    if RUNNING.get() {
        // Shuttle's sleep is no more than that, and unlike its yield it is not a promise that this task can wait.
        shuttle::thread::sleep(Duration::ZERO);
    }
}

/// Has tasks run beside each other, or not, until the returned value is dropped.
pub fn set_running(running: bool) -> Running {
    Running(RUNNING.replace(running))
}

/// What [`set_running`] replaced, and restores.
#[must_use = "dropping it restores what was"]
pub struct Running(bool);

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}

macro_rules! scheduled {
    ($name:ident $(<$parameter:ident>)?, $value:ty, [$($method:ident),*]) => {
        #[doc = concat!("A [`", stringify!($name), "`](core::sync::atomic::", stringify!($name), ") with such points.")]
        #[derive(Debug)]
        #[repr(transparent)]
        pub struct $name $(<$parameter>)? (core_atomic::$name $(<$parameter>)?);

        #[allow(missing_docs)]
        impl $(<$parameter>)? $name $(<$parameter>)? {
            pub const fn new(value: $value) -> Self {
                Self(core_atomic::$name::new(value))
            }

            pub fn load(&self, order: Ordering) -> $value {
                point();
                self.0.load(order)
            }

            pub fn store(&self, value: $value, order: Ordering) {
                point();
                self.0.store(value, order);
            }

            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                point();
                self.0.compare_exchange(current, new, success, failure)
            }

            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                // It never fails for no reason, so that a seed decides everything.
                self.compare_exchange(current, new, success, failure)
            }

            $(
                pub fn $method(&self, value: $value, order: Ordering) -> $value {
                    point();
                    self.0.$method(value, order)
                }
            )*
        }
    };
}

scheduled!(AtomicBool, bool, [swap]);
scheduled!(AtomicU8, u8, [swap, fetch_add, fetch_sub, fetch_and, fetch_or]);
scheduled!(AtomicU32, u32, [swap, fetch_add, fetch_sub, fetch_and, fetch_or]);
scheduled!(AtomicU64, u64, [swap, fetch_add, fetch_sub, fetch_and, fetch_or]);
scheduled!(AtomicUsize, usize, [swap, fetch_add, fetch_sub, fetch_and, fetch_or]);
scheduled!(AtomicPtr<T>, *mut T, [swap]);
