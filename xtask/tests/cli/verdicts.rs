//! Every way a run can end, told apart. QEMU is a script here; `verdict::…` in `cargo xtask test` shows the same with
//! the real kernel.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::bench::{Bench, alive, outcome};

const BOOT: &str = r#"@boot {"cpus":8,"boot":"pvh","memory_mib":512,"build":"split"}
"#;
const TWO_PASS: &str = r#"@boot {"cpus":8,"boot":"pvh","memory_mib":512,"build":"split"}
KTAP version 1
1..2
@start {"test":"first"}
ok 1 first
@start {"test":"second"}
ok 2 second # SKIP no PCID here
@end {"mode":"test","passed":1,"failed":0,"skipped":1}
"#;

/// Two tests promised, one done, one begun.
const IN_THE_SECOND: &str = r#"@boot {"cpus":8,"boot":"pvh","memory_mib":512,"build":"split"}
KTAP version 1
1..4
@start {"test":"first"}
ok 1 first
@start {"test":"second"}
[    1.000000] cpu3 ERROR kernel::panic: no more frames
"#;

#[test]
fn all_passed() {
    let outcome = Bench::new(TWO_PASS, "exit 33").test(&[]);
    assert_eq!(outcome.status, Some(0), "{outcome:#?}");
    assert_eq!(outcome.last_line(), "1 passed, 0 failed, 1 skipped");
    outcome.shows(&["PASS", "kernel (x86_64) first", "SKIP", "no PCID here", "seed 1"]);
}

#[test]
fn a_failed_assertion_shows_its_words() {
    let serial = r#"1..1
@start {"test":"first"}
# expected 3 frames, found 2
not ok 1 first
@end {"mode":"test","passed":0,"failed":1,"skipped":0}
"#;
    let outcome = Bench::new(serial, "exit 35").test(&[]);
    assert_eq!(outcome.status, Some(1));
    assert_eq!(outcome.last_line(), "0 passed, 1 failed");
    outcome.shows(&[
        "FAIL",
        "expected 3 frames, found 2",
        "to repeat: cargo xtask test --only kernel --seed 1",
        "--arch x86_64",
    ]);
}

#[test]
fn a_panic_names_the_test_and_those_that_never_ran() {
    let serial = format!(
        "{IN_THE_SECOND}{}",
        r#"@bt {"cpu":3,"reason":"panic","rip":"0xffffffff80201234","frames":["0xffffffff80200000"]}
"#
    );
    let outcome = Bench::new(&serial, "exit 37").test(&[]);
    assert_eq!(outcome.status, Some(1));
    assert_eq!(outcome.last_line(), "1 passed, 1 failed, 2 not run");
    outcome.shows(&[
        "PANIC",
        "while running: second",
        "no more frames",
        "cpu 3 came here (panic)",
        "0xffffffff80201234",
    ]);
}

#[test]
fn a_triple_fault_is_no_success_though_qemu_says_zero() {
    let outcome = Bench::new(IN_THE_SECOND, "exit 0").test(&[]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["RESET", "triple fault", "while running: second"]);
}

#[test]
fn a_kernel_that_says_nothing_more_is_hung_and_qemu_is_ended() {
    let bench = Bench::new(IN_THE_SECOND, "exec sleep 1000");
    let started = Instant::now();
    let outcome = bench.test(&["--timeout", "1", "--margin", "1"]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["HANG", "no line on the serial port for 2 s", "while running: second"]);
    assert!(started.elapsed() < Duration::from_secs(60));
    let process = bench.qemu_process().expect("it ran");
    assert!(!alive(process), "process {process} is still there");
}

#[test]
fn a_test_that_prints_for_ever_is_hung_all_the_same() {
    let bench = Bench::new(IN_THE_SECOND, "while :; do echo '# still here' >>$serial; sleep 0.2; done");
    let outcome = bench.test(&["--timeout", "1", "--margin", "1"]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["HANG", "one test took more than 2 s", "while running: second"]);
}

#[test]
fn the_kernels_own_watchdog_names_the_lock() {
    let serial = format!(
        "{IN_THE_SECOND}{}",
        r#"@hang {"test":"second","cpu":3,"lock":"0xffff800000001000","ticket":7,"text":"waits for a pte lock"}
"#
    );
    let outcome = Bench::new(&serial, "exit 41").test(&[]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["HANG", "stuck on cpu 3", "lock 0xffff800000001000", "ticket 7", "waits for a pte lock"]);
}

#[test]
fn lost_output_is_no_success_though_the_status_is() {
    let without_end = TWO_PASS.lines().take(7).collect::<Vec<_>>().join("\n") + "\n";
    let half_a_line = TWO_PASS.replace("ok 1 first\n", "ok 1 first\nok 2\n");
    let cut_short = format!("{TWO_PASS}not ok 3 thi");
    let one_missing = TWO_PASS.replace("1..2", "1..3");
    let cases = [
        (without_end.as_str(), "without its @end record"),
        (half_a_line.as_str(), "a damaged line"),
        (cut_short.as_str(), "not ok 3 thi"),
        (one_missing.as_str(), "3 results were promised, 2 came"),
        ("", "without its @end record"),
    ];
    for (serial, why) in cases {
        let outcome = Bench::new(serial, "exit 33").test(&[]);
        assert_eq!(outcome.status, Some(1), "{why}: {outcome:#?}");
        outcome.shows(&["LOST OUTPUT", why]);
    }
}

#[test]
fn a_kernel_that_could_not_start_says_why() {
    let serial = "[    0.000000] cpu0 ERROR kernel::smp: cpu5 did not answer\n";
    let outcome = Bench::new(serial, "exit 43").test(&[]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["BOOT FAILED", "cpu5 did not answer"]);
}

#[test]
fn qemus_own_words_are_passed_on() {
    let outcome = Bench::new("", "echo 'could not load kernel' >&2; exit 1").test(&[]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["QEMU FAILED", "could not load kernel"]);
    let outcome = Bench::new(BOOT, "kill -SEGV $$").test(&[]);
    outcome.shows(&["QEMU was killed by signal 11"]);
}

#[test]
fn rounds_take_one_seed_after_the_other() {
    let outcome = Bench::new(TWO_PASS, "exit 33").test(&["--repeat", "3", "--seed", "40"]);
    assert_eq!(outcome.status, Some(0), "{outcome:#?}");
    outcome.shows(&["seed 40", "seed 41", "seed 42", "3 of 3 rounds passed"]);
    assert_eq!(outcome.last_line(), "3 passed, 0 failed, 3 skipped");
}

#[test]
fn the_schedule_that_failed_is_named() {
    let then = r#"case $all in *shift=2,*) exit 37;; *) exit 33;; esac"#;
    let outcome = Bench::new(TWO_PASS, then).test(&["--schedules", "13"]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&[
        "12 of 13 rounds passed",
        "--seed 1 --deterministic 2",
        "deterministic 10, split locks, seed 1",
        "seed 2",
    ]);
}

#[test]
fn a_32_bit_kernel_has_an_emulator_of_its_own_and_memory_beyond_32_bits() {
    let then = r#"case $all in */qemu-i386\ *"-m 6144M"*) exit 33;; *) exit 37;; esac"#;
    let outcome = Bench::new(TWO_PASS, then).test(&["--arch", "i686-pae"]);
    assert_eq!(outcome.status, Some(0), "{outcome:#?}");
    outcome.shows(&["i686-pae, 8 CPUs, 6144 MiB", "kernel (i686-pae)"]);
}

#[test]
fn an_interrupt_ends_qemu_too() {
    let bench = Bench::new(BOOT, "exec sleep 1000");
    let kernel = bench.path("kernel.elf");
    let mut command = bench.xtask(&["test", "--only", "kernel", "--kernel", kernel.to_str().expect("a plain path")]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("xtask starts");
    let deadline = Instant::now() + Duration::from_secs(30);
    while bench.qemu_process().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let process = bench.qemu_process().expect("it ran");
    outcome(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().expect("xtask ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    assert!(!alive(process), "process {process} is still there");
}

#[test]
fn results_reach_other_programs() {
    let bench = Bench::new(TWO_PASS, "exit 33");
    let (junit, json) = (bench.path("r.xml"), bench.path("r.json"));
    let words = ["--junit", junit.to_str().expect("plain"), "--json", json.to_str().expect("plain")];
    assert_eq!(bench.test(&words).status, Some(0));
    let xml = std::fs::read_to_string(junit).expect("a report");
    assert!(xml.contains(r#"<testcase name="first""#), "{xml}");
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(json).expect("a report")).expect("JSON");
    assert_eq!((json["passed"].as_u64(), json["cases"][0]["name"].as_str()), (Some(1), Some("first")));
}
