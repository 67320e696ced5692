//! What one run said, added up line by line.

use std::collections::VecDeque;
use std::time::Duration;

use super::logline::Level;
use super::record::{Backtrace, Boot, Cpu, End, Hang, Oracle, Phase};
use super::{Ktap, Line, LogLine, Record};

/// So many last lines are kept.
const TAIL_LINES: usize = 40;
/// Log target of what a dying kernel says of its CPUs (`docs/harness.md`).
const REPORT_TARGET: &str = "report";

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

/// A piece of what a dying kernel says of its CPUs, in its own order.
#[derive(Clone, Debug, PartialEq)]
pub enum LastWord {
    /// Registers, locks held and waited for.
    Text(String),
    /// A backtrace, unsymbolised.
    Backtrace(Backtrace),
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
    /// What the kernel said of its CPUs when it died.
    pub last_words: Vec<LastWord>,
    /// The watchdog's verdict.
    pub hang: Option<Hang>,
    /// The last record of a run that ended by itself.
    pub end: Option<End>,
    /// Damaged lines.
    pub torn: Vec<String>,
    /// `ERROR` lines of the log, last words aside.
    pub errors: Vec<String>,
    /// The last lines of any kind, last words aside.
    pub tail: VecDeque<String>,
    diagnostics: Vec<String>,
    last_result: Duration,
}

impl Transcript {
    /// Takes one whole line that came `now` after the start of the run.
    pub fn feed(&mut self, text: &str, now: Duration) -> Event<'_> {
        let line = Line::parse(text);
        if !is_last_word(&line) {
            self.keep(text);
        }
        match line {
            Line::Ktap(ktap) => self.ktap(ktap, now),
            Line::Record(record) => self.record(record, now),
            Line::Log(line) => {
                self.log(line, text);
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
        self.keep(&text);
        self.torn.push(text);
    }

    /// Promised tests that never got a result, the running one aside.
    pub fn not_run(&self) -> u32 {
        let accounted = self.tests.len() as u32 + u32::from(self.running.is_some());
        self.planned.unwrap_or(0).saturating_sub(accounted)
    }

    fn keep(&mut self, text: &str) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(text.to_owned());
    }

    fn log(&mut self, line: LogLine, text: &str) {
        if line.target == REPORT_TARGET {
            self.last_words.push(LastWord::Text(line.text));
            return;
        }
        if line.level <= Level::Warn && self.running.is_some() {
            self.diagnostics.push(text.to_owned());
        }
        if line.level == Level::Error {
            self.errors.push(line.text);
        }
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
            Record::Backtrace(backtrace) => self.last_words.push(LastWord::Backtrace(backtrace)),
            Record::Hang(hang) => self.hang = Some(hang),
            Record::End(end) => self.end = Some(end),
            Record::Unknown { .. } => {}
        }
        Event::Quiet
    }
}

fn is_last_word(line: &Line) -> bool {
    match line {
        Line::Log(line) => line.target == REPORT_TARGET,
        Line::Record(record) => matches!(record, Record::Backtrace(_)),
        _ => false,
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
        run.feed_unfinished("line 10".to_owned());
        assert_eq!(run.tail.len(), TAIL_LINES);
        assert_eq!(run.tail.back().map(String::as_str), Some("line 10"));
    }

    #[test]
    fn last_words_keep_their_order_and_do_not_push_the_log_out() {
        let run = transcript(&[
            "[    0.100000] cpu0 ERROR panic: no more frames",
            "[    0.100001] cpu0 ERROR report: cpu 0, thread 'main':",
            r#"@bt {"cpu":0,"reason":"panic","rip":"0x10","frames":[]}"#,
            "[    0.100002] cpu0 ERROR report: cpu 0 holds a lock",
        ]);
        assert_eq!(run.errors, ["no more frames"]);
        assert_eq!(run.tail.len(), 1);
        let kinds: Vec<bool> = run.last_words.iter().map(|word| matches!(word, LastWord::Text(_))).collect();
        assert_eq!(kinds, [true, false, true]);
    }
}
