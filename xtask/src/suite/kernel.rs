//! The tests in the kernel, one boot for all of them, each result shown as it comes.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use protocol::{Event, KernelTest, TestStatus, Transcript};

use super::progress::Progress;
use super::tally::{Case, Outcome};
use crate::interrupt;
use crate::machine::{Clock, Task};
use crate::postmortem;
use crate::qemu::Observer;
use crate::runner::{self, Plan, Run, RunError};
use crate::symbolise::Symbols;
use crate::verdict::Verdict;
use crate::workspace::Workspace;

/// What the kernel's tests are listed under.
const SUITE: &str = "kernel";
/// How often somebody who waits for runs is told that they go on.
const TICK: Duration = Duration::from_millis(200);

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

/// A kernel whose tests are run.
#[derive(Clone, Copy)]
pub struct Tested<'a> {
    /// Where runs are kept.
    pub workspace: &'a Workspace,
    /// QEMU.
    pub emulator: &'a Path,
    /// The kernel.
    pub kernel: &'a Path,
    /// What this kernel and its machine are called.
    pub label: &'a str,
}

impl Tested<'_> {
    /// Runs the tests once, and shows each result when it is there.
    pub fn run(&self, plan: &Plan, progress: &mut Progress) -> Result<Round, RunError> {
        let suite = self.suite(plan);
        progress.started("boot");
        let run = runner::run(self.workspace, self.emulator, plan, &mut Live { progress, suite: &suite })?;
        Ok(self.round(plan, run, progress))
    }

    /// Runs the tests once for each of `plans`, `at_once` of them at a time, and hands each run on with its number when it has
    /// ended; [`Self::show`] shows what came of it.
    pub fn run_beside(
        &self,
        plans: &[Plan],
        at_once: usize,
        mut hear: impl FnMut(usize, Run),
        mut tick: impl FnMut(),
    ) -> Result<(), RunError> {
        let next = AtomicUsize::new(0);
        let (sender, ended) = mpsc::channel();
        let work = |sender: Sender<(usize, Result<Run, RunError>)>| {
            loop {
                // Relaxed: who runs which is all that it says.
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(plan) = plans.get(number).filter(|_| !interrupt::requested()) else { return };
                let run = runner::run(self.workspace, self.emulator, plan, &mut ());
                if sender.send((number, run)).is_err() {
                    // Another could not be run, and that was the end.
                    return;
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..at_once {
                let sender = sender.clone();
                scope.spawn(|| work(sender));
            }
            drop(sender);
            loop {
                match ended.recv_timeout(TICK) {
                    Ok((number, run)) => hear(number, run?),
                    Err(RecvTimeoutError::Timeout) => tick(),
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        })
    }

    /// Shows the results of a run that nobody has watched.
    pub fn show(&self, plan: &Plan, run: Run, progress: &mut Progress) -> Round {
        let suite = self.suite(plan);
        run.ended.transcript.tests.iter().for_each(|test| progress.ended(case(&suite, test)));
        self.round(plan, run, progress)
    }

    /// What its tests are listed under.
    fn suite(&self, plan: &Plan) -> String {
        let suite = format!("{SUITE} ({})", self.label);
        match plan.machine.clock {
            Clock::Host => suite,
            Clock::Instructions { shift } => format!("{suite} [shift {shift} seed {}]", plan.seed),
        }
    }

    /// What a run came to; one that ended badly is looked into.
    fn round(&self, plan: &Plan, run: Run, progress: &mut Progress) -> Round {
        let filtered = matches!(&plan.task, Task::Test { filter } if !filter.is_empty());
        // xtask makes the other words of the command line itself, so the filter is what was refused.
        if filtered && run.verdict == Verdict::BadCommandLine {
            return Round::NoMatch;
        }
        if !matches!(run.verdict, Verdict::Passed | Verdict::Failed | Verdict::Interrupted) {
            let symbols = Symbols::load(self.kernel, self.workspace.root());
            for case in aftermath(&self.suite(plan), &run.ended.transcript, postmortem::report(&run, &symbols)) {
                progress.ended(case);
            }
        }
        Round::Ran(Box::new(run))
    }
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
