//! What every lock algorithm must do, as one list of tests run for each of them.
//!
//! The same properties under every interleaving: `tests/loom_algorithms.rs`.

use super::LockClass::Pte;
use super::RawLock;
use super::atomic::Ordering::{Acquire, Release};
use super::atomic::plain::AtomicUsize;
use super::mcs::McsLock;
use super::spin::SpinLock;
use super::test_and_set::TestAndSetLock;
use super::testing::{TestMachine, machine, unlock};
use super::ticket::{FifoLock, TicketLock};
use crate::cpu::CpuId;
use crate::machine::Machine;
use crate::machine::sim::Body;
use crate::stats::{LockCounter, LockPeak, StatsSnapshot};

/// Makes one test of each name for each algorithm.
macro_rules! for_each_algorithm {
    ($($test:ident $(: should_panic $text:literal)?),+ $(,)?) => {
        for_each_algorithm!(@of test_and_set, TestAndSetLock, [$($test $(: should_panic $text)?),+]);
        for_each_algorithm!(@of fifo, FifoLock, [$($test $(: should_panic $text)?),+]);
        for_each_algorithm!(@of ticket, TicketLock, [$($test $(: should_panic $text)?),+]);
        for_each_algorithm!(@of mcs, McsLock, [$($test $(: should_panic $text)?),+]);
    };
    (@of $module:ident, $lock:ident, [$($test:ident $(: should_panic $text:literal)?),+]) => {
        mod $module {
            $(
                #[test]
                $(#[should_panic(expected = $text)])?
                fn $test() {
                    super::$test::<super::$lock>();
                }
            )+
        }
    };
}

for_each_algorithm! {
    fits_into_a_long,
    excludes,
    waiters_that_always_sleep_are_woken,
    a_sleeper_is_visible_and_kicked,
    try_lock_neither_waits_nor_queues,
    try_lock_fails_where_others_queue,
    a_cpu_that_is_alone_may_lock_with_interrupts_off,
}

#[cfg(debug_assertions)]
mod misuse {
    use super::*;

    for_each_algorithm! {
        locking_with_interrupts_off: should_panic "I24",
        trying_with_interrupts_off: should_panic "I24",
        taking_a_lock_twice: should_panic "taken twice",
    }

    fn locking_with_interrupts_off<L: RawLock>() {
        deaf(|machine| L::new().lock(machine, Pte));
    }

    fn trying_with_interrupts_off<L: RawLock>() {
        deaf(|machine| assert!(!L::new().try_lock(machine, Pte), "taken"));
    }

    fn deaf(work: impl FnOnce(TestMachine) + Send) {
        let sim = machine(2, 0, 1);
        let machine = sim.handle();
        machine.run_cpu(CpuId(0), || {
            machine.irq_save();
            work(machine);
        });
    }

    fn taking_a_lock_twice<L: RawLock>() {
        let sim = machine(1, 0, 1);
        let machine = sim.handle();
        let lock = L::new();
        machine.run_cpu(CpuId(0), || {
            lock.lock(machine, Pte);
            lock.lock(machine, Pte);
        });
    }
}

/// Spec 4.2: inline in the frame descriptor.
fn fits_into_a_long<L: RawLock>() {
    assert!(size_of::<L>() <= size_of::<usize>() && align_of::<L>() <= align_of::<usize>());
}

/// I44.
fn excludes<L: RawLock>() {
    increments_add_up::<L>(8, 10);
}

/// I47.
fn waiters_that_always_sleep_are_woken<L: RawLock>() {
    increments_add_up::<L>(2, 1);
}

/// Every CPU increments a counter under one lock; nothing is lost, and nobody is left behind.
fn increments_add_up<L: RawLock>(rounds: u32, polls: u32) {
    const CPUS: usize = 6;
    const TURNS: u64 = 700;
    let sim = machine(CPUS, rounds, polls);
    let machine = sim.handle();
    let counter = SpinLock::<u64, L>::new(0);
    machine.run_all(|_| {
        for _ in 0..TURNS {
            let mut counter = counter.lock(machine, Pte);
            let seen = *counter;
            // Time for the others to come and wait.
            machine.pause();
            *counter = seen + 1;
        }
    });
    let stats = StatsSnapshot::sum(machine.cpus());
    assert!(!counter.raw().is_locked() && !counter.raw().is_contended());
    assert!(machine.cpus().iter().all(|(_, local)| local.parking.waiting_for().is_none()));
    assert_eq!(stats.locks(&[Pte], LockCounter::Acquired), CPUS as u64 * TURNS);
    assert!(stats.locks(&[Pte], LockCounter::Halts) > 0, "nobody ever had to halt");
    assert_eq!(machine.run_cpu(CpuId(0), || *counter.lock(machine, Pte)), CPUS as u64 * TURNS);
}

/// Whether `cpu` sleeps for a lock.
fn sleeps(machine: TestMachine, cpu: CpuId) -> bool {
    machine.cpus().of(cpu).parking.waiting_for().is_some_and(|waiting| waiting.asleep)
}

/// R38, as far as one execution shows it: CPU 1 sleeps, or is about to, when CPU 0 gives the lock up.
fn a_sleeper_is_visible_and_kicked<L: RawLock>() {
    let sim = machine(2, 0, 1);
    let machine = sim.handle();
    let lock = L::new();
    let owner = || {
        lock.lock(machine, Pte);
        while !(sleeps(machine, CpuId(1)) && lock.is_contended()) {
            machine.pause();
        }
        let seen = machine.cpus().of(CpuId(1)).parking.waiting_for().unwrap();
        assert_eq!((seen.lock, seen.class), ((&raw const lock).addr(), Pte));
        unlock(&lock, machine);
    };
    let waiter = || {
        while !lock.is_locked() {
            machine.pause();
        }
        lock.lock(machine, Pte);
        unlock(&lock, machine);
    };
    machine.run(vec![(CpuId(0), Box::new(owner) as Body<'_>), (CpuId(1), Box::new(waiter))]);
    let stats = StatsSnapshot::sum(machine.cpus());
    assert_eq!(stats.locks(&[Pte], LockCounter::Waited), 1);
    assert_eq!(stats.locks(&[Pte], LockCounter::Kicks), 1);
    assert!(stats.peak(&[Pte], LockPeak::WaitNanos) > 0);
}

/// I48: a `try_lock` in vain leaves nothing behind, neither in the word nor in the CPU's slot.
fn try_lock_neither_waits_nor_queues<L: RawLock>() {
    let sim = machine(2, 0, 1);
    let machine = sim.handle();
    let lock = L::new();
    let tried = AtomicUsize::new(0);
    let owner = || {
        assert!(lock.try_lock(machine, Pte));
        while tried.load(Acquire) == 0 {
            machine.pause();
        }
        unlock(&lock, machine);
    };
    let trier = || {
        while !lock.is_locked() {
            machine.pause();
        }
        assert!(!lock.try_lock(machine, Pte));
        assert!(!lock.is_contended());
        assert_eq!(machine.local().parking.waiting_for(), None);
        assert_eq!(machine.local().held.count(), 0);
        tried.store(1, Release);
        while lock.is_locked() {
            machine.pause();
        }
        assert!(lock.try_lock(machine, Pte));
        unlock(&lock, machine);
    };
    machine.run(vec![(CpuId(0), Box::new(owner) as Body<'_>), (CpuId(1), Box::new(trier))]);
    assert_eq!(StatsSnapshot::sum(machine.cpus()).locks(&[Pte], LockCounter::Waited), 0);
}

/// I48: CPU 2 tries while CPU 0 owns the lock and CPU 1 waits for it; the one who waits is not disturbed.
fn try_lock_fails_where_others_queue<L: RawLock>() {
    let sim = machine(3, 0, 1);
    let machine = sim.handle();
    let lock = L::new();
    let tried = AtomicUsize::new(0);
    let owner = || {
        lock.lock(machine, Pte);
        while tried.load(Acquire) == 0 {
            machine.pause();
        }
        unlock(&lock, machine);
    };
    let waiter = || {
        while !lock.is_locked() {
            machine.pause();
        }
        lock.lock(machine, Pte);
        unlock(&lock, machine);
    };
    let trier = || {
        while !lock.is_contended() {
            machine.pause();
        }
        assert!(!lock.try_lock(machine, Pte));
        assert_eq!(machine.local().parking.waiting_for(), None);
        tried.store(1, Release);
    };
    let bodies: [Body<'_>; 3] = [Box::new(owner), Box::new(waiter), Box::new(trier)];
    machine.run((0..).map(CpuId).zip(bodies).collect());
    assert!(!lock.is_locked() && !lock.is_contended());
}

fn a_cpu_that_is_alone_may_lock_with_interrupts_off<L: RawLock>() {
    let sim = machine(1, 0, 1);
    let machine = sim.handle();
    machine.run_cpu(CpuId(0), || {
        let irqs = machine.irq_save();
        drop(SpinLock::<(), L>::new(()).lock(machine, Pte));
        machine.irq_restore(irqs);
    });
}

/// Algorithms that promise an order. The ticket lock does so with no rounds outside the queue.
mod in_order {
    use super::*;

    #[test]
    fn fifo() {
        waiters_are_served_in_the_order_they_came::<FifoLock>();
    }

    #[test]
    fn ticket() {
        waiters_are_served_in_the_order_they_came::<TicketLock>();
    }

    #[test]
    fn mcs() {
        waiters_are_served_in_the_order_they_came::<McsLock>();
    }

    /// I44: while CPU 0 owns the lock the others queue one after the other, the last CPU first, each when the one before it
    /// shows its place; then they are served in that order.
    fn waiters_are_served_in_the_order_they_came<L: RawLock>() {
        const CPUS: usize = 5;
        let sim = machine(CPUS, 0, 1);
        let machine = sim.handle();
        let order = SpinLock::<Vec<u32>, L>::new(Vec::new());
        let queues = |cpu: u32| {
            let waiting = machine.cpus().of(CpuId(cpu)).parking.waiting_for();
            waiting.is_some_and(|waiting| waiting.ticket.is_some())
        };
        machine.run_all(|cpu| {
            if cpu == CpuId(0) {
                let held = order.lock(machine, Pte);
                while !queues(1) {
                    machine.pause();
                }
                drop(held);
                return;
            }
            let comes_after = (cpu.0 + 1) % CPUS as u32;
            while !if comes_after == 0 { order.raw().is_locked() } else { queues(comes_after) } {
                machine.pause();
            }
            order.lock(machine, Pte).push(cpu.0);
        });
        let expected: Vec<u32> = (1..CPUS as u32).rev().collect();
        assert_eq!(machine.run_cpu(CpuId(0), || order.lock(machine, Pte).clone()), expected);
    }
}
