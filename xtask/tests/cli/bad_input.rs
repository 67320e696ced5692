//! What a person can get wrong: one clear line, a status that is not zero, and nothing started.

use crate::bench::{Bench, outcome};

#[test]
fn malformed_and_absurd_numbers_are_refused_before_anything_starts() {
    let cases = [
        ("--smp=0", "between 1 and 64"),
        ("--smp=65", "between 1 and 64"),
        ("--smp=-8", "a number of CPUs"),
        ("--smp=eight", "a number of CPUs"),
        ("--mem=0M", "between 64M and 512G"),
        ("--mem=4096T", "a size such as"),
        ("--mem=999999999G", "between 64M and 512G"),
        ("--mem=512", "a size such as"),
        ("--mem=-1G", "a size such as"),
        ("--timeout=0", "between 1 and 86400"),
        ("--timeout=soon", "whole seconds"),
        ("--timeout=99999999999999999999", "between 1 and 86400"),
        ("--deterministic=11", "between 0 and 10"),
        ("--repeat=0", "between 1 and"),
        ("--loom-bound=0", "between 1 and"),
        ("--seeds=-1", "a number of times"),
        ("--seed=-1", "invalid digit"),
        ("--accel=xen", "possible values"),
        ("--arch=i386", "possible values: x86_64, i686-pae"),
        ("--sanitize=memory", "possible values: thread, address"),
    ];
    for (option, why) in cases {
        let bench = Bench::new("", "exit 33");
        let outcome = bench.test(&[option]);
        assert_eq!(outcome.status, Some(2), "{option}: {outcome:#?}");
        outcome.shows(&[option.split('=').next().unwrap_or_default(), why]);
        assert!(!bench.qemu_started(), "{option}");
    }
}

#[test]
fn a_workload_the_kernel_does_not_know() {
    let serial = "[    0.000000] cpu0 ERROR kernel::run: no workload is called tempest; there is storm\n";
    let outcome = Bench::new(serial, "exit 39").run(&["tempest"]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["REFUSED", "no workload is called tempest; there is storm"]);
}

#[test]
fn words_that_would_break_the_kernels_command_line() {
    for word in ["two words", "mode=list", ""] {
        let bench = Bench::new("", "exit 33");
        assert_eq!(bench.run(&[word]).status, Some(2), "{word:?}");
        assert_eq!(bench.test(&[word]).status, Some(2), "{word:?}");
        assert!(!bench.qemu_started());
    }
}

#[test]
fn a_name_no_test_has() {
    let serial = "[    0.000000] cpu0 ERROR kernel::harness: no test matches nosuch\n";
    let outcome = Bench::new(serial, "exit 39").test(&["nosuch"]);
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["no test has a name with \"nosuch\" in it"]);
}

#[test]
fn an_emulator_that_is_not_there() {
    let bench = Bench::new("", "exit 33");
    let kernel = bench.path("kernel.elf");
    let words = ["run", "--kernel", kernel.to_str().expect("plain")];
    let outcome = outcome(&mut bench.xtask_with(&bench.path("no-such-qemu"), &words));
    assert_eq!(outcome.status, Some(1));
    outcome.shows(&["QEMU is missing", "no-such-qemu"]);
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:#?}");
}

#[test]
fn kernels_and_images_that_cannot_be_read() {
    let bench = Bench::new("", "exit 33");
    let (missing, empty) = (bench.path("missing"), bench.path("empty"));
    std::fs::write(&empty, "").expect("a file");
    for option in ["--image", "--kernel"] {
        for (path, why) in [(&missing, "No such file"), (&empty, "the file is empty"), (&bench.path("."), "not a file")]
        {
            let words = ["run", option, path.to_str().expect("plain")];
            let outcome = outcome(&mut bench.xtask(&words));
            assert_eq!(outcome.status, Some(2), "{words:?}: {outcome:#?}");
            outcome.shows(&["cannot read", why, option]);
        }
    }
    assert!(!bench.qemu_started());
}

#[test]
fn what_a_32_bit_kernel_does_not_have() {
    let bench = Bench::new("", "exit 33");
    let kernel = bench.path("kernel.elf");
    let kernel = kernel.to_str().expect("plain");
    for (words, why) in [
        (&["run", "--boot", "uefi", "--kernel", kernel][..], "UEFI starts x86_64 alone"),
        (&["run", "--image", kernel], "UEFI starts x86_64 alone"),
        (&["run", "--levels", "5"], "PAE has three levels"),
        (&["test", "--levels", "5", "--only", "kernel"], "PAE has three levels"),
        (&["build", "--levels", "5"], "PAE has three levels"),
        (&["image", "disk.img"], "a disk image is for x86_64"),
    ] {
        let outcome = outcome(bench.xtask(words).args(["--arch", "i686-pae"]));
        assert_eq!(outcome.status, Some(1), "{words:?}: {outcome:#?}");
        outcome.shows(&[why]);
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:#?}");
    }
    assert!(!bench.qemu_started());
}

#[test]
fn options_that_contradict_each_other() {
    for words in [
        &["test", "--release", "--debug"][..],
        &["test", "--schedules", "3", "--deterministic", "2"],
        &["run", "--compare", "--config", "single"],
        &["test", "--accel", "kvm", "--deterministic"],
        &["test", "--sanitize", "thread", "--only", "kernel"],
        &["test", "--sanitize", "address", "--all-configs"],
        &["test", "--sanitize", "thread", "--loom-bound", "3"],
        &["test", "--only", "kernel", "--loom-bound", "3"],
        &["test", "--repeat", "3", "--seeds", "3"],
        &["frobnicate"],
    ] {
        let bench = Bench::new("", "exit 33");
        let outcome = outcome(&mut bench.xtask(words));
        assert!(matches!(outcome.status, Some(1 | 2)), "{words:?}: {outcome:#?}");
        assert!(!outcome.stderr.is_empty() && !bench.qemu_started(), "{words:?}: {outcome:#?}");
    }
}

#[test]
fn parts_and_targets_that_there_are_not() {
    for (words, status, why) in [
        (&["nightly", "--only", "schedule"][..], 2, &["--only", "'schedules'"][..]),
        (&["fuzz", "apci"], 1, &["no fuzz target \"apci\"", "acpi, command_line"]),
        (&["fuzz", "--time", "0"], 2, &["--time", "1..=86400"]),
        (&["fuzz", "--input", "Cargo.toml"], 2, &["required", "TARGET"]),
        (&["coverage", "a name"], 2, &["one word"]),
    ] {
        let outcome = outcome(&mut Bench::new("", "exit 33").xtask(words));
        assert_eq!(outcome.status, Some(status), "{words:?}: {outcome:#?}");
        outcome.shows(why);
    }
}
