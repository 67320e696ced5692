//! The report of a workload: figures per phase, faults per CPU, what was checked.

pub mod bench;
pub mod comparison;
mod figures;
pub mod lines;
pub mod table;

use std::fmt::Write;

use crate::runner::Plan;
use figures::{number, rate};
use protocol::Transcript;
use protocol::record::{Cpu, Oracle, Phase};
use table::Table;

/// Lays the report out; nothing for a run that never got to a phase.
pub fn report(plan: &Plan, run: &Transcript) -> String {
    let mut text = String::new();
    if let Some(first) = run.phases.first() {
        let build = run.boot.as_ref().map_or("?", |boot| &boot.build);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{} on {}, {build} locks, seed {}\n", first.workload, plan.machine, plan.seed);
        text += &phases(&run.phases).to_string();
        if let Some((start, end)) = figures::physical_range(&run.phases) {
            let _ = writeln!(text, "\npages in physical memory from {start:#x} to {end:#x}");
        }
    }
    if !run.cpus.is_empty() {
        text += "\nfaults per CPU\n\n";
        text += &cpus(&run.phases, &run.cpus).to_string();
    }
    let flushed =
        |cpu: &Cpu| FLUSHES.iter().any(|(key, _)| figures::count(&cpu.figures, key).is_some_and(|count| count > 0));
    if run.cpus.iter().any(flushed) {
        text += "\nTLB per CPU, all phases\n\n";
        text += &flushes(&run.cpus).to_string();
    }
    if !run.oracles.is_empty() {
        text += "\nchecked\n\n";
        text += &oracles(&run.oracles).to_string();
    }
    text
}

/// What a CPU tells of its TLB, and the heads of the columns.
const FLUSHES: [(&str, &str); 8] = [
    ("shootdown_targets", "sent"),
    ("flushes_served", "received"),
    ("flushes_ranged", "ranged"),
    ("flushes_full", "full"),
    ("lazy_skipped", "lazy skipped"),
    ("asid_current", "asid hits"),
    ("asid_behind", "asid stale"),
    ("asid_new", "asid misses"),
];

/// One row per CPU.
fn flushes(all: &[Cpu]) -> Table {
    let mut numbers: Vec<u32> = all.iter().map(|cpu| cpu.cpu).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let heads: Vec<&str> = std::iter::once("cpu").chain(FLUSHES.iter().map(|(_, head)| *head)).collect();
    let mut table = Table::new(&heads);
    for number in numbers {
        let sum = |key: &str| -> u64 {
            all.iter().filter(|cpu| cpu.cpu == number).filter_map(|cpu| figures::count(&cpu.figures, key)).sum()
        };
        let counts = FLUSHES.iter().map(|(key, _)| figures::grouped(sum(key)));
        table.row(std::iter::once(format!("cpu{number}")).chain(counts).collect());
    }
    table
}

fn phases(phases: &[Phase]) -> Table {
    let extra = figures::unknown_keys(phases);
    let mut heads = vec![
        "phase",
        "faults",
        "seconds",
        "faults/s",
        "acquired",
        "waited",
        "mean wait",
        "longest",
        "halts",
        "kicks",
        "shootdowns",
    ];
    heads.extend(extra.iter().map(String::as_str));
    let mut table = Table::new(&heads);
    for phase in phases {
        let figures = &phase.figures;
        let count = |key| figures::count(figures, key).map_or_else(|| "-".to_owned(), figures::grouped);
        let time = |key| number(figures, key).map_or_else(|| "-".to_owned(), figures::nanoseconds);
        let mut row = vec![
            phase.phase.clone(),
            count("faults"),
            number(figures, "nanoseconds").map_or_else(|| "-".to_owned(), |time| format!("{:.3}", time / 1e9)),
            rate(figures).map_or_else(|| "-".to_owned(), |rate| figures::grouped(rate.round() as u64)),
            count("acquired"),
            figures::share(figures, "waited", "acquired")
                .map_or_else(|| "-".to_owned(), |share| format!("{share:.2} %")),
            time("wait_mean"),
            time("wait_max"),
            count("halts"),
            count("kicks"),
            count("shootdowns"),
        ];
        row.extend(extra.iter().map(|key| count(key)));
        table.row(row);
    }
    table
}

/// One row per phase, one column per CPU.
fn cpus(phases: &[Phase], all: &[Cpu]) -> Table {
    let mut numbers: Vec<u32> = all.iter().map(|cpu| cpu.cpu).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let names: Vec<String> = numbers.iter().map(|number| format!("cpu{number}")).collect();
    let mut heads = vec!["phase"];
    heads.extend(names.iter().map(String::as_str));
    let mut table = Table::new(&heads);
    let mut rows: Vec<&str> = phases.iter().map(|phase| phase.phase.as_str()).collect();
    if all.iter().any(|cpu| cpu.phase.is_empty()) {
        rows.push("");
    }
    for phase in rows {
        let faults = |number: &u32| {
            let cpu = all.iter().find(|cpu| cpu.cpu == *number && cpu.phase == phase);
            let count = cpu.and_then(|cpu| figures::count(&cpu.figures, "faults"));
            count.map_or_else(|| "-".to_owned(), figures::grouped)
        };
        let name = if phase.is_empty() { "all" } else { phase };
        table.row(std::iter::once(name.to_owned()).chain(numbers.iter().map(faults)).collect());
    }
    table
}

fn oracles(all: &[Oracle]) -> Table {
    let mut table = Table::new(&["", "property", "found"]);
    table.left_aligned();
    for oracle in all {
        let word = if oracle.ok { "ok" } else { "FAILED" };
        table.row(vec![word.to_owned(), oracle.name.clone(), oracle.detail.clone()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::logline::Level;

    use super::*;
    use crate::machine::{EIGHT_CPUS, Machine, Task};
    use crate::runner::Medium;

    fn text(lines: &[&str]) -> String {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.feed(line, Duration::ZERO);
        }
        let plan = Plan {
            machine: Machine { cpus: 2, ..EIGHT_CPUS },
            medium: Medium::Pvh("k".into()),
            task: Task::Test { filter: String::new() },
            seed: 9,
            timeout: None,
            margin: Duration::ZERO,
            log: Level::Info,
            gdb: None,
            counts: None,
        };
        report(&plan, &transcript)
    }

    #[test]
    fn each_phase_has_its_rate_and_its_share_of_waits() {
        let text = text(&[
            r#"@boot {"cpus":2,"boot":"pvh","memory_mib":512,"build":"split"}"#,
            r#"@phase {"workload":"storm","phase":"disjoint","faults":150000,"nanoseconds":500000000,"acquired":200000,"waited":500,"wait_mean":1500,"odd":7,"physical_start":1048576,"physical_end":6442450944}"#,
            r#"@cpu {"cpu":1,"phase":"disjoint","faults":75000,"flushes_served":4321}"#,
            r#"@oracle {"name":"increments","ok":true,"detail":"16 of 16"}"#,
        ]);
        for part in [
            "storm on x86_64, 2 CPUs",
            "split locks, seed 9",
            "300,000",
            "0.25 %",
            "1.5 µs",
            "odd",
            "from 0x100000 to 0x180000000",
            "75,000",
            "4,321",
            "16 of 16",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_run_without_flushes_has_no_table_of_them() {
        let cpu = |number, flushes| {
            format!(
                r#"@cpu {{"cpu":{number},"phase":"disjoint","faults":7,"flushes_served":{flushes},"flushes_full":0}}"#
            )
        };
        let quiet = text(&[&cpu(0, 0), &cpu(1, 0)]);
        assert!(quiet.contains("faults per CPU") && !quiet.contains("TLB per CPU"), "{quiet}");
        // One CPU that flushed brings the table, with the others in it.
        let flushed = text(&[&cpu(0, 0), &cpu(1, 3)]);
        let table = flushed.split_once("TLB per CPU").expect("a table of flushes").1;
        assert!(table.contains("cpu0") && table.contains("cpu1"), "{flushed}");
    }

    #[test]
    fn missing_figures_leave_a_dash_and_no_phase_leaves_nothing() {
        assert!(text(&[r#"@phase {"workload":"storm","phase":"p","faults":3}"#]).contains('-'));
        assert_eq!(text(&[]), "");
    }
}
