//! `cargo xtask log` on runs a scripted QEMU made.

use crate::bench::{Bench, Outcome, outcome};

const SERIAL: &str = r#"@boot {"cpus":2,"boot":"pvh","memory_mib":512,"build":"split"}
[    0.000001] cpu0 INFO kernel::boot: up
[    0.000002] cpu1 WARN mm::fault: spurious fault
[    0.000003] cpu1 DEBUG mm::fault: retried
[ damaged
1..1
@start {"test":"first"}
ok 1 first
@end {"mode":"test","passed":1,"failed":0,"skipped":0}
"#;

fn bench() -> Bench {
    let bench = Bench::new(SERIAL, "exit 33");
    assert_eq!(bench.test(&[]).status, Some(0));
    bench
}

fn log(bench: &Bench, words: &[&str]) -> Outcome {
    let mut all = vec!["log"];
    all.extend(words);
    outcome(&mut bench.xtask(&all))
}

#[test]
fn lines_are_chosen_by_cpu_level_module_and_text() {
    let bench = bench();
    let lines = |words: &[&str]| log(&bench, words).stdout.lines().count();
    assert_eq!(lines(&[]), 3);
    assert_eq!(lines(&["--cpu", "1"]), 2);
    assert_eq!(lines(&["--level", "warn"]), 1);
    assert_eq!(lines(&["--target", "mm"]), 2);
    assert_eq!(lines(&["--grep", "^sp.rious"]), 1);
    assert_eq!(lines(&["--cpu", "0", "--grep", "fault"]), 0);
}

#[test]
fn damaged_lines_are_left_out_and_counted() {
    log(&bench(), &[]).shows(&["1 damaged lines are left out"]);
}

#[test]
fn runs_are_kept_with_their_verdict_and_found_by_number_or_name() {
    let bench = bench();
    bench.test(&[]);
    let list = log(&bench, &["--list"]);
    assert_eq!(list.stdout, "0001-test  PASS\n0002-test  PASS\n");
    assert_eq!(log(&bench, &["--run", "1"]).status, Some(0));
    assert_eq!(log(&bench, &["--run", "0002-test"]).status, Some(0));
    let missing = log(&bench, &["--run", "9"]);
    assert_eq!(missing.status, Some(1));
    missing.shows(&["no saved run is called \"9\""]);
}

#[test]
fn without_any_run_or_with_a_bad_pattern_there_is_one_clear_line() {
    let outcome = log(&Bench::new("", "exit 33"), &[]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(1), "xtask: no run is saved yet\n"));
    let outcome = log(&bench(), &["--grep", "("]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["--grep is no regular expression"]);
}
