use super::assert_may_wait;
use crate::cpu::CpuId;
use crate::machine::{FrameUse, Machine};
use crate::pgtable::Level;
use crate::sync::LockClass::{self, Other, PageTable, Pmd, Pte, Slab, Zone};
use crate::sync::testing::{TestMachine, machine};
use crate::sync::{BuildLock, Nesting, RawLock};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Locks in rising address order.
struct Locks([BuildLock; 3]);

impl Locks {
    fn new() -> Self {
        Self(core::array::from_fn(|_| BuildLock::new()))
    }
}

#[track_caller]
fn take(machine: TestMachine, lock: &BuildLock, class: LockClass, nesting: Nesting) {
    super::take(machine, lock, class, nesting);
}

fn release(machine: TestMachine, locks: &[&BuildLock]) {
    for lock in locks {
        #[allow(unsafe_code)]
        // SAFETY: the tests give up only what they took.
        unsafe {
            lock.unlock(machine)
        }
    }
}

/// Runs `body` on CPU 0 and returns the checker's report, if there was one; gives up what was held.
fn report_of(held: &[usize], body: impl FnOnce(TestMachine, &Locks)) -> Option<String> {
    let sim = machine(2, 0, 1);
    let machine = sim.handle();
    let locks = Locks::new();
    machine.run_cpu(CpuId(0), || {
        let result = catch_unwind(AssertUnwindSafe(|| body(machine, &locks)));
        release(machine, &held.iter().map(|&index| &locks.0[index]).collect::<Vec<_>>());
        result.err().map(|error| *error.downcast::<String>().expect("a report"))
    })
}

/// Each class may be waited for under the ones above it, and not under those below (spec 2.2).
#[test]
fn locks_are_taken_from_the_top_down() {
    for (outer, inner) in [(PageTable, Pmd), (PageTable, Pte), (Pmd, Pte), (Pte, Zone), (Pmd, Slab), (PageTable, Other)]
    {
        let right = report_of(&[1, 0], |machine, locks| {
            take(machine, &locks.0[0], outer, Nesting::Plain);
            take(machine, &locks.0[1], inner, Nesting::Plain);
        });
        assert_eq!(right, None, "{outer:?} then {inner:?}");
        let wrong = report_of(&[0], |machine, locks| {
            take(machine, &locks.0[0], inner, Nesting::Plain);
            take(machine, &locks.0[1], outer, Nesting::Plain);
        });
        let wrong = wrong.unwrap_or_else(|| panic!("{inner:?} then {outer:?} is not noticed"));
        assert!(wrong.contains("in the order page_table_lock, PMD, PTE, leaves (I22)"), "{wrong}");
    }
}

/// The report names both locks, their classes, the CPU and both places (I22).
#[test]
fn a_pmd_lock_is_never_waited_for_under_a_pte_lock() {
    let report = report_of(&[0], |machine, locks| {
        take(machine, &locks.0[0], Pte, Nesting::Plain);
        take(machine, &locks.0[1], Pmd, Nesting::Plain);
    })
    .expect("a report");
    assert!(report.starts_with("lock rule broken: cpu 0 waits for the lock of a PMD table (pmd 0x"), "{report}");
    assert!(report.contains("under the lock of a PTE table (pte 0x"), "{report}");
    assert_eq!(report.matches("order/tests.rs:").count(), 2, "both places: {report}");
}

/// Reclaim's fast path: a PMD lock that is free may be taken under a PTE lock (R7).
#[test]
fn a_free_pmd_lock_may_be_tried_under_a_pte_lock() {
    let report = report_of(&[1, 0], |machine, locks| {
        take(machine, &locks.0[0], Pte, Nesting::Plain);
        assert!(super::try_take(machine, &locks.0[1], Pmd));
    });
    assert_eq!(report, None);
}

/// Two locks of one class: by address, or declared (I23).
#[test]
fn two_locks_of_a_class_need_rising_addresses_or_a_declaration() {
    let pair = |first: usize, second: usize, nesting| {
        let held: &[usize] =
            if first < second || nesting == Nesting::SingleDepth { &[second, first] } else { &[first] };
        report_of(held, |machine, locks| {
            take(machine, &locks.0[first], Pte, Nesting::Plain);
            take(machine, &locks.0[second], Pte, nesting);
        })
    };
    assert_eq!(pair(0, 1, Nesting::Plain), None);
    let falling = pair(1, 0, Nesting::Plain).expect("a report");
    assert!(falling.contains("rising address or as SINGLE_DEPTH_NESTING (I23)"), "{falling}");
    assert_eq!(pair(1, 0, Nesting::SingleDepth), None);
}

/// The declaration covers one lock under one other (I23).
#[test]
fn single_depth_nesting_is_not_two_deep() {
    let report = report_of(&[1, 2], |machine, locks| {
        take(machine, &locks.0[2], Pmd, Nesting::Plain);
        take(machine, &locks.0[1], Pmd, Nesting::SingleDepth);
        take(machine, &locks.0[0], Pmd, Nesting::SingleDepth);
    })
    .expect("a report");
    assert!(report.contains("one lock of a class under one other (I23)"), "{report}");
}

#[test]
fn no_leaf_is_waited_for_under_a_leaf() {
    for (outer, inner) in [(Slab, Zone), (Zone, Zone), (Other, Slab)] {
        let report = report_of(&[0], |machine, locks| {
            take(machine, &locks.0[0], outer, Nesting::Plain);
            take(machine, &locks.0[1], inner, Nesting::Plain);
        })
        .expect("a report");
        assert!(report.contains("no leaf is waited for under a leaf"), "{report}");
    }
}

/// Nor with a frame mapped for a moment: another thread of the CPU would end the mapping out of its turn (I25).
#[test]
fn waiting_with_a_frame_mapped_is_caught() {
    let sim = machine(2, 0, 1);
    let machine = sim.handle();
    machine.run_cpu(CpuId(0), || {
        let table = machine.memmap().first();
        for frame_use in [FrameUse::Free, FrameUse::Data, FrameUse::Table] {
            machine.note_frame(table, frame_use);
        }
        let wait = || catch_unwind(AssertUnwindSafe(|| assert_may_wait(machine, "a context switch")));
        let map = machine.map_table(table, Level::Pte);
        let report = wait().expect_err("a report").downcast::<String>().expect("a report");
        assert!(report.contains("cpu 0 waits for a context switch at "), "{report}");
        assert!(report.contains("with 1 frames mapped") && report.contains("(I25)"), "{report}");
        machine.unmap_table(map);
        assert!(wait().is_ok());
    });
}

/// Nothing sleeps under a lock (I25); the report names the lock, its place and what was waited for.
#[test]
fn waiting_under_a_lock_is_caught() {
    let report = report_of(&[0], |machine, locks| {
        assert_may_wait(machine, "nothing yet");
        take(machine, &locks.0[0], Pte, Nesting::Plain);
        assert_may_wait(machine, "a context switch");
    })
    .expect("a report");
    assert!(report.contains("cpu 0 waits for a context switch at "), "{report}");
    assert!(report.contains("holds the lock of a PTE table (pte 0x") && report.contains("(I25)"), "{report}");
    assert_eq!(report.matches("order/tests.rs:").count(), 2, "both places: {report}");
}
