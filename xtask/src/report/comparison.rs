//! The split-lock kernel against the single-lock kernel, phase by phase.

use protocol::record::Phase;
use serde::Serialize;

use super::figures::{grouped, median, rate};
use super::table::Table;
use crate::build::Locks;

/// Rates of each phase, in runs of both kernels.
#[derive(Default)]
pub struct Comparison {
    phases: Vec<Rates>,
}

struct Rates {
    phase: String,
    split: Vec<f64>,
    single: Vec<f64>,
}

/// One phase's outcome.
#[derive(Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The phase.
    pub phase: String,
    /// Median rate with split locks, faults per second.
    pub split: f64,
    /// Median rate with one lock, faults per second.
    pub single: f64,
    /// How many times faster the split kernel is.
    pub ratio: f64,
}

impl Comparison {
    /// Adds a run. A phase without a rate says nothing.
    pub fn add(&mut self, locks: Locks, phases: &[Phase]) {
        for phase in phases {
            let Some(rate) = rate(&phase.figures) else {
                continue;
            };
            let index = self.phases.iter().position(|known| known.phase == phase.phase).unwrap_or_else(|| {
                self.phases.push(Rates { phase: phase.phase.clone(), split: Vec::new(), single: Vec::new() });
                self.phases.len() - 1
            });
            match locks {
                Locks::Split | Locks::SplitPte => self.phases[index].split.push(rate),
                Locks::Single => self.phases[index].single.push(rate),
            }
        }
    }

    /// The medians and their ratios.
    pub fn figures(&self) -> Vec<Ratio> {
        let ratio = |rates: &Rates| {
            let (split, single) = (median(&rates.split)?, median(&rates.single)?);
            Some(Ratio { phase: rates.phase.clone(), split, single, ratio: split / single })
        };
        self.phases.iter().filter_map(ratio).collect()
    }

    /// The same, for people, with the range the runs fell in.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["phase", "split faults/s", "(range)", "single faults/s", "(range)", "ratio"]);
        for figures in self.figures() {
            let Some(rates) = self.phases.iter().find(|rates| rates.phase == figures.phase) else {
                continue;
            };
            table.row(vec![
                figures.phase,
                whole(figures.split),
                range(&rates.split),
                whole(figures.single),
                range(&rates.single),
                format!("{:.2}", figures.ratio),
            ]);
        }
        table
    }
}

fn whole(rate: f64) -> String {
    grouped(rate.round() as u64)
}

fn range(rates: &[f64]) -> String {
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    format!("{} - {}", whole(least), whole(most))
}

#[cfg(test)]
mod tests {
    use protocol::Record;

    use super::*;

    fn phase(faults: u64) -> Vec<Phase> {
        let json =
            format!(r#"phase {{"workload":"storm","phase":"disjoint","faults":{faults},"nanoseconds":1000000000}}"#);
        let Some(Record::Phase(phase)) = Record::parse(&json) else { panic!("{json}") };
        vec![phase]
    }

    #[test]
    fn medians_are_compared_so_one_bad_run_does_not_count() {
        let mut comparison = Comparison::default();
        for (split, single) in [(300, 100), (1, 150), (320, 160)] {
            comparison.add(Locks::Split, &phase(split));
            comparison.add(Locks::Single, &phase(single));
        }
        let figures = comparison.figures();
        assert_eq!(figures.len(), 1);
        assert_eq!((figures[0].split, figures[0].single, figures[0].ratio), (300.0, 150.0, 2.0));
        assert!(comparison.table().to_string().contains("2.00"));
    }

    #[test]
    fn a_phase_that_only_one_kernel_has_is_left_out() {
        let mut comparison = Comparison::default();
        comparison.add(Locks::Split, &phase(1));
        assert!(comparison.figures().is_empty());
    }
}
