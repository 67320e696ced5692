//! What one run said, added up line by line.

use std::collections::VecDeque;
use std::time::Duration;

use super::record::{Backtrace, Boot, Cpu, End, Hang, Oracle, Phase};
use super::{Ktap, Line, Record};

/// So many last lines are kept for a report.
const TAIL_LINES: usize = 40;

/// How a test in the kernel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestStatus {
    /// `ok`
    Passed,
    /// `not ok`
    Failed,
    /// `# SKIP` and the reason.
    Skipped(String),
}

/// A test the kernel reported on.
#[derive(Clone, Debug)]
pub struct KernelTest {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub status: TestStatus,
    /// From `@start` (or the last result) to its result, on the host's clock.
    pub duration: Duration,
    /// The KTAP diagnostics and the warnings logged while it ran.
    pub diagnostics: Vec<String>,
}

/// What a line meant, for live progress.
#[derive(Debug)]
pub enum Event<'a> {
    /// All CPUs are up.
    Booted(&'a Boot),
    /// So many tests will run.
    Planned(u32),
    /// A test begins.
    Started(&'a str),
    /// A test ended.
    Ended(&'a KernelTest),
    /// A phase of a workload ended.
    Phase(&'a Phase),
    /// Nothing to show.
    Quiet,
}

/// All that matters of one run's output.
#[derive(Default)]
pub struct Transcript {
    /// `@boot`, when it came.
    pub boot: Option<Boot>,
    /// How many results were promised.
    pub planned: Option<u32>,
    /// The results that came.
    pub tests: Vec<KernelTest>,
    /// A test that began and has not reported yet: the culprit of a crash.
    pub running: Option<String>,
    /// Names and one-line descriptions (`mode=list`).
    pub listed: Vec<(String, String)>,
    /// Figures of the workload.
    pub phases: Vec<Phase>,
    /// Figures per CPU.
    pub cpus: Vec<Cpu>,
    /// Checked properties.
    pub oracles: Vec<Oracle>,
    /// Backtraces, unsymbolised.
    pub backtraces: Vec<Backtrace>,
    /// The watchdog's verdict.
    pub hang: Option<Hang>,
    /// The last record of a run that ended by itself.
    pub end: Option<End>,
    /// Damaged lines.
    pub torn: Vec<String>,
    /// `ERROR` lines of the log.
    pub errors: Vec<String>,
    /// The last lines of any kind.
    pub tail: VecDeque<String>,
    diagnostics: Vec<String>,
    last_result: Duration,
}

impl Transcript {
    /// Takes one whole line that came `now` after the start of the run.
    pub fn feed(&mut self, text: &str, now: Duration) -> Event<'_> {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(text.to_owned());
        match Line::parse(text) {
            Line::Ktap(ktap) => self.ktap(ktap, now),
            Line::Record(record) => self.record(record, now),
            Line::Log(line) => {
                if line.level == super::logline::Level::Error {
                    self.errors.push(line.text);
                }
                if line.level <= super::logline::Level::Warn && self.running.is_some() {
                    self.diagnostics.push(text.to_owned());
                }
                Event::Quiet
            }
            Line::Torn(text) => {
                self.torn.push(text);
                Event::Quiet
            }
            Line::Other(_) => Event::Quiet,
        }
    }

    /// Takes the line that never ended. It is damaged whatever it says: the kernel ends each line it writes.
    pub fn feed_unfinished(&mut self, text: String) {
        self.tail.push_back(text.clone());
        self.torn.push(text);
    }

    /// Promised tests that never got a result, the running one aside.
    pub fn not_run(&self) -> u32 {
        let accounted = self.tests.len() as u32 + u32::from(self.running.is_some());
        self.planned.unwrap_or(0).saturating_sub(accounted)
    }

    fn ktap(&mut self, ktap: Ktap, now: Duration) -> Event<'_> {
        match ktap {
            Ktap::Version => Event::Quiet,
            Ktap::Plan(count) => {
                self.planned = Some(count);
                self.last_result = now;
                Event::Planned(count)
            }
            Ktap::Diagnostic(text) => {
                self.diagnostics.push(text);
                Event::Quiet
            }
            Ktap::Result { passed, name, skipped, .. } => {
                let status = match (passed, skipped) {
                    (false, _) => TestStatus::Failed,
                    (true, Some(reason)) => TestStatus::Skipped(reason),
                    (true, None) => TestStatus::Passed,
                };
                let duration = now.saturating_sub(self.last_result);
                self.last_result = now;
                self.running = None;
                let diagnostics = std::mem::take(&mut self.diagnostics);
                self.tests.push(KernelTest { name, status, duration, diagnostics });
                self.tests.last().map_or(Event::Quiet, Event::Ended)
            }
        }
    }

    fn record(&mut self, record: Record, now: Duration) -> Event<'_> {
        match record {
            Record::Boot(boot) => return Event::Booted(self.boot.insert(boot)),
            Record::Start { test } => {
                self.last_result = now;
                self.diagnostics.clear();
                return Event::Started(self.running.insert(test));
            }
            Record::Phase(phase) => {
                self.phases.push(phase);
                return self.phases.last().map_or(Event::Quiet, Event::Phase);
            }
            Record::Test { name, about } => self.listed.push((name, about)),
            Record::Cpu(cpu) => self.cpus.push(cpu),
            Record::Oracle(oracle) => self.oracles.push(oracle),
            Record::Backtrace(backtrace) => self.backtraces.push(backtrace),
            Record::Hang(hang) => self.hang = Some(hang),
            Record::End(end) => self.end = Some(end),
            Record::Unknown { .. } => {}
        }
        Event::Quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(lines: &[&str]) -> Transcript {
        let mut transcript = Transcript::default();
        for (second, line) in lines.iter().enumerate() {
            transcript.feed(line, Duration::from_secs(second as u64));
        }
        transcript
    }

    #[test]
    fn a_result_carries_the_time_since_its_start_and_its_own_diagnostics() {
        let run = transcript(&[
            "1..2",
            "# stray",
            r#"@start {"test":"a"}"#,
            "# two frames short",
            "[    0.100000] cpu1 WARN mm: odd",
            "not ok 1 a",
            r#"@start {"test":"b"}"#,
            "ok 2 b",
        ]);
        assert_eq!(run.tests[0].status, TestStatus::Failed);
        assert_eq!(run.tests[0].duration, Duration::from_secs(3));
        assert_eq!(run.tests[0].diagnostics, ["two frames short", "[    0.100000] cpu1 WARN mm: odd"]);
        assert!(run.tests[1].diagnostics.is_empty());
    }

    #[test]
    fn a_test_that_began_and_did_not_report_is_the_running_one() {
        let run = transcript(&["1..4", r#"@start {"test":"a"}"#, "ok 1 a", r#"@start {"test":"b"}"#]);
        assert_eq!(run.running.as_deref(), Some("b"));
        assert_eq!(run.not_run(), 2);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut run = Transcript::default();
        for number in 0..100 {
            run.feed(&format!("line {number}"), Duration::ZERO);
        }
        assert_eq!(run.tail.len(), TAIL_LINES);
        assert_eq!(run.tail.back().map(String::as_str), Some("line 99"));
    }
}
