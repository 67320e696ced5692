use alloc::sync::Arc;
use alloc::vec::Vec;

use arch_x86::{percpu, time};
use mm::config::NR_CPUS;
use spin::Mutex;

use super::online;
use crate::boot;
use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::thread::spawn_on;

ktest! {
    /// Every CPU the firmware names, up to the most the kernel drives, is up.
    fn all_cpus_are_up(t: &TestContext) {
        ktest_assert_eq!(t.cpus(), boot::info().cpus.apic_ids.len().min(NR_CPUS));
        ktest_assert_eq!(online().iter().count(), t.cpus());
    }

    /// Each CPU finds its own number and its own area, and has the boot CPU's protections switched on.
    fn each_cpu_has_its_own_area_and_all_protections(_t: &TestContext) {
        use arch_x86::control;
        let here = (control::cr0(), control::cr4());
        for cpu in online().iter() {
            let seen = spawn_on(cpu, "look", || {
                let area = percpu::current();
                (percpu::cpu(), area.number(), arch_x86::apic::id() == area.apic_id(), (control::cr0(), control::cr4()))
            })?;
            ktest_assert_eq!(seen.join(), (cpu, cpu, true, here));
        }
    }

    /// A time read on one CPU is never later than one read afterwards on another.
    fn the_clock_never_runs_backwards_between_cpus(_t: &TestContext) {
        const ROUNDS: usize = 2000;
        let latest = Arc::new(Mutex::new(0));
        let readers: Result<Vec<_>, _> = online()
            .iter()
            .map(|cpu| {
                let latest = Arc::clone(&latest);
                spawn_on(cpu, "clock reader", move || {
                    (0..ROUNDS).fold(0, |worst: u64, _| {
                        let before = *latest.lock();
                        let now = time::now_nanos();
                        let mut latest = latest.lock();
                        *latest = now.max(*latest);
                        worst.max(before.saturating_sub(now))
                    })
                })
            })
            .collect();
        for reader in readers? {
            let backwards = reader.join();
            ktest_assert!(backwards == 0, "the clock ran {backwards} ns backwards");
        }
    }

    /// The clock's rate agrees with that of the timer, which was measured on its own.
    fn clock_and_timer_agree(_t: &TestContext) {
        use crate::interrupt::TICKS_PER_SECOND;
        use crate::thread::sleep;
        const SHORT: u64 = 1_000_000;
        let tick = 1_000_000_000 / TICKS_PER_SECOND;
        // Sleeps end at ticks: from the end of one, ten more take ten ticks.
        sleep(SHORT);
        let start = time::now_nanos();
        for _ in 0..10 {
            sleep(SHORT);
        }
        let elapsed = time::now_nanos() - start;
        // The host holds vCPUs up, which makes a first tick late or all of them slow.
        ktest_assert!(elapsed > 9 * tick, "ten ticks took only {elapsed} ns");
        ktest_assert!(elapsed < 100 * tick, "ten ticks took {elapsed} ns");
    }
}
