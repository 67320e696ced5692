//! What a test is given, and how it tells its outcome.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{Name, Random};
use crate::line::Line;
use crate::serial;

/// A test that came to its end, or the reason why it did not.
pub type TestResult = Result<(), Stop>;

/// Why a test ended early. Any error converts into a failure, so `?` works in tests.
pub enum Stop {
    /// Something was not as it must be.
    Failed(String),
    /// The test cannot run here, which is no failure.
    Skipped(String),
}

impl Stop {
    /// A failure at the caller's place.
    #[track_caller]
    pub fn failed(message: fmt::Arguments) -> Self {
        let place = Location::caller();
        Self::Failed(format!("{message} ({}:{})", place.file(), place.line()))
    }

    /// A skip for this reason.
    pub fn skipped(reason: fmt::Arguments) -> Self {
        Self::Skipped(format!("{reason}"))
    }
}

impl<E: fmt::Debug> From<E> for Stop {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::failed(format_args!("unexpected error {error:?}"))
    }
}

/// What a test is given. Shared by every CPU that works on the test.
pub struct TestContext {
    name: Name,
    seed: u64,
    cpus: usize,
    /// Set by a failed check on any CPU. Relaxed: the test joins its threads before the runner looks.
    failed: AtomicBool,
}

impl TestContext {
    pub(super) fn new(name: Name, seed: u64, cpus: usize) -> Self {
        Self { name, seed, cpus, failed: AtomicBool::new(false) }
    }

    /// How many CPUs are online.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// Random numbers of this test's own: the same for the same seed, whatever other tests run.
    pub fn random(&self) -> Random {
        Random::new(self.seed ^ self.name.hash())
    }

    /// Prints a diagnostic line.
    pub fn note(&self, text: fmt::Arguments) {
        diagnostic(self.name, text);
    }

    /// Fails the test unless `holds`, but lets it go on; for conditions seen on any CPU. Returns `holds`.
    #[track_caller]
    pub fn check(&self, holds: bool, message: fmt::Arguments) -> bool {
        if !holds {
            let place = Location::caller();
            self.note(format_args!("{message} ({}:{})", place.file(), place.line()));
            self.failed.store(true, Ordering::Relaxed);
        }
        holds
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Prints a KTAP diagnostic line about `name`.
pub(super) fn diagnostic(name: Name, text: fmt::Arguments) {
    ktap(format_args!("# {name}: {text}"));
}

/// Prints a KTAP line.
pub fn ktap(text: fmt::Arguments) {
    let mut line = Line::<512>::new();
    // `Line` never fails: it cuts.
    let _ = fmt::Write::write_fmt(&mut line, text);
    serial::write_line(line.as_bytes());
}
