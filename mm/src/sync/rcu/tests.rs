//! Which reports end which grace period, one step after the other. All interleavings: `tests/loom_lock.rs`.

use super::{
    GracePeriod, Rcu, enter_idle, exit_idle, on_interrupt, quiescent, read_lock, synchronize, synchronize_expedited,
};
use crate::cpu::CpuId;
use crate::machine::Machine;
use crate::sync::atomic::{AtomicUsize, Ordering, REFRESH};
use crate::sync::testing::{TestMachine, machine};

const WAITER: CpuId = CpuId(0);
const READER: CpuId = CpuId(1);

/// Runs `test` as the reader, with what starts and polls grace periods on the waiter's CPU.
fn as_reader(test: impl FnOnce(TestMachine, &dyn Fn() -> GracePeriod, &dyn Fn(&mut GracePeriod) -> bool)) {
    let (sim, rcu) = (machine(2, 0, 1), Rcu::new());
    let machine = sim.handle();
    let start = || machine.run_cpu(WAITER, || GracePeriod::start(&rcu, machine));
    let poll = |period: &mut GracePeriod| machine.run_cpu(WAITER, || period.poll(machine));
    machine.run_cpu(READER, || test(machine, &start, &poll));
}

#[test]
fn a_grace_period_waits_for_the_outermost_section() {
    as_reader(|machine, start, poll| {
        let outer = read_lock(machine);
        let inner = read_lock(machine);
        let mut grace_period = start();
        drop(inner);
        on_interrupt(machine);
        assert!(!poll(&mut grace_period));
        drop(outer);
        assert!(poll(&mut grace_period));
    });
}

#[test]
fn a_busy_cpu_outside_of_a_section_is_interrupted_and_reports() {
    as_reader(|machine, start, poll| {
        let mut grace_period = start();
        assert!(!poll(&mut grace_period));
        machine.run_cpu(WAITER, || grace_period.expedite(machine));
        machine.pause();
        assert!(machine.interrupts_taken(READER) > 0);
        assert!(poll(&mut grace_period));
    });
}

/// A busy CPU outside of a section, which would never report by itself, and rules under which a waiter that is not in
/// a hurry would leave it alone for ever.
#[test]
fn an_expedited_grace_period_interrupts_busy_cpus_at_once() {
    let (sim, rcu) = (machine(2, 0, u32::MAX), Rcu::new());
    let machine = sim.handle();
    let done = AtomicUsize::new(0);
    machine.run_all(|cpu| {
        if cpu == WAITER {
            synchronize_expedited(&rcu, machine);
            done.store(1, Ordering::Release);
        }
        while done.load(Ordering::Acquire) == 0 {
            machine.pause();
        }
    });
}

#[test]
fn a_context_switch_is_a_report() {
    as_reader(|machine, start, poll| {
        let mut grace_period = start();
        assert!(!poll(&mut grace_period));
        quiescent(machine);
        assert!(poll(&mut grace_period));
    });
}

#[test]
fn nobody_waits_for_an_idle_cpu() {
    as_reader(|machine, start, poll| {
        enter_idle(machine);
        assert!(poll(&mut start()));
        exit_idle(machine);
        let mut grace_period = start();
        assert!(!poll(&mut grace_period));
        enter_idle(machine);
        assert!(poll(&mut grace_period));
        exit_idle(machine);
    });
}

#[test]
fn a_section_opened_later_is_not_waited_for() {
    as_reader(|machine, start, poll| {
        let mut early = start();
        on_interrupt(machine);
        let section = read_lock(machine);
        let mut late = start();
        assert!(poll(&mut early));
        assert!(!poll(&mut late));
        drop(section);
        assert!(poll(&mut late));
    });
}

#[test]
fn a_grace_period_started_inside_a_section_waits_for_that_section() {
    as_reader(|machine, _, _| {
        let rcu = Rcu::new();
        let section = read_lock(machine);
        let mut grace_period = GracePeriod::start(&rcu, machine);
        assert!(!grace_period.poll(machine));
        drop(section);
        assert!(grace_period.poll(machine));
    });
}

/// CPU 0 replaces the current one of two cells, waits, and writes to the old one, which readers must have left.
#[test]
fn readers_never_see_what_was_freed() {
    // The second: numbers come round on the way, as they do where words are small.
    for newest in [0, usize::MAX - 100] {
        run_readers(newest);
    }
}

fn run_readers(newest: usize) {
    const FREED: usize = usize::MAX;
    let (sim, rcu) = (machine(4, 0, 10), Rcu { newest: AtomicUsize::new(newest) });
    let machine = sim.handle();
    for (_, local) in machine.cpus().iter() {
        local.rcu.requested.store(newest, Ordering::Relaxed);
        local.rcu.reported.store(newest, Ordering::Relaxed);
    }
    let cells = [AtomicUsize::new(0), AtomicUsize::new(FREED)];
    let (current, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    machine.run_all(|cpu| {
        if cpu == WAITER {
            for turn in 1..=200 {
                let (old, new) = ((turn - 1) % 2, turn % 2);
                cells[new].store(turn, Ordering::Relaxed);
                current.store(new, Ordering::Release);
                synchronize(&rcu, machine);
                cells[old].store(FREED, Ordering::Relaxed);
            }
            done.store(1, Ordering::Release);
        } else {
            while done.load(Ordering::Acquire) == 0 {
                let section = read_lock(machine);
                let cell = &cells[current.load(Ordering::Acquire)];
                for _ in 0..4 {
                    assert_ne!(cell.load(Ordering::Relaxed), FREED, "a reader's cell was freed");
                    machine.pause();
                }
                drop(section);
                machine.pause();
            }
        }
    });
}

/// A CPU that is idle for more than half a round would else seem to have reported what nobody has asked it for yet.
#[test]
fn an_idle_cpu_falls_behind_by_a_quarter_of_a_round_at_most() {
    let sim = machine(2, 0, 1);
    let machine = sim.handle();
    let far = |round: usize| round.wrapping_mul(REFRESH);
    for round in 1..=6 {
        let rcu = Rcu { newest: AtomicUsize::new(far(round).wrapping_sub(2)) };
        machine.run_cpu(WAITER, || {
            for _ in 0..4 {
                let _ = GracePeriod::start(&rcu, machine);
            }
        });
        machine.run_cpu(READER, || {
            let reader = &machine.local().rcu;
            assert_eq!(reader.reported.load(Ordering::Relaxed), far(round));
            let section = read_lock(machine);
            let mut grace_period = machine.run_cpu(WAITER, || GracePeriod::start(&rcu, machine));
            assert!(!machine.run_cpu(WAITER, || grace_period.poll(machine)));
            drop(section);
            assert!(machine.run_cpu(WAITER, || grace_period.poll(machine)));
        });
    }
}

/// A CPU that starts all grace periods is waited for by none. One that another CPU starts after more than half a round would else
/// find that the first has reported it already, and end in the midst of its section.
#[test]
fn a_cpu_that_starts_all_grace_periods_falls_behind_by_a_quarter_of_a_round_at_most() {
    for quarters in 1..=6_usize {
        let sim = machine(2, 0, 1);
        let machine = sim.handle();
        let rcu = Rcu::new();
        machine.run_cpu(READER, || {
            for quarter in 1..=quarters {
                rcu.newest.store(quarter.wrapping_mul(REFRESH).wrapping_sub(2), Ordering::Relaxed);
                for _ in 0..4 {
                    let _ = GracePeriod::start(&rcu, machine);
                    quiescent(machine);
                }
            }
            let section = read_lock(machine);
            let mut grace_period = machine.run_cpu(WAITER, || GracePeriod::start(&rcu, machine));
            assert!(!machine.run_cpu(WAITER, || grace_period.poll(machine)), "after {quarters} quarters");
            drop(section);
            assert!(machine.run_cpu(WAITER, || grace_period.poll(machine)));
        });
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "its own read section")]
fn waiting_inside_a_section_is_caught() {
    as_reader(|machine, _, _| {
        let _section = read_lock(machine);
        synchronize(&Rcu::new(), machine);
    });
}

#[test]
#[cfg(debug_assertions)]
fn reading_in_idle_is_caught() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    as_reader(|machine, _, _| {
        enter_idle(machine);
        let caught = catch_unwind(AssertUnwindSafe(|| drop(read_lock(machine))));
        exit_idle(machine);
        assert!(caught.is_err());
    });
}
