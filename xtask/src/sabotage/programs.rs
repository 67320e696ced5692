//! Test programs of the host, in which a rule can be broken.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{Seen, Stage, Suite, Test};
use crate::child::{self, Finish};
use crate::suite::Outcome;
use crate::suite::host::HostTests;
use crate::suite::libtest::LibtestOutput;
use crate::suite::program::Program;
use crate::workspace::Workspace;

/// What chooses a sabotage in these programs.
const VARIABLE: &str = "LATCHWORK_SABOTAGE";
/// The simulated machine gives a run up after a minute; the models of unbroken rules take a fraction of that.
const TEST_LIMIT: Duration = Duration::from_secs(90);
/// All tests with nothing broken.
const CONTROL_LIMIT: Duration = Duration::from_secs(900);

/// Those of one kind, built.
pub struct Programs(Vec<Program>);

impl Programs {
    /// `mm`'s own tests.
    pub fn host(workspace: &Workspace) -> Result<Self> {
        Ok(Self(HostTests::new(workspace, "", &[]).sabotaged_tests()?))
    }

    /// The models.
    pub fn loom(workspace: &Workspace) -> Result<Self> {
        Ok(Self(HostTests::new(workspace, "", &[]).sabotaged_models()?))
    }

    /// Whole operations under chosen schedules.
    pub fn schedules(workspace: &Workspace) -> Result<Self> {
        Ok(Self(HostTests::new(workspace, "", &[]).sabotaged_schedules()?))
    }

    /// Runs the tests of these names in `program`.
    fn command<'n>(program: &Program, names: impl IntoIterator<Item = &'n str>) -> Command {
        let mut command = program.command("");
        command.arg("--exact").args(names).env_remove(VARIABLE).env("RUST_BACKTRACE", "0");
        command
    }
}

impl Stage for Programs {
    fn control(&self, tests: &[Test]) -> Result<()> {
        for program in &self.0 {
            let names: BTreeSet<&str> =
                tests.iter().filter(|test| suite_name(test.suite) == program.suite).map(|test| test.name).collect();
            if names.is_empty() {
                continue;
            }
            let mut passed = BTreeSet::new();
            let mut output = LibtestOutput::default();
            let hear = |line: &str| {
                passed.extend(output.feed(line).filter(|test| test.outcome == Outcome::Passed).map(|test| test.name));
            };
            let mut command = Self::command(program, names.iter().copied());
            if child::run(&mut command, CONTROL_LIMIT, hear, || ())? == Finish::Interrupted {
                bail!("interrupted");
            }
            let missing: Vec<&str> = names.into_iter().filter(|name| !passed.contains(*name)).collect();
            ensure!(missing.is_empty(), "does not pass with nothing broken: {} {}", program.suite, missing.join(", "));
        }
        Ok(())
    }

    fn attempt(&self, sabotage: &'static str, test: &Test) -> Result<Seen> {
        let suite = suite_name(test.suite);
        let program = self.0.iter().find(|program| program.suite == suite);
        let program = program.with_context(|| format!("there are no tests {suite}"))?;
        // What libtest has captured is lost when a second panic aborts.
        let (mut from, to) = io::pipe()?;
        let mut command = Self::command(program, [test.name]);
        command.arg("--nocapture").env(VARIABLE, sabotage).stderr(to);
        let said = thread::spawn(move || -> io::Result<Vec<u8>> {
            let mut said = Vec::new();
            from.read_to_end(&mut said)?;
            Ok(said)
        });
        let mut missed = None;
        let hear = |line: &str| missed = missed.take().or_else(|| missed_panic(line));
        let finish = child::run(&mut command, TEST_LIMIT, hear, || ())?;
        // Else the reader would wait for ever: it has the other end.
        drop(command);
        let Ok(said) = said.join() else { bail!("the reader of what {test} says has panicked") };
        let said = said?;
        Ok(match finish {
            Finish::Interrupted => bail!("interrupted"),
            Finish::TimedOut => Seen::Hung(TEST_LIMIT),
            Finish::Exited(status) => ended(status, missed.or_else(|| first_words(&String::from_utf8_lossy(&said)))),
        })
    }
}

/// What a test program exits with when a test failed.
const FAILED: i32 = 101;
/// What the simulated machine says before it ends the program.
const STANDS_STILL: &str = "a CPU does not stop";

/// How a test went whose program ended so, after `words`, if it said any. One that died without a word did so for want of
/// memory or stack, or somebody else ended it.
fn ended(status: ExitStatus, words: Option<String>) -> Seen {
    let from_outside = [Signal::SIGKILL, Signal::SIGTERM].iter().any(|&signal| status.signal() == Some(signal as i32));
    match words {
        _ if status.success() => Seen::Passed,
        Some(words) if !from_outside => Seen::Failed(words),
        None if status.code() == Some(FAILED) => Seen::Failed("it failed without a word".to_owned()),
        _ => Seen::Lost(status.to_string()),
    }
}

/// What the programs call it.
fn suite_name(suite: Suite) -> String {
    match suite {
        Suite::Host => "mm".to_owned(),
        Suite::Loom(file) => format!("mm/{file}"),
        Suite::Schedules => "mm/shuttle_operations".to_owned(),
        // None of theirs.
        Suite::Kernel(_) => "kernel".to_owned(),
    }
}

/// What `line` says of a panic that a test should have ended in.
fn missed_panic(line: &str) -> Option<String> {
    let note = line.strip_prefix("note: ")?;
    (note.contains("did not panic as expected") || note.contains("did not contain expected string"))
        .then(|| note.to_owned())
}

/// Of all that a test said, what it panicked with first: what follows the line that says where, of a comparison both sides too. Or
/// that its simulated machine stood still.
fn first_words(said: &str) -> Option<String> {
    let is_first = |line: &&str| line.contains("panicked at") || line.starts_with(STANDS_STILL);
    let mut lines = said.lines().skip_while(|line| !is_first(line));
    let first = lines.next()?;
    let first = if first.starts_with(STANDS_STILL) { first } else { lines.next()? };
    let sides =
        lines.map(|line| line.trim()).take_while(|line| line.starts_with("left: ") || line.starts_with("right: "));
    Some(std::iter::once(first).chain(sides).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_says_why() {
        let panic = "seed 1\nthread 'a' panicked at mm/src/a.rs:1:2:\na mix\nnote: more";
        assert_eq!(first_words(panic).as_deref(), Some("a mix"));
        let again = format!("{panic}\nthread 'a' panicked at mm/src/b.rs:1:2:\nin a destructor");
        assert_eq!(first_words(&again).as_deref(), Some("a mix"));
        let compared = "thread 'a' panicked at x:1:2:\nassertion failed\n  left: 1\n right: 2\nnote: more";
        assert_eq!(first_words(compared).as_deref(), Some("assertion failed, left: 1, right: 2"));
        assert_eq!(first_words("Error: x"), None);
        let still = "a CPU does not stop, it waits without entering the machine";
        assert_eq!(first_words(&format!("seed 1\n{still}\nCPU 0")).as_deref(), Some(still));
    }

    #[test]
    fn a_test_that_should_have_panicked_says_so() {
        let note = "note: test did not panic as expected at mm/src/a.rs:1:2";
        assert_eq!(missed_panic(note), note.strip_prefix("note: ").map(str::to_owned));
        assert_eq!(missed_panic("note: run with `RUST_BACKTRACE=1`"), None);
        assert_eq!(missed_panic("test a ... ok"), None);
    }

    #[test]
    fn a_program_that_dies_without_a_panic_has_noticed_nothing() {
        let words = || Some("a mix".to_owned());
        let by = |signal: Signal| ExitStatus::from_raw(signal as i32);
        let failed = ExitStatus::from_raw(101 << 8);
        // A test may catch what it expects to panic.
        assert_eq!(ended(ExitStatus::from_raw(0), words()), Seen::Passed);
        assert_eq!(ended(failed, words()), Seen::Failed("a mix".to_owned()));
        assert_eq!(ended(by(Signal::SIGABRT), words()), Seen::Failed("a mix".to_owned()));
        assert!(ended(failed, None).is_caught());
        assert!(!ended(ExitStatus::from_raw(1 << 8), None).is_caught(), "it did not run");
        assert!(!ended(by(Signal::SIGABRT), None).is_caught() && !ended(by(Signal::SIGSEGV), None).is_caught());
        assert!(!ended(by(Signal::SIGKILL), words()).is_caught() && !ended(by(Signal::SIGTERM), words()).is_caught());
    }
}
