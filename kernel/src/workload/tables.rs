//! What it costs to take a page away, alone, with its PTE table, or with its PMD table, by how many CPUs run in the address
//! space. What `cargo xtask bench tables` runs.
//!
//! Who takes a page interrupts the CPUs of the address space. With PAE, who takes a table interrupts every CPU there is, the
//! idle ones too (R30), and with a PMD table each CPU of the address space loads its top table again (I38).

use alloc::vec::Vec;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::machine::X86;
use arch_x86::time;
use linkme::distributed_slice;
use mm::machine::Machine;
use mm::stats::Counter;

use super::crew::{self, Member};
use crate::harness::{Job, Name, Stop, Tally, WORKLOADS, Workload};
use crate::memory::{MmRef, enter};
use crate::record::Record;
use crate::smp::online;
use crate::tests::support::{PMD_TABLE, TABLE, first_cpus, map_anonymous, mm_without_tables, pages, read, write};

/// Rounds unless the command line says otherwise.
const ROUNDS: u64 = 5;
/// Pages taken away in one measurement.
const CHANGES: u64 = 64;

/// What goes, and the page that stays and keeps all above it.
const CONTESTANTS: [(&str, u64); 3] = [("page", 1), ("pte-table", TABLE), ("pmd-table", PMD_TABLE)];

#[distributed_slice(WORKLOADS)]
static TABLES: Workload = Workload { name: Name::new("tables"), run };

fn run(job: &Job) -> Tally {
    let mut tally = Tally::default();
    let all = online().iter().count();
    for _ in 0..job.rounds.unwrap_or(ROUNDS) {
        for cpus in [1, all.div_ceil(4), all] {
            for (what, kept) in CONTESTANTS {
                match measure(cpus, kept) {
                    Ok(taken) => {
                        report(what, cpus, taken);
                        tally.passed += 1;
                    }
                    Err(Stop::Failed(why) | Stop::Skipped(why)) => {
                        log::error!("tables: {what} with {cpus} CPUs: {why}");
                        tally.failed += 1;
                    }
                }
            }
        }
    }
    tally
}

/// What [`CHANGES`] changes came to.
struct Taken {
    nanoseconds: u64,
    /// For the faults that made the tables anew.
    fault_nanoseconds: u64,
    /// CPUs, by the changes.
    interrupted: u64,
}

/// Takes page 0 away time and again while page `kept` stays, with so many CPUs in the address space; the others are idle.
fn measure(cpus: usize, kept: u64) -> Result<Taken, Stop> {
    let mm = mm_without_tables()?;
    map_anonymous(&mm, pages(kept, kept + 1))?;
    let over = AtomicBool::new(false);
    let outcomes = crew::run(first_cpus(cpus), &|member: &Member<'_>| {
        let _user = enter(&mm);
        let is_in = write(kept, 1);
        member.meet_awake();
        if member.index > 0 {
            // Awake: a CPU that sleeps leaves the address space.
            while !over.load(Ordering::Acquire) {
                spin_loop();
            }
            return is_in.map(|()| None).map_err(Stop::from);
        }
        let taken = is_in.map_err(Stop::from).and_then(|()| take_away(&mm));
        over.store(true, Ordering::Release);
        taken.map(Some)
    })?;
    let mut taken = outcomes.into_iter().collect::<Result<Vec<_>, Stop>>()?;
    taken.swap_remove(0).ok_or(Stop::failed(format_args!("nothing was measured")))
}

fn take_away(mm: &MmRef) -> Result<Taken, Stop> {
    let tables = mm.linked_table_bytes();
    let targets = || X86.local().stats.snapshot()[Counter::ShootdownTargets];
    let mut taken = Taken { nanoseconds: 0, fault_nanoseconds: 0, interrupted: 0 };
    for change in 0..CHANGES {
        map_anonymous(mm, pages(0, 1))?;
        let began = time::now_nanos();
        write(0, change)?;
        let (resolved, before) = (time::now_nanos(), targets());
        mm.munmap(pages(0, 1))?;
        taken.nanoseconds += time::now_nanos().saturating_sub(resolved);
        taken.fault_nanoseconds += resolved.saturating_sub(began);
        taken.interrupted += targets() - before;
        if read(0).is_ok() || mm.linked_table_bytes() != tables {
            return Err(Stop::failed(format_args!("change {change} leaves a page or a table")));
        }
    }
    Ok(taken)
}

fn report(what: &str, cpus: usize, taken: Taken) {
    Record::new("phase")
        .text("workload", "tables")
        .text("phase", what)
        .number("cpus", cpus as u64)
        .number("turns", CHANGES)
        .number("nanoseconds", taken.nanoseconds)
        .number("fault_nanoseconds", taken.fault_nanoseconds)
        .number("interrupted", taken.interrupted)
        .emit();
}
