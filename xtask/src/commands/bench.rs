//! `cargo xtask bench`: workloads that compare, each with its table.
//!
//! Where the guest has more CPUs than the host has cores, the contests are held twice: on threads, where a CPU that waits gives
//! its core away, and under the counted clock, where it loses its turn (`compare.rs`).

use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::compare::on_its_clock;
use super::{guest, run};
use crate::build::Builder;
use crate::cli::{self, BenchName};
use crate::machine::{Machine, Task};
use crate::postmortem;
use crate::report::bench::{self, Row};
use crate::runner::{self, Medium};
use crate::setup::qemu;
use crate::symbolise::Symbols;
use crate::workspace::Workspace;

/// Time for each round of a bench, on the guest's clock: several times what a round takes on a host with other work.
const ROUND_LIMIT: Duration = Duration::from_secs(60);
/// Rounds for which there is time where the kernel chooses how many.
const USUAL_ROUNDS: u64 = 5;

impl BenchName {
    /// All of them.
    const ALL: [Self; 4] = [Self::Locks, Self::Waiting, Self::Storage, Self::Tables];

    /// The kernel's word for it.
    fn workload(self) -> &'static str {
        match self {
            Self::Locks => "locks",
            Self::Waiting => "waiting",
            Self::Storage => "storage",
            Self::Tables => "tables",
        }
    }

    /// What it measures.
    fn about(self) -> &'static str {
        match self {
            Self::Locks => "every lock algorithm at 1, 2, 4 and 8 CPUs: turns per second, the longest wait",
            Self::Waiting => "the ticket lock by rounds outside the queue and polls between halts",
            Self::Storage => "a lock in the frame's descriptor against one behind a pointer there",
            Self::Tables => "a page taken away alone, with its PTE table, with its PMD table",
        }
    }
}

/// What `--json` writes of one run.
#[derive(Serialize)]
struct Figures {
    bench: &'static str,
    machine: String,
    seed: u64,
    rows: Vec<Row>,
}

/// Runs the benches; whether every kernel passed.
pub fn bench(workspace: &Workspace, options: &cli::Bench) -> Result<bool> {
    if options.list {
        BenchName::ALL.iter().for_each(|bench| println!("{:<8} {}", bench.workload(), bench.about()));
        return Ok(true);
    }
    let variant = guest::variant(&options.guest.variant)?;
    let asked = guest::machine(&options.guest, variant.arch)?;
    let emulator = qemu::require(variant.arch)?;
    let kernel = match &options.guest.kernel {
        Some(kernel) => kernel.clone(),
        None => Builder::new(workspace).kernel(variant)?,
    };
    let cores = available_parallelism().map_or(1, NonZero::get);
    let mut all = Vec::new();
    for bench in options.bench.map_or(BenchName::ALL.to_vec(), |one| vec![one]) {
        for machine in machines(bench, asked, cores, options.threads) {
            let task = Task::Workload { name: bench.workload().to_owned(), rounds: options.rounds };
            let mut plan = guest::plan(&options.guest, machine, Medium::Pvh(kernel.clone()), task, options.guest.seed);
            plan.timeout.get_or_insert(time_limit(options.rounds));
            run::announce(&plan);
            let run = runner::run(workspace, &emulator, &plan, &mut ())?;
            if !run.verdict.passed() {
                let symbols = Symbols::load(&kernel, workspace.root());
                postmortem::report(&run, &symbols).iter().for_each(|line| println!("{line}"));
                return Ok(false);
            }
            let rows = bench::rows(&run.ended.transcript.phases);
            println!("\n{} on {machine}, seed {}, {cores} host cores", bench.workload(), plan.seed);
            println!("{}", table(bench, &rows));
            all.push(Figures { bench: bench.workload(), machine: machine.to_string(), seed: plan.seed, rows });
        }
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&all).context("cannot write the figures")?;
        super::write(path, &(json + "\n"))?;
    }
    Ok(true)
}

/// How long the kernel may take for so many rounds; a day at most.
fn time_limit(rounds: Option<u64>) -> Duration {
    let rounds = rounds.unwrap_or(USUAL_ROUNDS).min(1440);
    ROUND_LIMIT * u32::try_from(rounds).unwrap_or(1440)
}

fn table(bench: BenchName, rows: &[Row]) -> String {
    match bench {
        BenchName::Locks => bench::locks(rows),
        BenchName::Waiting => bench::waiting(rows),
        BenchName::Storage => bench::storage(rows),
        BenchName::Tables => bench::tables(rows),
    }
}

/// The machines to measure on: as asked for, and then under a counted clock where threads hide the waiting. A lock that nobody
/// waits for is measured by the caches, which a count of instructions knows nothing of.
fn machines(bench: BenchName, asked: Machine, cores: usize, threads: bool) -> Vec<Machine> {
    let counted = on_its_clock(asked, cores, threads);
    if bench == BenchName::Storage || counted == asked { vec![asked] } else { vec![asked, counted] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Clock, EIGHT_CPUS};

    #[test]
    fn contests_are_held_on_both_clocks_where_cores_are_too_few() {
        let clocks = |bench, cores, threads| -> Vec<bool> {
            machines(bench, EIGHT_CPUS, cores, threads).iter().map(|machine| machine.clock == Clock::Host).collect()
        };
        assert_eq!(clocks(BenchName::Locks, 2, false), [true, false]);
        assert_eq!(clocks(BenchName::Waiting, 2, true), [true]);
        assert_eq!(clocks(BenchName::Locks, 8, false), [true]);
        assert_eq!(clocks(BenchName::Storage, 2, false), [true]);
        assert_eq!(clocks(BenchName::Tables, 2, false), [true, false]);
    }
}
