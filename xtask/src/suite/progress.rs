//! What a person sees while tests run: one line per result, and on a terminal a line for what runs now.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::tally::{Case, Counts, Outcome, Tally};

/// How often the line of what runs now is drawn.
const REDRAW: Duration = Duration::from_millis(200);

/// A part of the tests.
struct Part {
    name: String,
    counts: Counts,
    spent: Duration,
}

/// Writes results and counts them.
pub struct Progress {
    tally: Tally,
    /// Parts whose results are counted by themselves, too.
    parts: Vec<Part>,
    /// Which of them is under way, and since when.
    part: (usize, Instant),
    terminal: bool,
    colour: bool,
    running: Option<(String, Instant)>,
    drawn: Instant,
    planned: Option<u32>,
    done: u32,
}

impl Progress {
    /// On standard output; with colour and a live line only if that is a terminal.
    pub fn new() -> Self {
        let terminal = io::stdout().is_terminal() && std::env::var_os("CI").is_none();
        Self {
            tally: Tally::default(),
            parts: Vec::new(),
            part: (0, Instant::now()),
            terminal,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
            running: None,
            drawn: Instant::now(),
            planned: None,
            done: 0,
        }
    }

    /// From here on results count as those of `name`, too.
    pub fn part(&mut self, name: &str) {
        self.pause();
        let known = self.parts.iter().position(|part| part.name == name);
        self.part.0 = known.unwrap_or_else(|| {
            self.parts.push(Part { name: name.to_owned(), counts: Counts::default(), spent: Duration::ZERO });
            self.parts.len() - 1
        });
    }

    /// Counts the time since the last call for the part that is under way.
    fn pause(&mut self) {
        let (number, since) = self.part;
        self.part.1 = Instant::now();
        if let Some(part) = self.parts.get_mut(number) {
            part.spent += since.elapsed();
        }
    }

    /// Opens a section of the list.
    pub fn section(&mut self, text: &str) {
        self.clear();
        println!("{:>12} {text}", "----");
        self.planned = None;
        self.done = 0;
    }

    /// Says something that is no result.
    pub fn note(&mut self, text: &str) {
        self.clear();
        println!("{:>12} {text}", "");
    }

    /// So many results will follow.
    pub fn planned(&mut self, count: u32) {
        self.planned = Some(count);
        self.done = 0;
    }

    /// Something runs now.
    pub fn started(&mut self, name: &str) {
        self.running = Some((name.to_owned(), Instant::now()));
    }

    /// Draws the line of what runs now, if it is time.
    pub fn tick(&mut self) {
        let Some((name, since)) = &self.running else {
            return;
        };
        if !self.terminal || self.drawn.elapsed() < REDRAW {
            return;
        }
        self.drawn = Instant::now();
        let of = self.planned.map_or_else(String::new, |planned| format!("{}/{planned} ", self.done));
        print!("\r\x1b[K{:>12} {of}{name} {:.0}s", "...", since.elapsed().as_secs_f64());
        // A terminal that is gone is no reason to stop testing.
        let _ = io::stdout().flush();
    }

    /// Writes and counts one result; a failure's words follow it at once.
    pub fn ended(&mut self, case: Case) {
        self.clear();
        self.running = None;
        self.done += 1;
        let (word, colour) = match case.outcome {
            Outcome::Passed => ("PASS", 32),
            Outcome::Failed => ("FAIL", 31),
            Outcome::Skipped => ("SKIP", 33),
            Outcome::NotRun => ("NOT RUN", 33),
        };
        let time = case.duration.map_or_else(String::new, |duration| format!("{:.3}s", duration.as_secs_f64()));
        let word = self.paint(&format!("{word:>12}"), colour);
        println!("{word} [{time:>9}] {} {}", case.suite, case.name);
        match case.outcome {
            Outcome::Failed => case.detail.iter().for_each(|line| println!("{:>16}{line}", "")),
            Outcome::Skipped => case.detail.iter().take(1).for_each(|line| println!("{:>16}{line}", "")),
            Outcome::Passed | Outcome::NotRun => {}
        }
        if let Some(part) = self.parts.get_mut(self.part.0) {
            part.counts.add(case.outcome);
        }
        self.tally.add(case);
    }

    /// Repeats the failures, so that nobody has to scroll for them, and closes with each part's counts and the sum.
    pub fn close(mut self) -> Tally {
        self.clear();
        self.pause();
        let bad = |case: &&Case| case.outcome == Outcome::Failed;
        let failures: Vec<_> = self.tally.cases().iter().filter(bad).collect();
        if !failures.is_empty() {
            println!("{:>12} failed:", "----");
            for case in failures {
                let word = self.paint(&format!("{:>12}", "FAIL"), 31);
                println!("{word} {} {}", case.suite, case.name);
            }
        }
        self.counts().iter().for_each(|line| println!("{line}"));
        println!("{}", self.tally);
        self.tally
    }

    /// A line for each part, if there are several.
    fn counts(&self) -> Vec<String> {
        let width = self.parts.iter().map(|part| part.name.len()).fold(12, usize::max);
        let line = |Part { name, counts, spent }: &Part| format!("{name:>width$} {counts} in {} s", spent.as_secs());
        if self.parts.len() > 1 { self.parts.iter().map(line).collect() } else { Vec::new() }
    }

    /// The sum so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    fn clear(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }

    fn paint(&self, text: &str, colour: u8) -> String {
        if self.colour { format!("\x1b[1;{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(outcome: Outcome) -> Case {
        Case { suite: "s".to_owned(), name: "n".to_owned(), outcome, duration: None, detail: Vec::new() }
    }

    #[test]
    fn each_part_has_its_count_and_all_count_together() {
        let mut progress = Progress::new();
        progress.part("host");
        progress.ended(case(Outcome::Passed));
        assert_eq!(progress.counts(), Vec::<String>::new(), "one part is the whole");
        progress.part("i686-pae");
        progress.ended(case(Outcome::Skipped));
        progress.part("host");
        progress.ended(case(Outcome::Failed));
        progress.pause();
        assert!(progress.parts.iter().all(|part| part.spent > Duration::ZERO));
        progress.parts.iter_mut().for_each(|part| part.spent = Duration::from_millis(61_900));
        let expected =
            ["        host 1 passed, 1 failed in 61 s", "    i686-pae 0 passed, 0 failed, 1 skipped in 61 s"];
        assert_eq!(progress.counts(), expected);
        assert_eq!(progress.close().to_string(), "1 passed, 1 failed, 1 skipped");
    }
}
