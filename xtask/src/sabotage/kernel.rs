//! The kernel, in which a rule can be broken.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use protocol::TestStatus;
use protocol::logline::Level;

use super::{Seen, Stage, Test};
use crate::build::{Builder, Levels, Locks, Profile, Variant};
use crate::machine::{Machine, Task};
use crate::runner::{self, Medium, Plan};
use crate::timing;
use crate::verdict::{Noticed, Verdict};
use crate::workspace::Workspace;

/// Seconds of the guest that one test may take before the kernel's watchdog ends it.
const TEST_LIMIT: Duration = Duration::from_secs(30);

/// One kernel and the machine for it.
pub struct Kernel<'a> {
    workspace: &'a Workspace,
    emulator: PathBuf,
    kernel: PathBuf,
    machine: Machine,
}

impl<'a> Kernel<'a> {
    /// Builds that for the processor of `machine`.
    pub fn build(workspace: &'a Workspace, emulator: PathBuf, machine: Machine) -> Result<Self> {
        let variant = Variant {
            arch: machine.arch,
            locks: Locks::Split,
            debug_locks: false,
            levels: Levels::Four,
            profile: Profile::Release,
            sabotage: true,
            coverage: false,
        };
        let kernel = Builder::new(workspace).kernel(variant)?;
        Ok(Self { workspace, emulator, kernel, machine })
    }

    fn run(&self, task: Task, test: &str) -> Result<Seen> {
        let plan = Plan {
            machine: self.machine,
            medium: Medium::Pvh(self.kernel.clone()),
            task,
            seed: 1,
            timeout: Some(TEST_LIMIT),
            margin: timing::MARGIN,
            log: Level::Info,
            gdb: None,
            counts: None,
        };
        let run = runner::run(self.workspace, &self.emulator, &plan, &mut ())?;
        let transcript = &run.ended.transcript;
        if let Some(result) = transcript.tests.iter().find(|result| result.name == test) {
            return Ok(match &result.status {
                TestStatus::Passed => Seen::Passed,
                TestStatus::Failed => Seen::Failed(why(test, &result.diagnostics)),
                TestStatus::Skipped(reason) => bail!("{test} was skipped: {reason}"),
            });
        }
        let verdict = &run.verdict;
        ensure!(*verdict != Verdict::Interrupted, "interrupted");
        ensure!(transcript.running.as_deref() == Some(test), "{test} did not run: {verdict}");
        Ok(ended_amid(verdict, transcript.errors.first()))
    }
}

/// How a test went in the middle of which the run ended so, with these first words of the kernel's about an error.
fn ended_amid(verdict: &Verdict, said: Option<&String>) -> Seen {
    match verdict {
        Verdict::Hung(Noticed::Host(_)) => Seen::Hung(TEST_LIMIT),
        // That may have reasons outside of the kernel.
        Verdict::LostOutput(_) | Verdict::QemuFailed(_) | Verdict::Interrupted => Seen::Lost(verdict.to_string()),
        // Its own watchdog among them, which says what stands still.
        _ => Seen::Failed(said.cloned().unwrap_or_else(|| verdict.to_string())),
    }
}

/// The first that a failed test said, which begins with its name; often it says the same again and again.
fn why(test: &str, said: &[String]) -> String {
    let first = said.first().map_or("it failed without a word", String::as_str);
    first.strip_prefix(test).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(first).to_owned()
}

impl Stage for Kernel<'_> {
    fn control(&self, tests: &[Test]) -> Result<()> {
        let mut names: Vec<&str> = tests.iter().map(|test| test.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let seen = self.run(Task::Test { filter: name.to_owned() }, name)?;
            ensure!(seen == Seen::Passed, "does not pass with nothing broken: {name}: {seen}");
        }
        Ok(())
    }

    fn attempt(&self, sabotage: &'static str, test: &Test) -> Result<Seen> {
        self.run(Task::Sabotage { name: sabotage, filter: test.name.to_owned() }, test.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Limit, Loss};

    #[test]
    fn a_failed_test_says_why_once() {
        let said = |lines: &[&str]| why("race::a", &lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
        assert_eq!(said(&["race::a: it is 1 (a.rs:5)", "race::a: it is 2 (a.rs:5)"]), "it is 1 (a.rs:5)");
        assert_eq!(said(&["leak: 3 frames"]), "leak: 3 frames");
        assert_eq!(said(&[]), "it failed without a word");
    }

    #[test]
    fn what_the_kernel_says_is_noticed_and_what_befalls_it_is_not() {
        let said = "cpu 1 waits".to_owned();
        for verdict in [Verdict::Panicked, Verdict::Reset, Verdict::Hung(Noticed::Kernel)] {
            assert_eq!(ended_amid(&verdict, Some(&said)), Seen::Failed(said.clone()));
        }
        let silent = Verdict::Hung(Noticed::Host(Limit::Silence(TEST_LIMIT)));
        for verdict in [silent, Verdict::QemuFailed(1), Verdict::LostOutput(Loss::NoEnd)] {
            assert!(!ended_amid(&verdict, Some(&said)).is_caught());
        }
    }
}
