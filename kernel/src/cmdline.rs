//! The kernel's command line, as `handover` reads it, with the ways to fail that this kernel knows.

use handover::cmdline::{self, CmdlineError, Kinds};

use crate::misbehave::locks::{self, LockMisuse};
use crate::misbehave::mappings::{self, MappingMisuse};

/// A parsed command line.
pub type Options<'a> = cmdline::Options<'a, Misbehaviour>;

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Panics in the middle of a test.
    Panic,
    /// Loops for ever in the middle of a test, with interrupts on.
    Spin,
    /// Loops for ever in the middle of a test, with interrupts off.
    Deaf,
    /// Panics on all CPUs at once.
    PanicEverywhere,
    /// Raises an exception nobody can take.
    TripleFault,
    /// Prints half a line of KTAP and ends the run with status *passed*.
    HalfLine,
    /// Ends the run with status *passed* and no closing record.
    SilentExit,
    /// Waits for a lock that is never released.
    Deadlock,
    /// Waits for a lock that is never released, with little patience.
    Impatient,
    /// Recurses until the stack's guard page is hit.
    StackOverflow,
    /// Uses a lock wrongly; only a kernel with `debug-locks` notices.
    Lock(LockMisuse),
    /// Uses mappings of high memory wrongly.
    Mapping(MappingMisuse),
}

const KINDS: Kinds<Misbehaviour> = Kinds {
    names: "panic, panic-everywhere, spin, deaf, triple-fault, half-line, silent-exit, deadlock, impatient, \
            stack-overflow, or lock- or kmap- and how it is misused",
    find: misbehaviour,
};

/// Parses a command line.
///
/// # Errors
/// The first word that is wrong, and why.
pub fn parse(line: &str) -> Result<Options<'_>, CmdlineError<'_>> {
    cmdline::parse(line, &KINDS)
}

fn misbehaviour(value: &str) -> Option<Misbehaviour> {
    match value {
        "panic" => Some(Misbehaviour::Panic),
        "panic-everywhere" => Some(Misbehaviour::PanicEverywhere),
        "spin" => Some(Misbehaviour::Spin),
        "deaf" => Some(Misbehaviour::Deaf),
        "triple-fault" => Some(Misbehaviour::TripleFault),
        "half-line" => Some(Misbehaviour::HalfLine),
        "silent-exit" => Some(Misbehaviour::SilentExit),
        "impatient" => Some(Misbehaviour::Impatient),
        "deadlock" => Some(Misbehaviour::Deadlock),
        "stack-overflow" => Some(Misbehaviour::StackOverflow),
        _ => {
            let of_locks = locks::KINDS.iter().find(|(name, _)| *name == value);
            let of_mappings = mappings::KINDS.iter().find(|(name, _)| *name == value);
            let of_locks = of_locks.map(|(_, misuse)| Misbehaviour::Lock(*misuse));
            of_locks.or(of_mappings.map(|(_, misuse)| Misbehaviour::Mapping(*misuse)))
        }
    }
}

mod tests {
    use super::{Misbehaviour, parse};
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
    use handover::cmdline::{CmdlineError, Mode};

    ktest! {
        /// A way to fail is known by its word, those to misuse a lock too, of a mapping where there are any, and no other word is one.
        fn ways_to_fail_are_known_by_their_words(_t: &TestContext) {
            ktest_assert_eq!(parse("kind=half-line mode=misbehave")?.mode, Mode::Misbehave(Misbehaviour::HalfLine));
            ktest_assert!(parse("mode=misbehave kind=lock-twice").is_ok());
            // Without high memory nobody maps any.
            ktest_assert_eq!(parse("mode=misbehave kind=kmap-order").is_ok(), cfg!(target_arch = "x86"));
            let unknown = parse("mode=misbehave kind=shout");
            ktest_assert!(matches!(unknown, Err(CmdlineError::BadValue { key: "kind", value: "shout", .. })));
        }
    }
}
