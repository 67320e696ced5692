//! Each check is provoked, and its report read.

use super::DebugLock;
use crate::cpu::CpuId;
use crate::machine::Machine;
use crate::sync::LockClass::{Pmd, Pte};
use crate::sync::RawLock;
use crate::sync::order::address;
use crate::sync::testing::{TestMachine, machine};
use crate::sync::ticket::TicketLock;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Lock = DebugLock<TicketLock>;

fn unlock(lock: &Lock, machine: TestMachine) {
    // SAFETY: whether the caller holds the lock is what these tests ask.
    unsafe { lock.unlock(machine) }
}

/// The report `body` ends in.
fn report(body: impl FnOnce()) -> String {
    let result = catch_unwind(AssertUnwindSafe(body));
    *result.expect_err("nothing was noticed").downcast::<String>().expect("a report")
}

/// What every report says: the lock's class and address, and each place in this file.
#[track_caller]
fn assert_report(report: &str, lock: &Lock, says: &[&str], places: usize) {
    for part in says.iter().copied().chain([format!("{:#x}", std::ptr::from_ref(lock).addr()).as_str()]) {
        assert!(report.contains(part), "{part:?} is not in: {report}");
    }
    assert_eq!(report.matches("debug/tests.rs:").count(), places, "places: {report}");
}

/// I23: by one CPU, with both places.
#[test]
fn taking_a_lock_twice_is_reported() {
    let sim = machine(1, 0, 1);
    let (machine, lock) = (sim.handle(), Lock::new());
    machine.run_cpu(CpuId(0), || {
        lock.lock(machine, Pte);
        let report = report(|| lock.lock(machine, Pte));
        assert_report(
            &report,
            &lock,
            &["cpu 0 takes the lock of a PTE table (pte", "a second time", "cpu 0 has it"],
            2,
        );
        unlock(&lock, machine);
    });
}

#[test]
fn unlocking_by_a_stranger_is_reported() {
    let sim = machine(2, 0, 1);
    let (machine, lock) = (sim.handle(), Lock::new());
    machine.run_cpu(CpuId(1), || {
        lock.lock(machine, Pmd);
        let report = machine.run_cpu(CpuId(0), || report(|| unlock(&lock, machine)));
        let says = ["cpu 0 unlocks the lock of a PMD table", "another CPU has locked", "cpu 1 has it"];
        assert_report(&report, &lock, &says, 2);
        unlock(&lock, machine);
    });
}

#[test]
fn unlocking_what_nobody_has_locked_is_reported() {
    let sim = machine(1, 0, 1);
    let (machine, lock) = (sim.handle(), Lock::new());
    machine.run_cpu(CpuId(0), || {
        lock.lock(machine, Pte);
        unlock(&lock, machine);
        let report = report(|| unlock(&lock, machine));
        assert_report(
            &report,
            &lock,
            &["cpu 0 unlocks", "which nobody has locked", "nobody has it", "taken 1 times"],
            2,
        );
    });
}

/// I24. A CPU that is alone is exempt: the kernel boots so.
#[test]
fn locking_with_interrupts_off_is_reported() {
    let sim = machine(2, 0, 1);
    let (machine, lock) = (sim.handle(), Lock::new());
    machine.run_cpu(CpuId(0), || {
        let irqs = machine.irq_save();
        let waits = report(|| lock.lock(machine, Pte));
        let tries = report(|| assert!(!lock.try_lock(machine, Pte)));
        machine.irq_restore(irqs);
        for report in [waits, tries] {
            assert_report(&report, &lock, &["cpu 0 takes", "with interrupts off", "(I24)"], 1);
        }
    });
    assert!(!lock.is_locked());
}

/// I12: dropped where it lies, and written over by a new lock.
#[test]
fn freeing_and_re_initialising_a_held_lock_are_reported() {
    let sim = machine(1, 0, 1);
    let machine = sim.handle();
    for overwrite in [false, true] {
        let mut lock = ManuallyDrop::new(Lock::new());
        machine.run_cpu(CpuId(0), || {
            lock.lock(machine, Pte);
            let report = report(|| {
                if overwrite {
                    *lock = Lock::new();
                } else {
                    // SAFETY: dropped once; its memory is this frame's and stays.
                    unsafe { ManuallyDrop::drop(&mut lock) }
                }
            });
            machine.local().held.remove(address(&lock));
            let says = ["(pte) is freed or re-initialised while it is held (I12)", "cpu 0 has it"];
            assert!(says.iter().all(|part| report.contains(part)), "{report}");
            assert_eq!(report.matches("debug/tests.rs:").count(), 1, "place: {report}");
        });
    }
}

/// R5: T1 has a lock's address; T2 destroys the lock; T1 takes it.
#[test]
fn a_stale_user_of_a_destroyed_lock_is_reported() {
    let sim = machine(1, 0, 1);
    let machine = sim.handle();
    let mut lock = ManuallyDrop::new(Lock::new());
    // SAFETY: dropped once; its memory is this frame's and stays, with the poison in it.
    unsafe { ManuallyDrop::drop(&mut lock) };
    let report = machine.run_cpu(CpuId(0), || report(|| lock.lock(machine, Pte)));
    assert_report(&report, &lock, &["cpu 0 takes", "after it was destroyed (bad magic, R5)"], 1);
}

/// Memory in which no lock was ever made: it is taken, given up and destroyed.
#[test]
fn what_is_no_lock_is_reported() {
    let sim = machine(1, 0, 1);
    let machine = sim.handle();
    // SAFETY: numbers and a pointer, for all of which zero is a value.
    let mut lock = ManuallyDrop::new(unsafe { MaybeUninit::<Lock>::zeroed().assume_init() });
    machine.run_cpu(CpuId(0), || {
        let attempts = [
            ("cpu 0 takes", report(|| lock.lock(machine, Pte))),
            ("cpu 0 takes", report(|| assert!(!lock.try_lock(machine, Pte)))),
            ("cpu 0 unlocks", report(|| unlock(&lock, machine))),
        ];
        for (what, report) in attempts {
            assert_report(&report, &lock, &[what, "but there is no lock (bad magic)"], 1);
        }
        // SAFETY: dropped once; its memory is this frame's and stays.
        let report = report(|| unsafe { ManuallyDrop::drop(&mut lock) });
        assert_report(&report, &lock, &["is destroyed but there is no lock (bad magic)"], 0);
    });
}

/// I4: its table's destructor runs twice.
#[test]
fn destroying_a_lock_twice_is_reported() {
    let mut lock = ManuallyDrop::new(Lock::new());
    // SAFETY: the memory is this frame's and stays, and a lock has nothing that could be freed twice.
    let mut destroy = || unsafe { ManuallyDrop::drop(&mut lock) };
    destroy();
    let report = report(destroy);
    assert_report(&report, &lock, &["is destroyed twice (bad magic, I4)"], 0);
}

/// The numbers a report ends with are right.
#[test]
fn acquisitions_and_waits_are_counted() {
    let sim = machine(2, 0, 1);
    let (machine, lock) = (sim.handle(), Lock::new());
    machine.run_all(|cpu| {
        if cpu == CpuId(0) {
            lock.lock(machine, Pte);
            while machine.cpus().of(CpuId(1)).parking.waiting_for().is_none() {
                machine.pause();
            }
            unlock(&lock, machine);
        } else {
            while !lock.is_locked() {
                machine.pause();
            }
            lock.lock(machine, Pte);
            assert!(lock.to_string().starts_with("cpu 1 has it, last taken at "), "{lock}");
            unlock(&lock, machine);
        }
    });
    let text = lock.to_string();
    assert!(text.starts_with("nobody has it") && text.contains("taken 2 times, 1 waits of up to "), "{text}");
    assert!(!text.contains("held for up to 0 ns"), "{text}");
}
