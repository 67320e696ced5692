//! Whether the tables of `docs/locking.md` tell the truth: every helper, invariant and race of the specification has a row,
//! and every test a row cites was in this run. Pure: text and results in, complaints out.

use std::collections::BTreeSet;

use super::tally::{Case, Outcome};

/// What the check is listed under.
pub const SUITE: &str = "docs";
/// Its name.
pub const NAME: &str = "every_helper_invariant_and_race_is_shown_by_a_test_that_ran";
/// The document, from the root of the workspace.
pub const DOCUMENT: &str = "docs/locking.md";

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
const ABSENT: &[&str] = &["R9", "R10", "R11", "R16", "R22", "R32", "R33", "R36", "R42"];

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
pub fn complaints(document: &str, cases: &[Case], ran: Ran) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut rows = BTreeSet::new();
    let known: BTreeSet<String> = expected().collect();
    for row in document.lines().filter_map(Row::parse).filter(|row| known.contains(row.subject)) {
        if !rows.insert(row.subject.to_owned()) {
            complaints.push(format!("{}: has two rows", row.subject));
        }
        complaints.extend(row.complaint(cases, ran).map(|complaint| format!("{}: {complaint}", row.subject)));
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

/// A table row that may be about a helper, an invariant or a race: its first cell names it, its last says what shows it.
struct Row<'a> {
    subject: &'a str,
    shown_by: &'a str,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let cells = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        let (first, rest) = cells.split_once('|')?;
        let shown_by = rest.rsplit_once('|').map_or(rest, |(_, last)| last).trim();
        Some(Self { subject: first.trim().trim_matches('`'), shown_by })
    }

    fn complaint(&self, cases: &[Case], ran: Ran) -> Option<String> {
        if let Some(feature) = self.shown_by.strip_prefix("n/a: ") {
            let allowed = ABSENT.contains(&self.subject) && !feature.is_empty();
            return (!allowed).then(|| "is not one of the rows that may be n/a".to_owned());
        }
        let cited: Vec<&str> = self.shown_by.split('`').skip(1).step_by(2).collect();
        if cited.is_empty() {
            return Some("cites no test".to_owned());
        }
        cited.iter().find_map(|citation| not_shown(citation, cases, ran)).or_else(|| self.one_sided(&cited))
    }

    /// A helper is shown in the kernel and on the host.
    fn one_sided(&self, cited: &[&str]) -> Option<String> {
        let in_kernel = |citation: &&str| citation.starts_with("kernel ");
        if !HELPERS.contains(&self.subject) {
            None
        } else if cited.iter().all(in_kernel) {
            Some("cites no test on the host".to_owned())
        } else if !cited.iter().any(in_kernel) && !ON_HOST_ALONE.contains(&self.subject) {
            Some("cites no test in the kernel".to_owned())
        } else {
            None
        }
    }
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
mod tests {
    use super::*;

    const ALL: Ran = Ran { host: true, kernel: true, outside: true, usual: true };

    fn case(suite: &str, name: &str, outcome: Outcome) -> Case {
        Case { suite: suite.to_owned(), name: name.to_owned(), outcome, duration: None, detail: Vec::new() }
    }

    /// A document with a row for everything, all shown by `mm a::b` and `kernel race`, but `subject` by `shown_by`.
    fn document(subject: &str, shown_by: &str) -> String {
        let row = |name: String| {
            let shown_by = if name == subject { shown_by } else { "`mm a::b`, `kernel race`" };
            format!("| `{name}` | what it says | {shown_by} |\n")
        };
        expected().map(row).collect()
    }

    fn complaints_of(subject: &str, shown_by: &str, ran: Ran) -> Vec<String> {
        let cases = [
            case("mm", "a::b", Outcome::Passed),
            case("mm/loom_fault", "model", Outcome::Passed),
            case("mm (single lock)", "only_single", Outcome::Passed),
            case("kernel [shift 4 seed 1]", "race", Outcome::Passed),
            case("kernel", "skipped", Outcome::Skipped),
            case("kernel", "never", Outcome::NotRun),
            case("kernel (x86_64)", "pae", Outcome::Skipped),
            case("kernel (i686-pae)", "pae", Outcome::Passed),
        ];
        complaints(&document(subject, shown_by), &cases, ran)
    }

    #[test]
    fn a_row_for_everything_with_tests_that_ran_is_well() {
        for citation in ["`mm a::b`, `kernel race`", "`mm/loom_fault model`", "`mm only_single`", "`kernel pae`"] {
            assert_eq!(complaints_of("R4", citation, ALL), Vec::<String>::new());
        }
    }

    #[test]
    fn a_test_that_does_not_exist_or_did_not_run_is_named() {
        assert_eq!(complaints_of("R4", "`mm a::b`, `mm a::c`", ALL), [r#"R4: there is no test "mm a::c""#]);
        assert_eq!(complaints_of("I7", "`kernel a::b`", ALL), [r#"I7: there is no test "kernel a::b""#]);
        assert_eq!(complaints_of("pmd_lock", "`kernel never`", ALL), [r#"pmd_lock: "kernel never" did not run"#]);
        assert_eq!(complaints_of("I7", "`kernel skipped`", ALL), [r#"I7: "kernel skipped" did not run"#]);
        assert_eq!(complaints_of("I7", "`kernel skipped`", Ran { usual: false, ..ALL }), Vec::<String>::new());
    }

    #[test]
    fn a_helper_is_shown_in_the_kernel_and_on_the_host() {
        assert_eq!(complaints_of("pmd_lock", "`mm a::b`", ALL), ["pmd_lock: cites no test in the kernel"]);
        assert_eq!(complaints_of("pmd_lock", "`kernel race`", ALL), ["pmd_lock: cites no test on the host"]);
        assert_eq!(complaints_of("pmd_lock", "`mm/loom_fault model`, `kernel race`", ALL), Vec::<String>::new());
        assert_eq!(complaints_of("pagetable_p4d_ctor", "`mm a::b`", ALL), Vec::<String>::new());
        assert_eq!(complaints_of("I7", "`mm a::b`", ALL), Vec::<String>::new());
        assert_eq!(complaints_of("I7", "`guest gone`", ALL), [r#"I7: there is no test "guest gone""#]);
    }

    #[test]
    fn a_part_that_was_not_asked_for_is_not_missed() {
        let from_inside = Ran { outside: false, ..ALL };
        assert_eq!(complaints_of("I7", "`mm a::b`, `guest gone`", from_inside), Vec::<String>::new());
        assert_eq!(complaints_of("I7", "`mm a::b`, `guest gone`", ALL).len(), 1);
        let host_alone = Ran { kernel: false, outside: false, ..ALL };
        assert_eq!(complaints_of("I7", "`mm a::b`, `kernel gone`", host_alone), Vec::<String>::new());
        assert_eq!(complaints_of("I7", "`mm gone`, `kernel gone`", host_alone).len(), 1);
    }

    #[test]
    fn a_row_may_do_without_a_test_only_where_the_feature_is_missing() {
        for (subject, word, allowed) in [
            ("R9", "n/a: no file mappings", true),
            ("R9", "n/a: ", false),
            ("R3", "n/a: no time", false),
            ("I30", "", false),
            ("I30", "some test", false),
            ("I30", "open", false),
        ] {
            assert_eq!(complaints_of(subject, word, ALL).is_empty(), allowed, "{subject} {word}");
        }
    }

    #[test]
    fn a_missing_and_a_double_row_are_named() {
        let all = document("", "");
        let without: String =
            all.lines().filter(|line| !line.contains("`I5`")).map(|line| format!("{line}\n")).collect();
        let cases = [case("mm", "a::b", Outcome::Passed), case("kernel", "race", Outcome::Passed)];
        assert_eq!(complaints(&without, &cases, ALL), ["I5: has no row"]);
        let twice = all.clone() + "| I5 | again | `mm a::b` |\n";
        assert_eq!(complaints(&twice, &cases, ALL), ["I5: has two rows"]);
    }
}
