//! Whether the tables of `docs/locking.md` and `docs/verification.md` tell the truth: every helper, invariant and race of the
//! specification has a row, every test a row cites was in this run and stands in the column of its kind, and the sabotages
//! of a row are those that break its rule, each noticed by a test of that row; where none does, the row says why. Pure: text and
//! results in, complaints out.

use std::collections::BTreeSet;

use super::tally::{Case, Outcome};
use crate::sabotage::{Sabotage, Test};

/// What the check is listed under.
pub const SUITE: &str = "docs";
/// Its name.
pub const NAME: &str = "every_helper_invariant_and_race_is_shown_by_a_test_that_ran";
/// The documents, from the root of the workspace: helpers stand in the first, invariants and races in the second.
pub const DOCUMENTS: [&str; 2] = ["docs/locking.md", "docs/verification.md"];

/// Helpers that must have a row (spec section 1, and the entry points around them).
const HELPERS: &[&str] = &[
    "pte_offset_map",
    "pte_offset_map_ro_nolock",
    "pte_offset_map_rw_nolock",
    "pte_offset_map_lock",
    "pte_unmap",
    "pte_unmap_unlock",
    "pte_alloc",
    "pte_alloc_map",
    "pte_alloc_map_lock",
    "get_locked_pte",
    "pte_lockptr",
    "ptep_lockptr",
    "pmd_lockptr",
    "pmd_lock",
    "pud_lockptr",
    "pud_lock",
    "pmd_trans_huge_lock",
    "huge_pte_lockptr",
    "huge_pte_lock",
    "pmd_install",
    "pmd_same",
    "pte_same",
    "pagetable_pte_ctor",
    "pagetable_pmd_ctor",
    "pagetable_pud_ctor",
    "pagetable_p4d_ctor",
    "pagetable_pgd_ctor",
    "pagetable_dtor",
    "pagetable_dtor_free",
    "pgtable_init",
    "ptlock_cache_init",
    "pgtable_cache_init",
    "ptlock_alloc",
    "ptlock_free",
    "pgd_alloc",
    "pgd_free",
    "pte_alloc_one",
    "pte_free",
    "pmd_alloc_one",
    "pmd_free",
    "pte_free_tlb",
    "pmd_free_tlb",
    "pud_free_tlb",
];
const INVARIANTS: u32 = 49;
const RACES: u32 = 42;
/// Helpers that only a build with more levels than the usual one runs: host tests show them.
const ON_HOST_ALONE: &[&str] = &["pagetable_p4d_ctor"];
/// Rows that may say `n/a`: they need a feature this kernel does not have.
const ABSENT: &[&str] = &["I27", "R9", "R10", "R16", "R22", "R32", "R33", "R36", "R42"];

/// Races that the specification marks (S): whole, they are too long for a model, so they must be shown on the simulated machine and
/// in the kernel, whatever models show of them. All others are marked (L) and need a model.
const SAMPLED: &[&str] =
    &["R9", "R11", "R14", "R18", "R19", "R20", "R21", "R22", "R25", "R31", "R34", "R35", "R36", "R37", "R42"];

/// What of this run may be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// All tests of the host ran.
    pub host: bool,
    /// All tests in the kernels ran.
    pub kernel: bool,
    /// The kernels were watched from outside.
    pub outside: bool,
    /// The kernels had the eight CPUs and the memory that their tests are written for. With less some have nothing to do, and
    /// skip.
    pub usual: bool,
}

/// What is wrong with `document`, line by line. A citation is a test's suite and name in backquotes, as `--list` shows them.
pub fn complaints(document: &str, cases: &[Case], sabotages: &[&Sabotage], ran: Ran) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut rows = BTreeSet::new();
    let known: BTreeSet<String> = expected().collect();
    for row in document.lines().filter_map(Row::parse).filter(|row| known.contains(row.subject)) {
        if !rows.insert(row.subject.to_owned()) {
            complaints.push(format!("{}: has two rows", row.subject));
        }
        complaints
            .extend(row.complaint(cases, sabotages, ran).map(|complaint| format!("{}: {complaint}", row.subject)));
    }
    complaints.extend(known.difference(&rows).map(|missing| format!("{missing}: has no row")));
    complaints
}

/// The subjects that need a row.
fn expected() -> impl Iterator<Item = String> {
    let invariants = (1..=INVARIANTS).map(|number| format!("I{number}"));
    let races = (1..=RACES).map(|number| format!("R{number}"));
    HELPERS.iter().map(|helper| (*helper).to_owned()).chain(invariants).chain(races)
}

/// A table row that may be about a helper, an invariant or a race, which its first cell names.
struct Row<'a> {
    subject: &'a str,
    cells: Vec<&'a str>,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let cells = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        let (first, rest) = cells.split_once('|')?;
        Some(Self { subject: first.trim().trim_matches('`'), cells: rest.split('|').map(str::trim).collect() })
    }

    fn complaint(&self, cases: &[Case], sabotages: &[&Sabotage], ran: Ran) -> Option<String> {
        if HELPERS.contains(&self.subject) {
            let cited: Vec<&str> = self.cells.last().copied().map_or_else(Vec::new, quoted);
            return shown(&cited, cases, ran).or_else(|| self.one_sided(&cited));
        }
        if let Some(feature) = self.cells.get(1).and_then(|cell| cell.strip_prefix("n/a: ")) {
            let allowed = ABSENT.contains(&self.subject) && !feature.is_empty();
            return (!allowed).then(|| "is not one of the rows that may be n/a".to_owned());
        }
        let &[_, models, simulated, kernel, sabotaged] = &self.cells[..] else {
            return Some("has not the cells of its table".to_owned());
        };
        let columns = [(models, Kind::Model), (simulated, Kind::Simulated), (kernel, Kind::Kernel)];
        let cited: Vec<&str> = columns.iter().flat_map(|&(cell, _)| quoted(cell)).collect();
        let astray = columns.iter().find_map(|&(cell, kind)| {
            let other = quoted(cell).into_iter().find(|citation| Kind::of(citation) != Some(kind))?;
            Some(format!("{other:?} does not belong in the column of {}", kind.word()))
        });
        astray
            .or_else(|| shown(&cited, cases, ran))
            .or_else(|| self.sabotaged(sabotaged, &cited, sabotages))
            .or_else(|| self.unlike_its_mark(models, simulated, kernel))
    }

    /// A race has tests of the kinds that the specification asks for.
    fn unlike_its_mark(&self, models: &str, simulated: &str, kernel: &str) -> Option<String> {
        let lacks = |cell: &str| quoted(cell).is_empty();
        if !self.subject.starts_with('R') {
            None
        } else if !SAMPLED.contains(&self.subject) {
            lacks(models).then(|| "is marked (L) and cites no model".to_owned())
        } else {
            let one_is_missing = lacks(simulated) || lacks(kernel);
            one_is_missing
                .then(|| "is marked (S) and has not a test on the simulated machine and one in the kernel".to_owned())
        }
    }

    /// A helper is shown in the kernel and on the host.
    fn one_sided(&self, cited: &[&str]) -> Option<String> {
        let in_kernel = |citation: &&str| Kind::of(citation) == Some(Kind::Kernel);
        if cited.iter().all(in_kernel) {
            Some("cites no test on the host".to_owned())
        } else if !cited.iter().any(in_kernel) && !ON_HOST_ALONE.contains(&self.subject) {
            Some("cites no test in the kernel".to_owned())
        } else {
            None
        }
    }

    /// The sabotages that `cell` should name, and that each of them is noticed by a test of this row. Where there is none, why.
    fn sabotaged(&self, cell: &str, cited: &[&str], sabotages: &[&Sabotage]) -> Option<String> {
        let named = quoted(cell);
        if named.is_empty() && cell.strip_prefix("none: ").is_none_or(str::is_empty) {
            return Some("names no sabotage and does not say why".to_owned());
        }
        let concern = |sabotage: &&&Sabotage| sabotage.concerns(self.subject);
        if let Some(name) = named.iter().find(|name| !sabotages.iter().filter(concern).any(|one| one.name == **name)) {
            return Some(format!("no sabotage {name:?} breaks it"));
        }
        sabotages.iter().filter(concern).find_map(|sabotage| {
            let noticed_by: Vec<String> = sabotage.noticed_by.iter().map(Test::citation).collect();
            if !named.contains(&sabotage.name) {
                Some(format!("the sabotage {:?}, which breaks it, is missing", sabotage.name))
            } else if !noticed_by.iter().any(|test| cited.contains(&test.as_str())) {
                Some(format!("no test of its row notices the sabotage {:?}", sabotage.name))
            } else {
                None
            }
        })
    }
}

/// What kind of test shows something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Every interleaving, of the code or of the protocol.
    Model,
    /// The code on the simulated machine, schedules under control or not.
    Simulated,
    /// The kernel.
    Kernel,
}

impl Kind {
    fn of(citation: &str) -> Option<Self> {
        match citation.split_once(' ').map_or(citation, |(suite, _)| suite) {
            "kernel" | "guest" => Some(Self::Kernel),
            "mm" | "mm/shuttle_operations" => Some(Self::Simulated),
            suite if suite == "models" || suite.starts_with("mm/loom") => Some(Self::Model),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Simulated => "the simulated machine",
            Self::Kernel => "the kernel",
        }
    }
}

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Why `cited` shows nothing in this run.
fn shown(cited: &[&str], cases: &[Case], ran: Ran) -> Option<String> {
    if cited.is_empty() {
        return Some("cites no test".to_owned());
    }
    cited.iter().find_map(|citation| not_shown(citation, cases, ran))
}

/// Why `citation` shows nothing in this run.
fn not_shown(citation: &str, cases: &[Case], ran: Ran) -> Option<String> {
    let Some((suite, name)) = citation.split_once(' ') else {
        return Some(format!("{citation:?} is no test's suite and name"));
    };
    let asked_for = match suite {
        "kernel" => ran.kernel,
        "guest" => ran.outside,
        _ => ran.host,
    };
    if !asked_for {
        return None;
    }
    // Of which kernel, build and clock stands in brackets behind a suite's name: one that ran the test is enough.
    let is_cited = |case: &&Case| case.name == name && case.suite.split(' ').next() == Some(suite);
    let outcomes: Vec<Outcome> = cases.iter().filter(is_cited).map(|case| case.outcome).collect();
    if outcomes.is_empty() {
        return Some(format!("there is no test {citation:?}"));
    }
    // A test that failed is reported by itself.
    let did_run = |outcome: &Outcome| matches!(outcome, Outcome::Passed | Outcome::Failed);
    let excused = suite == "kernel" && !ran.usual && outcomes.contains(&Outcome::Skipped);
    (!outcomes.iter().any(did_run) && !excused).then(|| format!("{citation:?} did not run"))
}

#[cfg(test)]
mod tests;
