//! Results of any kind, and their sum.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// How one case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should.
    Failed,
    /// It cannot run here.
    Skipped,
    /// Its turn never came: the kernel died before.
    NotRun,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// What it belongs to: `mm`, `xtask`, `kernel`, …
    pub suite: String,
    /// Its name in there.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, where known.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub duration: Option<Duration>,
    /// What it said, if that matters.
    pub detail: Vec<String>,
}

fn seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_some(&duration.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts([usize; 4]);

impl Counts {
    /// Counts one.
    pub fn add(&mut self, outcome: Outcome) {
        self.0[outcome as usize] += 1;
    }

    /// How many ended so.
    pub fn of(&self, outcome: Outcome) -> usize {
        self.0[outcome as usize]
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.of(Outcome::Passed), self.of(Outcome::Failed))?;
        for (outcome, word) in [(Outcome::Skipped, "skipped"), (Outcome::NotRun, "not run")] {
            match self.of(outcome) {
                0 => {}
                count => write!(f, ", {count} {word}")?,
            }
        }
        Ok(())
    }
}

/// All cases so far.
#[derive(Debug, Default)]
pub struct Tally {
    cases: Vec<Case>,
    counts: Counts,
}

impl Tally {
    /// Adds one.
    pub fn add(&mut self, case: Case) {
        self.counts.add(case.outcome);
        self.cases.push(case);
    }

    /// All of them, in the order they ended.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.counts.of(outcome)
    }

    /// Whether there is something, and nothing of it is bad.
    pub fn passed(&self) -> bool {
        self.count(Outcome::Passed) > 0 && self.count(Outcome::Failed) == 0 && self.count(Outcome::NotRun) == 0
    }
}

/// The closing line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(outcomes: &[Outcome]) -> Tally {
        let mut tally = Tally::default();
        for &outcome in outcomes {
            let (suite, name) = ("s".to_owned(), "n".to_owned());
            tally.add(Case { suite, name, outcome, duration: None, detail: Vec::new() });
        }
        tally
    }

    #[test]
    fn the_closing_line_names_what_there_is() {
        assert_eq!(tally(&[]).to_string(), "0 passed, 0 failed");
        assert_eq!(tally(&[Outcome::Passed, Outcome::Passed]).to_string(), "2 passed, 0 failed");
        let all = tally(&[Outcome::Passed, Outcome::Failed, Outcome::Skipped, Outcome::NotRun]);
        assert_eq!(all.to_string(), "1 passed, 1 failed, 1 skipped, 1 not run");
    }

    #[test]
    fn nothing_at_all_is_no_pass() {
        assert!(!tally(&[]).passed());
        assert!(!tally(&[Outcome::Skipped]).passed());
        assert!(tally(&[Outcome::Passed, Outcome::Skipped]).passed());
        assert!(!tally(&[Outcome::Passed, Outcome::NotRun]).passed());
        assert!(!tally(&[Outcome::Passed, Outcome::Failed]).passed());
    }
}
