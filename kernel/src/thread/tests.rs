use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch_x86::{percpu, time};
use mm::config::NR_CPUS;
use mm::cpu::CpuId;

use super::{SpawnError, block_until, block_while, sleep, spawn_on, wake, yield_now};
use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::smp::online;
use crate::tests::support::NoTicks;

const MILLISECOND: u64 = 1_000_000;

ktest! {
    /// A thread runs on the CPU it was started on and gives its result to whoever joins it.
    fn a_thread_runs_where_it_was_started(_t: &TestContext) {
        for cpu in online().iter() {
            ktest_assert_eq!(spawn_on(cpu, "where", percpu::cpu)?.join(), cpu);
        }
    }

    /// There is no thread on a CPU that is not up.
    fn an_absent_cpu_runs_no_thread(_t: &TestContext) {
        if let Some(absent) = (0..NR_CPUS as u32).map(CpuId).find(|cpu| !online().contains(*cpu)) {
            ktest_assert_eq!(spawn_on(absent, "nowhere", || ()).err(), Some(SpawnError::NoSuchCpu));
        }
    }

    /// A sleep lasts at least as long as asked for, on every CPU.
    fn a_sleep_is_not_too_short(_t: &TestContext) {
        let sleepers: Result<Vec<_>, _> = online()
            .iter()
            .map(|cpu| {
                spawn_on(cpu, "sleeper", || {
                    let start = time::now_nanos();
                    sleep(30 * MILLISECOND);
                    time::now_nanos() - start
                })
            })
            .collect();
        for sleeper in sleepers? {
            let slept = sleeper.join();
            ktest_assert!(slept >= 30 * MILLISECOND, "slept {slept} ns");
        }
    }

    /// A join with a limit gives up on a thread that goes on; a later join still has its result.
    fn a_join_can_give_up_and_come_back(_t: &TestContext) {
        for cpu in online().iter() {
            let release = Arc::new(AtomicBool::new(false));
            let awaited = Arc::clone(&release);
            let handle = spawn_on(cpu, "late", move || {
                let key = Arc::as_ptr(&awaited).addr();
                block_while(key, &mut || !awaited.load(Ordering::Acquire));
                7
            })?;
            let Err(handle) = handle.join_within(20 * MILLISECOND) else {
                return Err(crate::harness::Stop::failed(format_args!("joined a thread that waits")));
            };
            release.store(true, Ordering::Release);
            wake(Arc::as_ptr(&release).addr());
            ktest_assert_eq!(handle.join(), 7);
        }
    }

    /// Threads of one CPU take turns when they yield.
    fn yielding_threads_take_turns(_t: &TestContext) {
        for cpu in online().iter() {
            let turns = Arc::new(AtomicUsize::new(0));
            // The first waits for the second, so each needs the other to give way.
            let threads: Result<Vec<_>, _> = (0..2)
                .map(|me| {
                    let turns = Arc::clone(&turns);
                    spawn_on(cpu, "turn", move || {
                        for turn in 0..50 {
                            while turns.load(Ordering::Acquire) != 2 * turn + me {
                                yield_now();
                            }
                            turns.fetch_add(1, Ordering::Release);
                        }
                    })
                })
                .collect();
            for thread in threads? {
                thread.join();
            }
            ktest_assert_eq!(turns.load(Ordering::Acquire), 100);
        }
    }

    /// A time limit ends a wait that nobody ends, and a wake-up ends it earlier.
    fn a_wait_ends_at_its_limit_or_its_wake_up(_t: &TestContext) {
        let key = percpu::cpu().index() + 0x1000;
        ktest_assert!(!block_until(key, time::now_nanos() + 20 * MILLISECOND, &mut || true));
        ktest_assert!(block_until(key, time::now_nanos() + 20 * MILLISECOND, &mut || false));
        let flag = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&flag);
        let waker = spawn_on(percpu::cpu(), "waker", move || {
            seen.store(false, Ordering::Release);
            wake(key);
        })?;
        ktest_assert!(block_until(key, time::now_nanos() + 50_000 * MILLISECOND, &mut || flag.load(Ordering::Acquire)));
        waker.join();
    }

    /// A thread that becomes ready on a halted CPU starts without waiting for a tick.
    fn a_halted_cpu_is_woken_for_a_thread(_t: &TestContext) {
        let _no_ticks = NoTicks::new();
        for cpu in online().iter() {
            for _ in 0..20 {
                spawn_on(cpu, "prompt", || ())?.join();
            }
        }
    }

    /// A token handed round all CPUs thousands of times by block_while and wake never gets stuck: no wake-up is lost.
    fn no_wake_up_is_lost(t: &TestContext) {
        const ROUNDS: usize = 300;
        let _no_ticks = NoTicks::new();
        let runners = t.cpus().max(2);
        let turn = Arc::new(AtomicUsize::new(0));
        let cpus: Vec<CpuId> = online().iter().cycle_to(runners);
        let threads: Result<Vec<_>, _> = cpus
            .into_iter()
            .enumerate()
            .map(|(me, cpu)| {
                let turn = Arc::clone(&turn);
                spawn_on(cpu, "runner", move || {
                    let key = Arc::as_ptr(&turn).addr();
                    for round in 0..ROUNDS {
                        block_while(key, &mut || turn.load(Ordering::Acquire) != round * runners + me);
                        turn.fetch_add(1, Ordering::Release);
                        wake(key);
                    }
                })
            })
            .collect();
        for thread in threads? {
            thread.join();
        }
        ktest_assert_eq!(turn.load(Ordering::Acquire), ROUNDS * runners);
    }

    /// Pairs of CPUs that wake each other as they fall asleep never miss each other: a wake-up that comes between the last
    /// look at the run queue and the halt is not lost.
    fn a_cpu_is_woken_as_it_halts(t: &TestContext) {
        const ROUNDS: usize = 3000;
        let _no_ticks = NoTicks::new();
        let cpus: Vec<CpuId> = online().iter().collect();
        let mut threads = Vec::new();
        for pair in cpus.chunks_exact(2) {
            let turn = Arc::new(AtomicUsize::new(0));
            for (me, cpu) in pair.iter().enumerate() {
                let turn = Arc::clone(&turn);
                threads.push(spawn_on(*cpu, "partner", move || {
                    let key = Arc::as_ptr(&turn).addr();
                    for round in 0..ROUNDS {
                        block_while(key, &mut || turn.load(Ordering::Acquire) != 2 * round + me);
                        turn.fetch_add(1, Ordering::Release);
                        wake(key);
                    }
                })?);
            }
        }
        t.check(threads.len() == t.cpus() & !1, format_args!("{} threads", threads.len()));
        for thread in threads {
            thread.join();
        }
    }

    /// A time limit that passes after the wake-up, but before the thread has run, does not end the wait a second time.
    fn a_limit_after_the_wake_up_changes_nothing(_t: &TestContext) {
        for cpu in online().iter() {
            let waits = Arc::new(AtomicBool::new(true));
            let key = Arc::as_ptr(&waits).addr();
            let asked = Arc::clone(&waits);
            let waiter = spawn_on(cpu, "waiter", move || {
                let limit = time::now_nanos() + 30 * MILLISECOND;
                block_until(key, limit, &mut || asked.load(Ordering::Acquire))
            })?;
            // Wakes the waiter and then keeps their CPU beyond the waiter's limit; its ticks find the limit passed.
            let hog = spawn_on(cpu, "hog", move || {
                waits.store(false, Ordering::Release);
                wake(key);
                time::spin_for(60 * MILLISECOND);
            })?;
            hog.join();
            ktest_assert!(waiter.join());
            for _ in 0..3 {
                spawn_on(cpu, "after", || ())?.join();
            }
        }
    }

    /// Wake-ups that race with the end of a time limit neither get lost nor come twice.
    fn wake_ups_race_with_time_limits(t: &TestContext) {
        const ROUNDS: usize = 40;
        let given = Arc::new(AtomicUsize::new(0));
        let taken = Arc::new(AtomicUsize::new(0));
        let takers: Result<Vec<_>, _> = online()
            .iter()
            .map(|cpu| {
                let (given, taken) = (Arc::clone(&given), Arc::clone(&taken));
                spawn_on(cpu, "taker", move || {
                    let key = Arc::as_ptr(&given).addr();
                    let mut got = 0;
                    while got < ROUNDS {
                        let mut take =
                            || given.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_sub(1)).is_err();
                        // Shorter than a tick, so that limit and wake-up often come together.
                        if block_until(key, time::now_nanos() + 5 * MILLISECOND, &mut take) {
                            got += 1;
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let takers = takers?;
        let total = ROUNDS * t.cpus();
        for _ in 0..total {
            given.fetch_add(1, Ordering::AcqRel);
            wake(Arc::as_ptr(&given).addr());
            yield_now();
        }
        for taker in takers {
            taker.join();
        }
        ktest_assert_eq!((given.load(Ordering::Acquire), taken.load(Ordering::Acquire)), (0, total));
    }

    /// Stacks come back: more threads than there are stacks can run one after the other.
    fn stacks_are_given_out_again(_t: &TestContext) {
        for _ in 0..50 {
            let threads: Result<Vec<_>, _> = online().iter().map(|cpu| spawn_on(cpu, "short", || ())).collect();
            for thread in threads? {
                thread.join();
            }
        }
    }

    /// When all stacks are in use, starting a thread is an error, and the stacks that are freed serve again.
    fn running_out_of_stacks_is_an_error(_t: &TestContext) {
        let release = Arc::new(AtomicBool::new(false));
        let key = Arc::as_ptr(&release).addr();
        let mut waiting = Vec::new();
        let refused = loop {
            let release = Arc::clone(&release);
            match spawn_on(percpu::cpu(), "crowd", move || block_while(key, &mut || !release.load(Ordering::Acquire))) {
                Ok(handle) => waiting.push(handle),
                Err(error) => break error,
            }
        };
        release.store(true, Ordering::Release);
        wake(key);
        for handle in waiting {
            handle.join();
        }
        ktest_assert_eq!(refused, SpawnError::NoStack);
        spawn_on(percpu::cpu(), "after", || ())?.join();
    }
}

/// Repeats the members until there are `count`.
trait CycleTo: Iterator<Item = CpuId> + Sized {
    fn cycle_to(self, count: usize) -> Vec<CpuId> {
        let members: Vec<CpuId> = self.collect();
        (0..count).filter_map(|index| members.get(index % members.len()).copied()).collect()
    }
}

impl<I: Iterator<Item = CpuId>> CycleTo for I {}
