//! `--junit` and `--json`: the results of a test session for other programs.

use std::collections::BTreeMap;

use quick_junit::{NonSuccessKind, Report, SerializeError, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use crate::suite::{Case, Outcome, Tally};

/// As JUnit XML.
///
/// # Errors
/// When the library cannot write it.
pub fn junit(tally: &Tally) -> Result<String, SerializeError> {
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for case in tally.cases() {
        let suite = suites.entry(&case.suite).or_insert_with(|| TestSuite::new(case.suite.as_str()));
        suite.add_test_case(junit_case(case));
    }
    let mut report = Report::new("latchwork");
    report.add_test_suites(suites.into_values());
    report.to_string()
}

fn junit_case(case: &Case) -> TestCase {
    let mut status = match case.outcome {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Outcome::Skipped => TestCaseStatus::skipped(),
        Outcome::NotRun => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    if case.outcome != Outcome::Passed {
        if let Some(first) = case.detail.first() {
            status.set_message(first.as_str());
        }
        status.set_description(case.detail.join("\n"));
    }
    let mut written = TestCase::new(case.name.as_str(), status);
    written.set_classname(case.suite.as_str());
    if let Some(duration) = case.duration {
        written.set_time(duration);
    }
    written
}

/// As JSON.
///
/// # Errors
/// When the library cannot write it.
pub fn json(tally: &Tally) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Session<'a> {
        passed: usize,
        failed: usize,
        skipped: usize,
        not_run: usize,
        cases: &'a [Case],
    }
    serde_json::to_string_pretty(&Session {
        passed: tally.count(Outcome::Passed),
        failed: tally.count(Outcome::Failed),
        skipped: tally.count(Outcome::Skipped),
        not_run: tally.count(Outcome::NotRun),
        cases: tally.cases(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally::default();
        for (name, outcome) in [("a", Outcome::Passed), ("b<&>", Outcome::Failed), ("c", Outcome::Skipped)] {
            let detail = vec!["why".to_owned()];
            tally.add(Case { suite: "kernel".to_owned(), name: name.to_owned(), outcome, duration: None, detail });
        }
        tally
    }

    #[test]
    fn junit_counts_and_escapes() {
        let xml = junit(&tally()).unwrap();
        assert!(xml.contains(r#"tests="3""#) && xml.contains(r#"failures="1""#), "{xml}");
        assert!(xml.contains("b&lt;&amp;&gt;"), "{xml}");
    }

    #[test]
    fn json_is_read_back() {
        let read: serde_json::Value = serde_json::from_str(&json(&tally()).unwrap()).unwrap();
        assert_eq!(read["failed"], 1);
        assert_eq!(read["cases"][1]["outcome"], "failed");
    }
}
