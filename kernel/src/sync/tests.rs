use alloc::sync::Arc;
use alloc::vec::Vec;

use arch_x86::{interrupts, percpu};

use super::{LockName, Spin, acquisitions, awaited_by, held_by};
use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::smp::online;
use crate::thread::spawn_on;

ktest! {
    /// Additions made under the lock by all CPUs are all there in the end.
    fn the_lock_excludes(t: &TestContext) {
        const ADDITIONS: u64 = 2000;
        let sum = Arc::new(Spin::new(&LockName("test sum"), 0_u64));
        let adders: Result<Vec<_>, _> = online()
            .iter()
            .map(|cpu| {
                let sum = Arc::clone(&sum);
                spawn_on(cpu, "adder", move || {
                    for _ in 0..ADDITIONS {
                        let mut sum = sum.lock();
                        // Apart, so that a lock that does not exclude loses some.
                        let old = *sum;
                        core::hint::spin_loop();
                        *sum = old + 1;
                    }
                })
            })
            .collect();
        for adder in adders? {
            adder.join();
        }
        ktest_assert_eq!(*sum.lock(), ADDITIONS * t.cpus() as u64);
    }

    /// Each acquisition counts once, on the CPU that made it.
    fn acquisitions_are_counted(_t: &TestContext) {
        let lock = Spin::new(&LockName("test"), ());
        let counted = interrupts::without(|| {
            let before = acquisitions(percpu::cpu());
            for _ in 0..3 {
                drop(lock.lock());
            }
            acquisitions(percpu::cpu()) - before
        });
        ktest_assert_eq!(counted, 3);
    }

    /// A lock is on its holder's record while it is held, and interrupts are off so long.
    fn a_held_lock_is_on_record(_t: &TestContext) {
        let lock = Spin::new(&LockName("test"), ());
        let address = core::ptr::from_ref(&lock).addr();
        let on_record = || held_by(percpu::cpu()).any(|held| held == ("test", address));
        ktest_assert!(!on_record());
        let guard = lock.lock();
        let (seen, enabled) = (on_record(), interrupts::enabled());
        drop(guard);
        ktest_assert!(seen && !enabled);
        ktest_assert!(!on_record() && interrupts::enabled());
    }

    /// A lock that another CPU waits for is on that CPU's record, until the CPU has it.
    fn an_awaited_lock_is_on_record(t: &TestContext) {
        let Some(other) = online().without(percpu::cpu()).iter().next() else {
            crate::harness::ktest_skip!("needs two CPUs");
        };
        let lock = Arc::new(Spin::new(&LockName("awaited"), ()));
        let address = Arc::as_ptr(&lock).addr();
        let guard = lock.lock();
        let waiter = interrupts_on_spawn(other, Arc::clone(&lock));
        let give_up = arch_x86::time::now_nanos() + 5_000_000_000;
        let mut seen = false;
        while !seen && arch_x86::time::now_nanos() < give_up {
            seen = awaited_by(other) == Some(("awaited", address));
        }
        drop(guard);
        waiter?.join();
        t.check(seen, format_args!("cpu {} waits, but not on record", other.0));
        ktest_assert_eq!(awaited_by(other), None);
    }
}

/// `spawn_on` takes locks and may send a kick, which is fine with interrupts off.
fn interrupts_on_spawn(
    cpu: mm::cpu::CpuId,
    lock: Arc<Spin<()>>,
) -> Result<crate::thread::JoinHandle<()>, crate::thread::SpawnError> {
    spawn_on(cpu, "waiter", move || drop(lock.lock()))
}
