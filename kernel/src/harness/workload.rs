//! Workloads: long jobs that check themselves against oracles; one per `mode=run`.

use linkme::distributed_slice;

use super::{Name, Tally, deadline};
use crate::cmdline::Options;

/// A workload; registered in [`WORKLOADS`].
pub struct Workload {
    /// The word that chooses it on the command line.
    pub name: Name,
    /// Does the work and counts its oracles: those that held as passed, the others as failed.
    pub run: fn(&Job) -> Tally,
}

/// What a workload is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Every random choice comes from it.
    pub seed: u64,
    /// How often to repeat the work; `None`: as the workload sees fit.
    pub rounds: Option<u64>,
    /// How many CPUs are online.
    pub cpus: usize,
}

/// Every workload of this kernel.
#[distributed_slice]
pub static WORKLOADS: [Workload];

/// Runs the workload the options name. `None`: there is none of that name.
pub fn run_workload(options: &Options, cpus: usize) -> Option<Tally> {
    let workload = WORKLOADS.iter().find(|workload| workload.name.is(options.workload))?;
    let job = Job { seed: options.seed, rounds: options.rounds, cpus };
    let _limit = deadline::set(&workload.name, arch_x86::time::now_micros(), options.timeout);
    Some((workload.run)(&job))
}
