//! `xtask bench` on a fake kernel: what it prints of the figures, and what it refuses.

use crate::bench::{Bench, outcome};

const BOOT: &str = "@boot {\"cpus\":2,\"boot\":\"pvh\",\"memory_mib\":512,\"build\":\"split\"}\n";
const END: &str = "@end {\"mode\":\"run\",\"passed\":4,\"failed\":0,\"skipped\":0}\n";

fn contest(lock: &str, cpus: u32, turns: u64, longest: u64) -> String {
    format!(
        "@phase {{\"workload\":\"locks\",\"phase\":\"{lock}\",\"cpus\":{cpus},\"rounds\":8,\"polls\":512,\
         \"turns\":{turns},\"nanoseconds\":1000000000,\"waited\":0,\"wait_mean\":0,\"wait_max\":{longest},\
         \"halts\":3,\"kicks\":2,\"least\":1,\"most\":4}}\n"
    )
}

fn bench(fake: &Bench, words: &[&str]) -> crate::bench::Outcome {
    let kernel = fake.path("kernel.elf");
    let mut all = vec!["bench", "--kernel", kernel.to_str().expect("a plain path")];
    all.extend(words);
    outcome(&mut fake.xtask(&all))
}

#[test]
fn algorithms_stand_side_by_side_with_their_ratios_and_the_machine() {
    let serial = [
        BOOT.to_owned(),
        contest("ticket", 2, 4_000, 1_000),
        contest("mcs", 2, 1_000, 5_000),
        contest("ticket", 2, 4_400, 2_000),
        contest("mcs", 2, 1_100, 4_000),
        END.to_owned(),
    ];
    let fake = Bench::new(&serial.concat(), "exit 33");
    let json = fake.path("figures.json");
    let words =
        ["locks", "--threads", "--accel", "tcg", "--smp", "2", "--seed", "7", "--json", json.to_str().expect("plain")];
    let outcome = bench(&fake, &words);
    assert_eq!(outcome.status, Some(0), "{outcome:#?}");
    // Medians of the rates, the longest of the waits.
    outcome.shows(&[
        "locks on x86_64, 2 CPUs, 512 MiB, tcg, seed 7",
        "4,200",
        "1,050",
        "0.25",
        "5.0 µs",
        "2.50",
        "turns/s",
    ]);
    let read: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).expect("a file")).expect("JSON");
    assert_eq!(read[0]["bench"], "locks");
    assert_eq!(read[0]["seed"], 7);
    assert_eq!(read[0]["rows"][1]["name"], "mcs");
    assert_eq!(read[0]["rows"][1]["rate"], 1050.0);
}

#[test]
fn a_lock_that_does_not_exclude_is_no_success() {
    let serial = [
        BOOT,
        "@oracle {\"name\":\"mcs excludes\",\"ok\":false,\"detail\":\"9 of 10 turns counted\"}\n",
        &contest("mcs", 2, 10, 1),
        "@end {\"mode\":\"run\",\"passed\":0,\"failed\":1,\"skipped\":0}\n",
    ];
    let outcome = bench(&Bench::new(&serial.concat(), "exit 35"), &["locks", "--threads"]);
    assert_eq!(outcome.status, Some(1), "{outcome:#?}");
    outcome.shows(&["mcs excludes"]);
    assert!(!outcome.stdout.contains("turns/s"), "{outcome:#?}");
}

#[test]
fn the_benches_are_listed_without_starting_anything() {
    let fake = Bench::new("", "exit 33");
    let outcome = outcome(&mut fake.xtask(&["bench", "--list"]));
    assert_eq!(outcome.status, Some(0));
    assert_eq!(outcome.stdout.lines().count(), 4);
    outcome.shows(&["locks", "waiting", "storage", "tables"]);
    assert!(!fake.qemu_started());
}

#[test]
fn what_is_no_bench_or_no_number_of_rounds_is_refused() {
    for (words, why) in [
        (&["tempest"][..], "tempest"),
        (&["locks", "--rounds=0"], "between 1 and"),
        (&["locks", "--rounds=-1"], "a number of times"),
        (&["locks", "--smp=0"], "between 1 and 64"),
        (&["locks", "waiting"], "unexpected argument"),
    ] {
        let fake = Bench::new("", "exit 33");
        let outcome = bench(&fake, words);
        assert_eq!(outcome.status, Some(2), "{words:?}: {outcome:#?}");
        outcome.shows(&[why]);
        assert!(!fake.qemu_started());
    }
}
