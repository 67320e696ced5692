//! Leak accounting: what the kernel owns must be the same before and after each test.
//!
//! Whoever owns a resource registers a [`Counter`] with [`counter!`], and, if it gives things back late (a
//! per-CPU list, a grace period), a settler with [`settler!`] that brings the count to rest. Rule: a test after
//! which a counter differs has leaked, and fails.

use alloc::vec::Vec;

use linkme::distributed_slice;

/// A number that every test must leave as it found it.
pub struct Counter {
    /// What is counted, as shown when it differs.
    pub name: &'static str,
    /// Reads it. Called while no test runs; idle CPUs go on with what they do when idle.
    pub read: fn() -> u64,
}

/// Every counter of this kernel.
#[distributed_slice]
pub static COUNTERS: [Counter];

/// Functions that bring the counters to rest; run before they are read.
#[distributed_slice]
pub static SETTLERS: [fn()];

/// Registers a counter: `counter!("frames free", frames_free);` with a `fn() -> u64`.
macro_rules! counter {
    ($name:literal, $read:expr) => {
        const _: () = {
            #[::linkme::distributed_slice($crate::harness::books::COUNTERS)]
            static COUNTER: $crate::harness::books::Counter =
                $crate::harness::books::Counter { name: $name, read: $read };
        };
    };
}

/// Registers a settler: `settler!(drain_lists);` with a `fn()`.
macro_rules! settler {
    ($settle:expr) => {
        const _: () = {
            #[::linkme::distributed_slice($crate::harness::books::SETTLERS)]
            static SETTLER: fn() = $settle;
        };
    };
}

#[allow(unused_imports, reason = "modules join as they are written")]
pub(crate) use {counter, settler};

/// The counters at one moment.
pub struct Books(Vec<u64>);

impl Books {
    /// Settles and reads every counter.
    pub fn open() -> Self {
        settle();
        let mut values = Vec::with_capacity(COUNTERS.len());
        values.extend(COUNTERS.iter().map(|counter| (counter.read)()));
        Self(values)
    }

    /// Settles, reads every counter again and shows those that differ: name, value before, value now. Returns whether
    /// none does.
    pub fn balance(&self, mut show: impl FnMut(&str, u64, u64)) -> bool {
        settle();
        let mut balanced = true;
        for (counter, &before) in COUNTERS.iter().zip(&self.0) {
            let now = (counter.read)();
            if now != before {
                show(counter.name, before, now);
                balanced = false;
            }
        }
        balanced
    }
}

fn settle() {
    for settle in SETTLERS {
        settle();
    }
}

mod tests {
    use super::Books;
    use crate::harness::{AtomicCount, TestContext, ktest, ktest_assert, ktest_assert_eq};
    use core::sync::atomic::Ordering;

    static OWNED: AtomicCount = AtomicCount::new(0);
    static LATE: AtomicCount = AtomicCount::new(0);

    counter!("test things owned", || OWNED.load(Ordering::Relaxed));
    settler!(|| {
        OWNED.fetch_sub(LATE.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    });

    ktest! {
        /// A counter that differs is named with both values; one that was settled in time is not.
        fn a_leak_is_named(_t: &TestContext) {
            let books = Books::open();
            OWNED.store(3, Ordering::Relaxed);
            LATE.store(1, Ordering::Relaxed);
            let mut leaks = [("", 0, 0); 2];
            let mut found = leaks.iter_mut();
            let balanced = books.balance(|name, before, now| {
                if let (Some(leak), true) = (found.next(), name == "test things owned") {
                    *leak = ("test things owned", before, now);
                }
            });
            ktest_assert!(!balanced);
            ktest_assert_eq!(leaks, [("test things owned", 0, 2), ("", 0, 0)]);
            LATE.store(2, Ordering::Relaxed);
            ktest_assert!(books.balance(|_, _, _| ()), "the books do not balance after everything was given back");
        }
    }
}
