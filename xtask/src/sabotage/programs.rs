//! Test programs of the host, in which a rule can be broken.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
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
        let mut command = Self::command(program, [test.name]);
        command.env(VARIABLE, sabotage).stderr(Stdio::null());
        let mut output = LibtestOutput::default();
        let mut failed = false;
        let hear = |line: &str| failed |= output.feed(line).is_some_and(|test| test.outcome == Outcome::Failed);
        Ok(match child::run(&mut command, TEST_LIMIT, hear, || ())? {
            Finish::Interrupted => bail!("interrupted"),
            Finish::TimedOut => Seen::Hung(TEST_LIMIT),
            Finish::Exited(_) if failed => Seen::Failed(last_words(&output.output(test.name))),
            Finish::Exited(status) if status.success() => Seen::Passed,
            Finish::Exited(status) if from_outside(status) => Seen::Lost(status.to_string()),
            Finish::Exited(status) => Seen::Failed(format!("its program died: {status}")),
        })
    }
}

/// Whether the program was ended by somebody else, or for want of memory.
fn from_outside(status: ExitStatus) -> bool {
    [Signal::SIGKILL, Signal::SIGTERM].iter().any(|&signal| status.signal() == Some(signal as i32))
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

/// Of all that a failed test said, why it failed: what follows the first line that says where, of a comparison both sides too.
fn last_words(said: &[String]) -> String {
    let mut lines = said.iter().skip_while(|line| !line.contains("panicked at")).skip(1);
    let Some(first) = lines.next() else { return "it failed without a word".to_owned() };
    let sides =
        lines.map(|line| line.trim()).take_while(|line| line.starts_with("left: ") || line.starts_with("right: "));
    std::iter::once(first.as_str()).chain(sides).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_says_why() {
        let said = |lines: &[&str]| last_words(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
        assert_eq!(said(&["seed 1", "thread 'a' panicked at mm/src/a.rs:1:2:", "a mix", "note: more"]), "a mix");
        let compared = ["thread 'a' panicked at x:1:2:", "assertion failed", "  left: 1", " right: 2", "note: more"];
        assert_eq!(said(&compared), "assertion failed, left: 1, right: 2");
        assert_eq!(said(&["Error: x"]), "it failed without a word");
    }

    #[test]
    fn a_program_that_somebody_ended_has_noticed_nothing() {
        let ended_by = |signal: Signal| from_outside(ExitStatus::from_raw(signal as i32));
        assert!(ended_by(Signal::SIGKILL) && ended_by(Signal::SIGTERM));
        assert!(!ended_by(Signal::SIGABRT) && !ended_by(Signal::SIGSEGV));
    }
}
