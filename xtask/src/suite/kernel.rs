//! The tests in the kernel, one boot for all of them, each result shown as it comes.

use std::path::Path;

use protocol::{Event, KernelTest, TestStatus, Transcript};

use super::progress::Progress;
use super::tally::{Case, Outcome};
use crate::machine::{Clock, Task};
use crate::postmortem;
use crate::qemu::Observer;
use crate::runner::{self, Plan, Run, RunError};
use crate::symbolise::Symbols;
use crate::verdict::Verdict;
use crate::workspace::Workspace;

/// What the kernel's tests are listed under.
const SUITE: &str = "kernel";

/// Shows results while the kernel reports them.
struct Live<'a> {
    progress: &'a mut Progress,
    suite: &'a str,
}

impl Observer for Live<'_> {
    fn line(&mut self, _: &str, event: &Event<'_>) {
        match event {
            Event::Planned(count) => self.progress.planned(*count),
            Event::Started(name) => self.progress.started(name),
            Event::Ended(test) => self.progress.ended(case(self.suite, test)),
            Event::Booted(_) | Event::Phase(_) | Event::Quiet => {}
        }
    }

    fn tick(&mut self) {
        self.progress.tick();
    }
}

fn case(suite: &str, test: &KernelTest) -> Case {
    let (outcome, detail) = match &test.status {
        TestStatus::Passed => (Outcome::Passed, Vec::new()),
        TestStatus::Failed => (Outcome::Failed, test.diagnostics.clone()),
        TestStatus::Skipped(reason) => (Outcome::Skipped, vec![reason.clone()]),
    };
    Case { suite: suite.to_owned(), name: test.name.clone(), outcome, duration: Some(test.duration), detail }
}

/// What came of a round of the kernel's tests.
pub enum Round {
    /// They ran; the results are in the tally.
    Ran(Box<Run>),
    /// No test in the kernel has such a name.
    NoMatch,
}

/// Runs the kernel's tests once; `label` is what this kernel and machine are called.
pub fn run(
    workspace: &Workspace,
    qemu: &Path,
    plan: &Plan,
    kernel: &Path,
    label: &str,
    progress: &mut Progress,
) -> Result<Round, RunError> {
    let filtered = matches!(&plan.task, Task::Test { filter } if !filter.is_empty());
    let mut suite = format!("{SUITE} ({label})");
    if let Clock::Instructions { shift } = plan.machine.clock {
        suite += &format!(" [shift {shift} seed {}]", plan.seed);
    }
    progress.started("boot");
    let run = runner::run(workspace, qemu, plan, &mut Live { progress, suite: &suite })?;
    // xtask makes the other words of the command line itself, so the filter is what was refused.
    if filtered && run.verdict == Verdict::BadCommandLine {
        return Ok(Round::NoMatch);
    }
    if !matches!(run.verdict, Verdict::Passed | Verdict::Failed | Verdict::Interrupted) {
        let symbols = Symbols::load(kernel, workspace.root());
        for case in aftermath(&suite, &run.ended.transcript, postmortem::report(&run, &symbols)) {
            progress.ended(case);
        }
    }
    Ok(Round::Ran(Box::new(run)))
}

/// The cases of a run that ended badly: the culprit, as far as it is known, and those whose turn never came.
fn aftermath(suite: &str, transcript: &Transcript, detail: Vec<String>) -> Vec<Case> {
    let name = transcript.running.clone().unwrap_or_else(|| "(the run as a whole)".to_owned());
    let culprit = Case { suite: suite.to_owned(), name, outcome: Outcome::Failed, duration: None, detail };
    let not_run = (0..transcript.not_run()).map(|_| Case {
        suite: suite.to_owned(),
        name: "(a test after it)".to_owned(),
        outcome: Outcome::NotRun,
        duration: None,
        detail: Vec::new(),
    });
    std::iter::once(culprit).chain(not_run).collect()
}

/// The names of the kernel's tests.
pub fn list(workspace: &Workspace, qemu: &Path, plan: &Plan) -> Result<Run, RunError> {
    runner::run(workspace, qemu, plan, &mut ())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_crash_names_its_culprit_and_counts_those_behind_it() {
        let mut transcript = Transcript::default();
        for line in ["1..4", r#"@start {"test":"a"}"#, "ok 1 a", r#"@start {"test":"b"}"#] {
            transcript.feed(line, Duration::ZERO);
        }
        let cases = aftermath("kernel", &transcript, vec!["why".to_owned()]);
        assert_eq!(cases[0].name, "b");
        assert_eq!(cases[0].detail, ["why"]);
        assert_eq!(cases.iter().filter(|case| case.outcome == Outcome::NotRun).count(), 2);
    }

    #[test]
    fn a_crash_outside_any_test_is_a_failure_all_the_same() {
        let cases = aftermath("kernel", &Transcript::default(), Vec::new());
        assert_eq!(cases.len(), 1);
        assert_eq!(cases[0].outcome, Outcome::Failed);
    }
}
