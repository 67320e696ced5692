//! Lock algorithms side by side: what `cargo xtask bench locks` and `bench waiting` run.
//!
//! `locks`: every algorithm at 1, 2, 4, … CPUs. `waiting`: the default one at all CPUs, under every waiting rule of a grid.
//! Both repeat all of it in rounds, so that whatever else the host does falls on every contestant, and write one `@phase` per
//! contest.

mod contest;

use arch_x86::machine::{X86, set_waiting_rule};
use linkme::distributed_slice;
use mm::cpu::CpuSet;
use mm::machine::{Machine, WaitingRule};
use mm::stats::LockCounter;
use mm::sync::mcs::McsLock;
use mm::sync::test_and_set::TestAndSetLock;
use mm::sync::ticket::{FifoLock, TicketLock};

use crate::harness::{Job, Name, Random, Tally, WORKLOADS, Workload};
use crate::record::Record;
use crate::smp;
use crate::thread::SpawnError;

pub use contest::{Load, Outcome, run as contend};

/// Rounds unless the command line says otherwise.
const ROUNDS: u64 = 3;
/// CPUs that contend, where there are so many.
const CPU_COUNTS: [usize; 4] = [1, 2, 4, 8];
/// Rounds outside the queue to choose from.
const OUTSIDE: [u32; 7] = [0, 1, 2, 4, 8, 16, 32];
/// Polls between two halts to choose from.
const POLLS: [u32; 4] = [128, 512, 2048, 8192];

#[distributed_slice(WORKLOADS)]
static LOCKS: Workload = Workload { name: Name::new("locks"), run: run_locks };

#[distributed_slice(WORKLOADS)]
static WAITING: Workload = Workload { name: Name::new("waiting"), run: run_waiting };

/// A contest for a lock of one type.
type Contend = fn(CpuSet, &Load, u64) -> Result<Outcome, SpawnError>;

/// An algorithm and its name in reports.
pub struct Algorithm {
    /// The name.
    pub name: &'static str,
    /// A contest for a lock of this algorithm.
    pub contend: Contend,
}

/// All algorithms, the default one first.
pub const ALGORITHMS: [Algorithm; 4] = [
    Algorithm { name: "ticket", contend: contend::<TicketLock> },
    Algorithm { name: "fifo", contend: contend::<FifoLock> },
    Algorithm { name: "mcs", contend: contend::<McsLock> },
    Algorithm { name: "test_and_set", contend: contend::<TestAndSetLock> },
];

fn run_locks(job: &Job) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::new(job.seed);
    for _ in 0..job.rounds.unwrap_or(ROUNDS) {
        for count in CPU_COUNTS.into_iter().filter(|&count| count <= job.cpus) {
            let seed = random.next_u64();
            for algorithm in &ALGORITHMS {
                let outcome = (algorithm.contend)(first_cpus(count), &Load::BENCH, seed);
                report("locks", algorithm.name, X86.waiting_rule(), count, outcome, &mut tally);
            }
        }
    }
    tally
}

fn run_waiting(job: &Job) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::new(job.seed);
    let polls_per_pause = X86.waiting_rule().polls_per_pause;
    for _ in 0..job.rounds.unwrap_or(ROUNDS) {
        let seed = random.next_u64();
        for rule in OUTSIDE.iter().flat_map(|&rounds| POLLS.map(|polls| WaitingRule { rounds, polls, polls_per_pause }))
        {
            set_waiting_rule(Some(rule));
            let outcome = contend::<TicketLock>(smp::online(), &Load::BENCH, seed);
            report("waiting", "ticket", rule, job.cpus, outcome, &mut tally);
        }
    }
    set_waiting_rule(None);
    tally
}

/// The first `count` CPUs.
fn first_cpus(count: usize) -> CpuSet {
    CpuSet(smp::online().iter().take(count).fold(0, |set, cpu| set | CpuSet::only(cpu).0))
}

/// Writes one contest's record, and an oracle's if the lock did not exclude.
fn report(
    workload: &str,
    algorithm: &str,
    rule: WaitingRule,
    cpus: usize,
    outcome: Result<Outcome, SpawnError>,
    tally: &mut Tally,
) {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            log::error!("{workload}: {algorithm} on {cpus} CPUs cannot go on: {error:?}");
            tally.failed += 1;
            return;
        }
    };
    *if outcome.excluded() { &mut tally.passed } else { &mut tally.failed } += 1;
    if !outcome.excluded() {
        Record::new("oracle")
            .text("name", format_args!("{algorithm} excludes"))
            .flag("ok", false)
            .text("detail", format_args!("{} of {} turns counted", outcome.counted_turns, outcome.all_turns()))
            .emit();
    }
    Record::new("phase")
        .text("workload", workload)
        .text("phase", algorithm)
        .number("cpus", cpus as u64)
        .number("rounds", rule.rounds)
        .number("polls", rule.polls)
        .number("turns", outcome.all_turns())
        .number("nanoseconds", outcome.nanoseconds)
        .number("waited", outcome.count(LockCounter::Waited))
        .number("wait_mean", outcome.mean_wait())
        .number("wait_max", outcome.longest_wait())
        .number("halts", outcome.count(LockCounter::Halts))
        .number("kicks", outcome.count(LockCounter::Kicks))
        .number("least", outcome.turns.iter().copied().min().unwrap_or(0))
        .number("most", outcome.turns.iter().copied().max().unwrap_or(0))
        .emit();
}
