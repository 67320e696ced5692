use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch_x86::{interrupts, percpu};
use mm::cpu::{CpuMask, CpuSet};

use super::call_on;
use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::smp::online;
use crate::thread::spawn_on;

ktest! {
    /// An interrupt sent to one CPU arrives at that CPU and at no other.
    fn a_call_reaches_the_cpu_it_is_for(_t: &TestContext) {
        for cpu in online().iter() {
            let ran_on = CpuMask::new();
            call_on(CpuSet::only(cpu), &|| {
                ran_on.add(percpu::cpu(), Ordering::Relaxed);
            });
            ktest_assert_eq!(ran_on.load(Ordering::Relaxed), CpuSet::only(cpu));
        }
    }

    /// A call to all CPUs runs once on each, the caller included, with interrupts off.
    fn a_call_to_all_runs_once_on_each(t: &TestContext) {
        let (runs, ran_on, deaf) = (AtomicUsize::new(0), CpuMask::new(), AtomicUsize::new(0));
        call_on(online(), &|| {
            runs.fetch_add(1, Ordering::Relaxed);
            ran_on.add(percpu::cpu(), Ordering::Relaxed);
            deaf.fetch_add(usize::from(!interrupts::enabled()), Ordering::Relaxed);
        });
        ktest_assert_eq!(runs.load(Ordering::Relaxed), t.cpus());
        ktest_assert_eq!(deaf.load(Ordering::Relaxed), t.cpus());
        ktest_assert_eq!(ran_on.load(Ordering::Relaxed), online());
    }

    /// Callers on all CPUs at once answer each other while they wait, so all calls are made.
    fn callers_answer_each_other(t: &TestContext) {
        const CALLS: usize = 20;
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        RUNS.store(0, Ordering::Relaxed);
        let callers: Result<Vec<_>, _> = online()
            .iter()
            .map(|cpu| {
                spawn_on(cpu, "caller", || {
                    for _ in 0..CALLS {
                        call_on(online(), &|| {
                            RUNS.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                })
            })
            .collect();
        for caller in callers? {
            caller.join();
        }
        ktest_assert_eq!(RUNS.load(Ordering::Relaxed), CALLS * t.cpus() * t.cpus());
    }

    /// Every CPU's own timer ticks.
    fn every_cpu_ticks(_t: &TestContext) {
        use crate::watchdog::last_tick;
        let before: Vec<_> = online().iter().map(|cpu| (cpu, last_tick(cpu))).collect();
        crate::thread::sleep(500_000_000);
        for (cpu, earlier) in before {
            ktest_assert!(last_tick(cpu) > earlier, "cpu {} has not ticked for half a second", cpu.0);
        }
    }
}
