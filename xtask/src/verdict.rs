//! How a run ended, judged from QEMU's end and the kernel's words together. A pure function, so that every way a run
//! can end is a unit test.
//!
//! The rule: only the kernel's own "all passed" *and* a whole transcript make a pass. Everything that is merely not
//! known to be a failure is one.

use std::fmt;
use std::time::Duration;

use protocol::{TestStatus, Transcript};

/// Exit statuses of QEMU for the kernel's codes (`docs/harness.md`), each `(code << 1) | 1`.
mod status {
    pub const PASSED: i32 = 33;
    pub const FAILED: i32 = 35;
    pub const PANIC: i32 = 37;
    pub const BAD_COMMAND_LINE: i32 = 39;
    pub const WATCHDOG: i32 = 41;
    pub const BOOT_FAILED: i32 = 43;
    /// QEMU's own word for an option or file it cannot use.
    pub const QEMU_ERROR: i32 = 1;
}

/// Which of the host's time limits ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Nothing came from the kernel after the start.
    Boot(Duration),
    /// No line for this long.
    Silence(Duration),
    /// One test took this long.
    Test(Duration),
    /// The run as a whole took this long.
    Total(Duration),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot(limit) => {
                write!(f, "the kernel did not come up within {} s", limit.as_secs())
            }
            Self::Silence(limit) => {
                write!(f, "no line on the serial port for {} s", limit.as_secs())
            }
            Self::Test(limit) => write!(f, "one test took more than {} s", limit.as_secs()),
            Self::Total(limit) => write!(f, "the run took more than {} s", limit.as_secs()),
        }
    }
}

/// How QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal that was not ours.
    Signalled(i32),
    /// The machine was reset; we held QEMU there to read its registers.
    Reset,
    /// We ended it: a time limit ran out.
    TimedOut(Limit),
    /// We ended it: Ctrl-C.
    Interrupted,
}

/// Who noticed that nothing moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// The watchdog in the kernel.
    Kernel,
    /// The host's clock.
    Host(Limit),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All passed, and nothing of the output is missing.
    Passed,
    /// The kernel says so: a test or an oracle failed.
    Failed,
    /// The kernel panicked.
    Panicked,
    /// The kernel refused its command line.
    BadCommandLine,
    /// Nothing moves any more.
    Hung(Noticed),
    /// The kernel could not start.
    BootFailed,
    /// Triple fault or reset: the kernel had no chance to say anything.
    Reset,
    /// The kernel's exit says one thing, its output does not bear it out.
    LostOutput(Loss),
    /// QEMU could not run it, or died.
    QemuFailed(i32),
    /// Ctrl-C.
    Interrupted,
}

/// What is missing from the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// No `@end` record.
    NoEnd,
    /// A damaged line.
    Torn(String),
    /// Fewer or more results than the plan promised.
    Plan {
        /// Results promised.
        planned: u32,
        /// Results seen.
        seen: u32,
    },
    /// The figures of `@end` are not those of the results seen, or not those of the exit status.
    Totals,
}

impl Verdict {
    /// Judges a run.
    pub fn of(ending: &Ending, run: &Transcript) -> Self {
        match ending {
            Ending::TimedOut(limit) => Self::Hung(Noticed::Host(*limit)),
            Ending::Interrupted => Self::Interrupted,
            Ending::Reset | Ending::Exited(0) => Self::Reset,
            Ending::Signalled(signal) => Self::QemuFailed(-signal),
            Ending::Exited(status::PANIC) => Self::Panicked,
            Ending::Exited(status::BAD_COMMAND_LINE) => Self::BadCommandLine,
            Ending::Exited(status::WATCHDOG) => Self::Hung(Noticed::Kernel),
            Ending::Exited(status::BOOT_FAILED) => Self::BootFailed,
            Ending::Exited(status::PASSED) => loss(run, true).map_or(Self::Passed, Self::LostOutput),
            Ending::Exited(status::FAILED) => loss(run, false).map_or(Self::Failed, Self::LostOutput),
            Ending::Exited(status) => Self::QemuFailed(*status),
        }
    }

    /// Whether this is the one good ending.
    pub fn passed(&self) -> bool {
        *self == Self::Passed
    }

    /// One word, for tables and saved runs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "PASS",
            Self::Failed => "FAIL",
            Self::Panicked => "PANIC",
            Self::BadCommandLine => "REFUSED",
            Self::Hung(_) => "HANG",
            Self::BootFailed => "BOOT FAILED",
            Self::Reset => "RESET",
            Self::LostOutput(_) => "LOST OUTPUT",
            Self::QemuFailed(_) => "QEMU FAILED",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(f, "passed"),
            Self::Failed => write!(f, "the kernel reports a failure"),
            Self::Panicked => write!(f, "the kernel panicked"),
            Self::BadCommandLine => write!(f, "the kernel refused its command line"),
            Self::Hung(Noticed::Kernel) => write!(f, "hang: the kernel's watchdog ended the run"),
            Self::Hung(Noticed::Host(limit)) => write!(f, "hang: {limit}"),
            Self::BootFailed => write!(f, "the kernel could not start"),
            Self::Reset => write!(f, "triple fault or reset: the machine restarted without a word"),
            Self::LostOutput(Loss::NoEnd) => {
                write!(f, "lost output: the kernel exited without its @end record")
            }
            Self::LostOutput(Loss::Torn(line)) => {
                write!(f, "lost output: a damaged line: {line:?}")
            }
            Self::LostOutput(Loss::Plan { planned, seen }) => {
                write!(f, "lost output: {planned} results were promised, {seen} came")
            }
            Self::LostOutput(Loss::Totals) => {
                write!(f, "lost output: the totals of @end are not those of the results or the exit status")
            }
            Self::QemuFailed(status::QEMU_ERROR) => write!(f, "QEMU could not run it"),
            Self::QemuFailed(status) if *status < 0 => {
                write!(f, "QEMU was killed by signal {}", -status)
            }
            Self::QemuFailed(status) => write!(f, "QEMU ended with status {status}, which the kernel never uses"),
            Self::Interrupted => write!(f, "interrupted"),
        }
    }
}

/// What is missing from the output of a kernel that says it ended well (`passed`) or badly.
fn loss(run: &Transcript, passed: bool) -> Option<Loss> {
    if let Some(line) = run.torn.first() {
        return Some(Loss::Torn(line.clone()));
    }
    let Some(end) = &run.end else {
        return Some(Loss::NoEnd);
    };
    let seen = run.tests.len() as u32;
    if let Some(planned) = run.planned
        && planned != seen
    {
        return Some(Loss::Plan { planned, seen });
    }
    let failed_tests = run.tests.iter().filter(|test| test.status == TestStatus::Failed).count() as u32;
    let results_agree = run.planned.is_none() || end.failed == failed_tests;
    let oracles_agree = !passed || run.oracles.iter().all(|oracle| oracle.ok);
    let status_agrees = passed == (end.failed == 0);
    (!(results_agree && oracles_agree && status_agrees)).then_some(Loss::Totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &[&str]) -> Transcript {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.feed(line, Duration::ZERO);
        }
        transcript
    }

    const GOOD: [&str; 4] =
        ["1..1", r#"@start {"test":"a"}"#, "ok 1 a", r#"@end {"mode":"test","passed":1,"failed":0,"skipped":0}"#];

    #[test]
    fn all_passed_needs_a_whole_transcript() {
        assert_eq!(Verdict::of(&Ending::Exited(33), &run(&GOOD)), Verdict::Passed);
        let cases: [(&[&str], Loss); 4] = [
            (&GOOD[..3], Loss::NoEnd),
            (&[], Loss::NoEnd),
            (&["1..2", GOOD[2], GOOD[3]], Loss::Plan { planned: 2, seen: 1 }),
            (&["1..1", "not ok 1 a", GOOD[3]], Loss::Totals),
        ];
        for (lines, expected) in cases {
            assert_eq!(Verdict::of(&Ending::Exited(33), &run(lines)), Verdict::LostOutput(expected), "{lines:?}");
        }
    }

    #[test]
    fn half_a_line_is_lost_output_even_when_all_else_is_there() {
        let mut lines = GOOD.to_vec();
        lines.insert(1, "ok 2");
        assert_eq!(Verdict::of(&Ending::Exited(33), &run(&lines)), Verdict::LostOutput(Loss::Torn("ok 2".to_owned())));
        let mut transcript = run(&GOOD);
        transcript.feed_unfinished("not ok 2 sto".to_owned());
        assert!(matches!(Verdict::of(&Ending::Exited(33), &transcript), Verdict::LostOutput(Loss::Torn(_))));
    }

    #[test]
    fn an_oracle_that_failed_contradicts_all_passed() {
        let lines = [r#"@oracle {"name":"o","ok":false}"#, r#"@end {"mode":"run","passed":1,"failed":0}"#];
        assert_eq!(Verdict::of(&Ending::Exited(33), &run(&lines)), Verdict::LostOutput(Loss::Totals));
    }

    #[test]
    fn a_failure_without_its_results_is_lost_output() {
        let lines = ["1..1", "not ok 1 a", r#"@end {"mode":"test","passed":0,"failed":1,"skipped":0}"#];
        assert_eq!(Verdict::of(&Ending::Exited(35), &run(&lines)), Verdict::Failed);
        assert_eq!(Verdict::of(&Ending::Exited(35), &run(&lines[..2])), Verdict::LostOutput(Loss::NoEnd));
        assert_eq!(Verdict::of(&Ending::Exited(35), &run(&GOOD)), Verdict::LostOutput(Loss::Totals));
    }

    #[test]
    fn every_other_ending_has_its_own_name() {
        let nothing = Transcript::default();
        let of = |ending| Verdict::of(&ending, &nothing);
        let limit = Limit::Silence(Duration::from_secs(9));
        assert_eq!(of(Ending::Exited(37)), Verdict::Panicked);
        assert_eq!(of(Ending::Exited(39)), Verdict::BadCommandLine);
        assert_eq!(of(Ending::Exited(41)), Verdict::Hung(Noticed::Kernel));
        assert_eq!(of(Ending::Exited(43)), Verdict::BootFailed);
        assert_eq!(of(Ending::Exited(0)), Verdict::Reset);
        assert_eq!(of(Ending::Reset), Verdict::Reset);
        assert_eq!(of(Ending::Exited(1)), Verdict::QemuFailed(1));
        assert_eq!(of(Ending::Signalled(11)), Verdict::QemuFailed(-11));
        assert_eq!(of(Ending::TimedOut(limit)), Verdict::Hung(Noticed::Host(limit)));
        assert_eq!(of(Ending::Interrupted), Verdict::Interrupted);
    }
}
