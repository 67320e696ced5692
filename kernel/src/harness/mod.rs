//! The in-kernel test harness: tests register themselves at link time, and results leave as KTAP.
//!
//! ```ignore
//! ktest! {
//!     /// A read of untouched anonymous memory finds zeroes.
//!     fn anonymous_read(t: &TestContext) {
//!         let region = map_something()?;
//!         ktest_assert_eq!(region.read(), 0);
//!     }
//! }
//! ```
//!
//! The doc comment is what `cargo xtask test --list` shows; after it, `#[only("PAE")]` says with which page tables the test
//! makes sense. Rule: a test reports through its result or through
//! [`TestContext::check`], never by a panic, so one failure does not cost the tests after it.

pub mod books;
mod context;
mod count;
pub mod deadline;
mod name;
mod random;
mod runner;
mod workload;

pub use context::{Stop, TestContext, TestResult, ktap};
pub use count::AtomicCount;
pub use name::Name;
pub use random::Random;
pub use runner::{Tally, list_tests, run_tests};
pub use workload::{Job, WORKLOADS, Workload, run_workload};

use linkme::distributed_slice;

/// An in-kernel test; made by [`ktest!`].
pub struct Test {
    /// Where it stands in the sources.
    pub name: Name,
    /// What it shows, for a reader.
    pub about: &'static str,
    /// Names of the paging modes it is for; all if none is named.
    pub modes: &'static [&'static str],
    /// Runs it.
    pub run: fn(&TestContext) -> TestResult,
}

/// Every test of this kernel, in no particular order.
#[distributed_slice]
pub static TESTS: [Test];

/// Defines tests. Each is a function of a `&TestContext`, with a doc comment saying what it shows.
macro_rules! ktest {
    ($($(#[doc = $about:literal])+ $(#[only($($mode:literal),+)])? fn $name:ident($context:ident: $type:ty) $body:block)+) => {$(
        $(#[doc = $about])+
        fn $name($context: $type) -> $crate::harness::TestResult {
            $body
            Ok(())
        }
        const _: () = {
            #[::linkme::distributed_slice($crate::harness::TESTS)]
            static TEST: $crate::harness::Test = $crate::harness::Test {
                name: $crate::harness::Name::new(concat!(module_path!(), "::", stringify!($name))),
                about: concat!($($about),+),
                modes: &[$($($mode),+)?],
                run: $name,
            };
        };
    )+};
}

/// Ends the test as failed unless the condition holds. A message may follow, as in `assert!`.
macro_rules! ktest_assert {
    ($condition:expr $(,)?) => {
        $crate::harness::ktest_assert!($condition, "{}", stringify!($condition))
    };
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::harness::Stop::failed(format_args!($($message)+)));
        }
    };
}

/// Ends the test as failed unless both values are equal.
macro_rules! ktest_assert_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => {
                $crate::harness::ktest_assert!(*left == *right, "{} is {left:?}, expected {right:?}", stringify!($left))
            }
        }
    };
}

/// Ends the test as skipped, for this reason.
macro_rules! ktest_skip {
    ($($reason:tt)+) => {
        return Err($crate::harness::Stop::skipped(format_args!($($reason)+)))
    };
}

pub(crate) use {ktest, ktest_assert, ktest_assert_eq, ktest_skip};
