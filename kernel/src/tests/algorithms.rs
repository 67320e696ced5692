//! Every lock algorithm on the real machine: it excludes, and who halts for it is woken.

use arch_x86::machine::{X86, set_waiting_rule};
use mm::machine::{Machine, WaitingRule};
use mm::stats::LockCounter;

use crate::harness::{TestContext, TestResult, ktest, ktest_assert};
use crate::smp::online;
use crate::workload::locks::{ALGORITHMS, Load};

ktest! {
    /// I44: all CPUs increment a number under each algorithm's lock, by the machine's own waiting rule; none is lost.
    fn every_algorithm_excludes(t: &TestContext) {
        contend(t, None)?;
    }

    /// I47, R38: the same where a waiter halts after one look, so that most who wait have to be woken. A wake-up that is lost
    /// is a hang.
    fn every_algorithm_wakes_who_halts(t: &TestContext) {
        let result = contend(t, Some(WaitingRule { rounds: 2, polls: 1, polls_per_pause: 1 }));
        set_waiting_rule(None);
        result?;
    }
}

fn contend(t: &TestContext, rule: Option<WaitingRule>) -> TestResult {
    set_waiting_rule(rule);
    let load = Load { nanoseconds: 20_000_000, hold: 2_000, away: 500 };
    for algorithm in &ALGORITHMS {
        let outcome = (algorithm.contend)(online(), &load, t.random().next_u64())?;
        let (turns, halts) = (outcome.all_turns(), outcome.count(LockCounter::Halts));
        t.note(format_args!("{}: {turns} turns, {halts} halts", algorithm.name));
        ktest_assert!(outcome.excluded(), "{}: {} of {turns} turns counted", algorithm.name, outcome.counted_turns);
        ktest_assert!(rule.is_none() || t.cpus() == 1 || halts > 0, "{}: nobody halted", algorithm.name);
        ktest_assert!(
            X86.cpus().iter().all(|(_, local)| local.parking.waiting_for().is_none()),
            "{}: a CPU still waits",
            algorithm.name
        );
    }
    Ok(())
}
