//! The storm's records (`docs/harness.md`).

use mm::address::Pfn;
use mm::config::PAGE_SIZE;
use mm::stats::{Counter, LockCounter};

use super::oracle::Oracle;
use super::{Figures, Phase};
use crate::record::Record;

/// What each CPU tells of its TLB.
const FLUSHES: [Counter; 8] = [
    Counter::ShootdownTargets,
    Counter::FlushesServed,
    Counter::FlushesRanged,
    Counter::FlushesFull,
    Counter::LazySkipped,
    Counter::AsidCurrent,
    Counter::AsidBehind,
    Counter::AsidNew,
];

/// Writes a phase's figures, those of each CPU, and where in memory its pages were.
pub fn figures(phase: &Phase, figures: &Figures, frames: Option<(Pfn, Pfn)>) {
    let waited = figures.locks(LockCounter::Waited);
    let mut record = Record::new("phase");
    record
        .text("workload", "storm")
        .text("phase", phase.name)
        .number("faults", figures.faults())
        .number("nanoseconds", figures.nanoseconds)
        .number("acquired", figures.locks(LockCounter::Acquired))
        .number("waited", waited)
        .number("wait_mean", figures.locks(LockCounter::WaitNanos).checked_div(waited).unwrap_or(0))
        .number("wait_max", figures.longest_wait())
        .number("halts", figures.locks(LockCounter::Halts))
        .number("kicks", figures.locks(LockCounter::Kicks))
        .number("shootdowns", figures.count(Counter::ShootdownTargets))
        .number("raced", figures.count(Counter::RacedFault))
        .number("rounds", figures.rounds)
        .number("unmap_ms", figures.unmap_nanoseconds / 1_000_000);
    if let Some((first, last)) = frames {
        let bytes = |frames: u64| frames * PAGE_SIZE as u64;
        record.number("physical_start", bytes(first.0)).number("physical_end", bytes(last.0 + 1));
    }
    record.emit();
    for (index, (cpu, faults)) in figures.faults_by_cpu().enumerate() {
        let mut record = Record::new("cpu");
        record.number("cpu", cpu.0).text("phase", phase.name).number("faults", faults);
        for counter in FLUSHES {
            record.number(counter.name(), figures.by_cpu(counter).nth(index).unwrap_or(0));
        }
        record.emit();
    }
}

/// Writes what an oracle found.
pub fn oracle(phase: &Phase, oracle: &Oracle) {
    let held = oracle.checked.saturating_sub(oracle.failed);
    let first = oracle.first.as_deref().unwrap_or("");
    let separator = if first.is_empty() { "" } else { "; " };
    Record::new("oracle")
        .text("name", format_args!("{}: {}", phase.name, oracle.name))
        .flag("ok", oracle.holds())
        .text("detail", format_args!("{held} of {}{separator}{first}", oracle.checked))
        .emit();
}
