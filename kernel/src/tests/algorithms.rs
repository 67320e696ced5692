//! Every lock algorithm on the real machine: it excludes, and who halts for it is woken.

use core::hint::spin_loop;

use arch_x86::machine::{X86, set_waiting_rule};
use arch_x86::time;
use mm::cpu::CpuSet;
use mm::machine::{Machine, WaitingRule};
use mm::sync::mcs::McsLock;
use mm::sync::spin::SpinLock;
use mm::sync::test_and_set::TestAndSetLock;
use mm::sync::ticket::{FifoLock, TicketLock};
use mm::sync::{LockClass, RawLock};

use super::support::PATIENCE_NANOS;
use crate::harness::{TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::smp::online;
use crate::workload::crew;
use crate::workload::locks::{ALGORITHMS, Load};

/// Waiters halt after one look.
const SLEEPY: WaitingRule = WaitingRule { rounds: 2, polls: 1, polls_per_pause: 1 };

ktest! {
    /// I44: all CPUs increment a number under each algorithm's lock, by the machine's own waiting rule; none is lost.
    fn every_algorithm_excludes(t: &TestContext) {
        let load = Load { nanoseconds: 20_000_000, hold: 2_000, away: 500 };
        for algorithm in &ALGORITHMS {
            let outcome = (algorithm.contend)(online(), &load, t.random().next_u64())?;
            let turns = outcome.all_turns();
            ktest_assert!(outcome.excluded(), "{}: {} of {turns} turns counted", algorithm.name, outcome.counted_turns);
        }
    }

    /// I47, R38: a lock is held until every other CPU has halted for it; each of them is woken and has its turn. A wake-up that
    /// is lost is a hang.
    fn every_algorithm_wakes_who_halts(t: &TestContext) {
        set_waiting_rule(Some(SLEEPY));
        let result = all_sleep_and_are_woken::<TicketLock>(t)
            .and_then(|()| all_sleep_and_are_woken::<FifoLock>(t))
            .and_then(|()| all_sleep_and_are_woken::<McsLock>(t))
            .and_then(|()| all_sleep_and_are_woken::<TestAndSetLock>(t));
        set_waiting_rule(None);
        result?;
    }
}

fn all_sleep_and_are_woken<L: RawLock>(t: &TestContext) -> TestResult {
    let name = core::any::type_name::<L>();
    let lock = SpinLock::<u64, L>::new(0);
    let slept = crew::run(online(), &|member| {
        if member.index > 0 {
            member.meet_awake();
            *lock.lock(X86, LockClass::Pte) += 1;
            return true;
        }
        let _held = lock.lock(X86, LockClass::Pte);
        member.meet_awake();
        all_fall_asleep(online().without(member.cpu))
    })?;
    ktest_assert!(slept.into_iter().all(|slept| slept), "{name}: not all others halted");
    ktest_assert_eq!(*lock.lock(X86, LockClass::Pte), t.cpus() as u64 - 1);
    Ok(())
}

/// Waits until each of `cpus` has been seen asleep for a lock; whether that came.
fn all_fall_asleep(mut cpus: CpuSet) -> bool {
    let give_up = time::now_nanos().saturating_add(PATIENCE_NANOS);
    while !cpus.is_empty() && time::now_nanos() < give_up {
        for cpu in cpus.iter() {
            if X86.cpus().of(cpu).parking.waiting_for().is_some_and(|waiting| waiting.asleep) {
                cpus = cpus.without(cpu);
            }
        }
        spin_loop();
    }
    cpus.is_empty()
}
