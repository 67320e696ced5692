//! Reads what a Rust test program prints. Pure: lines in, results out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::tally::Outcome;

/// One result line.
#[derive(Clone, Debug, PartialEq)]
pub struct TestLine {
    /// The test's path.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, when the program was asked for it.
    pub duration: Option<Duration>,
}

/// Reads one test program's output.
#[derive(Default)]
pub struct LibtestOutput {
    /// Whether the closing `test result:` came; a program that died never writes it.
    pub finished: bool,
    outputs: BTreeMap<String, Vec<String>>,
    current: Option<String>,
}

impl LibtestOutput {
    /// Takes one line.
    pub fn feed(&mut self, line: &str) -> Option<TestLine> {
        if line.starts_with("test result: ") {
            self.finished = true;
            self.current = None;
            return None;
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.current = Some(name.to_owned());
            return None;
        }
        // The list of names after the outputs.
        if line == "failures:" {
            self.current = None;
            return None;
        }
        if let Some(name) = &self.current {
            self.outputs.entry(name.clone()).or_default().push(line.to_owned());
            return None;
        }
        test_line(line)
    }

    /// What a failed test said.
    pub fn output(&mut self, name: &str) -> Vec<String> {
        let mut lines = self.outputs.remove(name).unwrap_or_default();
        while lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        lines
    }
}

/// Reads `test NAME ... ok <0.001s>`.
fn test_line(line: &str) -> Option<TestLine> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let (word, time) = match result.split_once(" <") {
        Some((word, time)) => (word, time.strip_suffix("s>")),
        None => (result, None),
    };
    let outcome = match word {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        word if word.starts_with("ignored") => Outcome::Skipped,
        _ => return None,
    };
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    let duration =
        time.and_then(|time| time.parse().ok()).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Some(TestLine { name: name.to_owned(), outcome, duration })
}

/// Reads one line of `--list`: `name: test`.
pub fn listed(line: &str) -> Option<&str> {
    line.strip_suffix(": test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_with_and_without_time() {
        let line = test_line("test protocol::ktap::tests::plans ... ok <0.003s>").unwrap();
        assert_eq!(line.name, "protocol::ktap::tests::plans");
        assert_eq!((line.outcome, line.duration), (Outcome::Passed, Some(Duration::from_millis(3))));
        assert_eq!(test_line("test a ... FAILED").unwrap().outcome, Outcome::Failed);
        assert_eq!(test_line("test a ... ignored, too slow").unwrap().outcome, Outcome::Skipped);
        assert_eq!(test_line("test mm/src/a.rs - f (line 5) ... ok").unwrap().name, "mm/src/a.rs - f (line 5)");
        assert_eq!(test_line("test a - should panic ... ok").unwrap().name, "a");
        assert_eq!(test_line("running 3 tests"), None);
    }

    #[test]
    fn a_failed_tests_words_are_kept_and_not_taken_for_results() {
        let mut output = LibtestOutput::default();
        let lines = [
            "running 1 test",
            "test a ... FAILED",
            "",
            "failures:",
            "",
            "---- a stdout ----",
            "test fake ... ok",
            "assertion failed",
            "",
            "failures:",
            "    a",
            "",
            "test result: FAILED. 0 passed; 1 failed",
        ];
        let results: Vec<_> = lines.iter().filter_map(|line| output.feed(line)).collect();
        assert_eq!(results.len(), 1);
        assert!(output.finished);
        assert_eq!(output.output("a"), ["test fake ... ok", "assertion failed"]);
    }

    #[test]
    fn a_program_that_died_has_not_finished() {
        let mut output = LibtestOutput::default();
        output.feed("test a ... ok");
        assert!(!output.finished);
    }
}
