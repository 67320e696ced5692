use std::fs;

use super::*;
use crate::sabotage::{self, Suite};
use crate::workspace::Workspace;

const ALL: Ran = Ran { host: true, kernel: true, outside: true, usual: true };

fn case(suite: &str, name: &str, outcome: Outcome) -> Case {
    Case { suite: suite.to_owned(), name: name.to_owned(), outcome, duration: None, detail: Vec::new() }
}

const SABOTAGES: &[&Sabotage] = &[&Sabotage {
    name: "recheck",
    breaks: "nobody looks again (I16, R3)",
    noticed_by: &[Test { suite: Suite::Loom("loom_fault"), name: "model" }],
}];

/// A row for `subject`: a helper's says what shows it, the others have a column for each kind of test and the sabotages.
fn row(subject: &str, cells: &str) -> String {
    format!("| `{subject}` | what it says | {cells} |\n")
}

/// What goes wrong nowhere.
fn well(subject: &str) -> &'static str {
    if HELPERS.contains(&subject) {
        "`mm a::b`, `kernel race`"
    } else if SABOTAGES[0].concerns(subject) {
        "`mm/loom_fault model` | `mm a::b` | `kernel race` | `recheck`"
    } else {
        "`mm/loom_fault model` | `mm a::b` | `kernel race` | none: so"
    }
}

/// A document with a row for everything, all well, but `subject` with `cells`.
fn document(subject: &str, cells: &str) -> String {
    expected().map(|name| row(&name, if name == subject { cells } else { well(&name) })).collect()
}

fn complaints_of(subject: &str, cells: &str, ran: Ran) -> Vec<String> {
    complaints(&document(subject, cells), &cases(), SABOTAGES, ran)
}

fn cases() -> [Case; 8] {
    [
        case("mm", "a::b", Outcome::Passed),
        case("mm/loom_fault", "model", Outcome::Passed),
        case("mm (single lock)", "only_single", Outcome::Passed),
        case("kernel [shift 4 seed 1]", "race", Outcome::Passed),
        case("kernel", "skipped", Outcome::Skipped),
        case("kernel", "never", Outcome::NotRun),
        case("kernel (x86_64)", "pae", Outcome::Skipped),
        case("kernel (i686-pae)", "pae", Outcome::Passed),
    ]
}

#[test]
fn a_row_for_everything_with_tests_that_ran_is_well() {
    for cells in ["| `mm a::b` | `kernel race`", "`mm/loom_fault model` | |", "| `mm only_single` | `kernel pae`"] {
        assert_eq!(complaints_of("I7", &format!("{cells} | none: so"), ALL), Vec::<String>::new());
    }
}

#[test]
fn a_test_that_does_not_exist_or_did_not_run_is_named() {
    for (subject, cells, complaint) in [
        ("R4", "| `mm a::b`, `mm a::c` | | none: so", r#"R4: there is no test "mm a::c""#),
        ("I7", "| | `kernel a::b` | none: so", r#"I7: there is no test "kernel a::b""#),
        ("pmd_lock", "`kernel never`", r#"pmd_lock: "kernel never" did not run"#),
        ("I7", "| | `kernel skipped` | none: so", r#"I7: "kernel skipped" did not run"#),
    ] {
        assert_eq!(complaints_of(subject, cells, ALL), [complaint]);
    }
    let with_less = Ran { usual: false, ..ALL };
    assert_eq!(complaints_of("I7", "| | `kernel skipped` | none: so", with_less), Vec::<String>::new());
}

#[test]
fn a_helper_is_shown_in_the_kernel_and_on_the_host() {
    assert_eq!(complaints_of("pmd_lock", "`mm a::b`", ALL), ["pmd_lock: cites no test in the kernel"]);
    assert_eq!(complaints_of("pmd_lock", "`kernel race`", ALL), ["pmd_lock: cites no test on the host"]);
    assert_eq!(complaints_of("pmd_lock", "`mm/loom_fault model`, `kernel race`", ALL), Vec::<String>::new());
    assert_eq!(complaints_of("pagetable_p4d_ctor", "`mm a::b`", ALL), Vec::<String>::new());
    assert_eq!(complaints_of("I7", "| `mm a::b` | | none: so", ALL), Vec::<String>::new());
}

#[test]
fn a_race_has_a_model_or_a_simulated_and_a_kernel_test_by_its_mark() {
    for (subject, cells, complaint) in [
        ("R4", "| `mm a::b` | `kernel race` | none: so", Some("R4: is marked (L) and cites no model")),
        ("R4", "`mm/loom_fault model` | | | none: so", None),
        (
            "R37",
            "`mm/loom_fault model` | `mm a::b` | – | none: so",
            Some("R37: is marked (S) and has not a test on the simulated machine and one in the kernel"),
        ),
        (
            "R37",
            "| | `kernel race` | none: so",
            Some("R37: is marked (S) and has not a test on the simulated machine and one in the kernel"),
        ),
        ("R37", "| `mm a::b` | `kernel race` | none: so", None),
        ("I7", "| | `kernel race` | none: so", None),
    ] {
        assert_eq!(complaints_of(subject, cells, ALL), complaint.into_iter().collect::<Vec<_>>(), "{subject} {cells}");
    }
}

#[test]
fn a_test_stands_in_the_column_of_its_kind() {
    for (cells, complaint) in [
        ("`mm a::b` | | |", r#"R4: "mm a::b" does not belong in the column of models"#),
        ("| `kernel race` | |", r#"R4: "kernel race" does not belong in the column of the simulated machine"#),
        ("| | `mm/loom_fault model` |", r#"R4: "mm/loom_fault model" does not belong in the column of the kernel"#),
        ("| `xtask a::b` | |", r#"R4: "xtask a::b" does not belong in the column of the simulated machine"#),
        ("`mm/loom_fault model`", "R4: has not the cells of its table"),
    ] {
        assert_eq!(complaints_of("R4", cells, ALL), [complaint]);
    }
}

#[test]
fn a_row_names_the_sabotages_of_its_rule_and_a_test_that_notices_each() {
    for (subject, cells, complaint) in [
        ("R4", "| `mm a::b` | | –", "R4: names no sabotage and does not say why"),
        ("R4", "| `mm a::b` | | none: ", "R4: names no sabotage and does not say why"),
        ("R4", "| `mm a::b` | | `recheck`", r#"R4: no sabotage "recheck" breaks it"#),
        ("R3", "`mm/loom_fault model` | | | none: so", r#"R3: the sabotage "recheck", which breaks it, is missing"#),
        ("R3", "| `mm a::b` | | `recheck`", r#"R3: no test of its row notices the sabotage "recheck""#),
    ] {
        assert_eq!(complaints_of(subject, cells, ALL), [complaint]);
    }
    assert_eq!(complaints_of("R3", "`mm/loom_fault model` | | | `recheck`", ALL), Vec::<String>::new());
}

#[test]
fn a_part_that_was_not_asked_for_is_not_missed() {
    let from_inside = Ran { outside: false, ..ALL };
    assert_eq!(complaints_of("I7", "| `mm a::b` | `guest gone` | none: so", from_inside), Vec::<String>::new());
    assert_eq!(
        complaints_of("I7", "| `mm a::b` | `guest gone` | none: so", ALL),
        [r#"I7: there is no test "guest gone""#]
    );
    let host_alone = Ran { kernel: false, outside: false, ..ALL };
    assert_eq!(complaints_of("I7", "| `mm a::b` | `kernel gone` | none: so", host_alone), Vec::<String>::new());
    assert_eq!(complaints_of("I7", "| `mm gone` | `kernel gone` |", host_alone).len(), 1);
}

#[test]
fn a_row_may_do_without_a_test_only_where_the_feature_is_missing() {
    for (subject, cells, allowed) in [
        ("R9", "n/a: no file mappings | | | ", true),
        ("R9", "n/a: | | |", false),
        ("R3", "n/a: no time | | |", false),
        ("I30", "| | |", false),
        ("I30", "some test | | |", false),
        ("I30", "open", false),
    ] {
        assert_eq!(complaints_of(subject, cells, ALL).is_empty(), allowed, "{subject} {cells}");
    }
}

#[test]
fn a_missing_and_a_double_row_are_named() {
    let all = document("", "");
    let without: String = all.lines().filter(|line| !line.contains("`I5`")).map(|line| format!("{line}\n")).collect();
    assert_eq!(complaints(&without, &cases(), SABOTAGES, ALL), ["I5: has no row"]);
    let twice = all + &row("I5", well("I5"));
    assert_eq!(complaints(&twice, &cases(), SABOTAGES, ALL), ["I5: has two rows"]);
}

#[test]
fn the_documents_have_all_rows_and_name_the_sabotages_of_each() {
    let root = Workspace::locate().root().to_path_buf();
    let documents: String = DOCUMENTS.iter().map(|name| fs::read_to_string(root.join(name)).unwrap()).collect();
    let nothing = Ran { host: false, kernel: false, outside: false, usual: false };
    assert_eq!(complaints(&documents, &[], &sabotage::all().collect::<Vec<_>>(), nothing), Vec::<String>::new());
}
