//! The lock-order checker: what a CPU may wait for, given the locks it holds.
//!
//! Rules checked, in builds with [`CHECK_LOCK_ORDER`], before the CPU waits:
//!
//! - `mmap_lock` → `page_table_lock` → PMD lock → PTE lock → leaves (spec 2.2). So nobody waits for a PMD lock under a PTE
//!   lock (I22); taking one that is free is always allowed.
//! - Of two locks of one class the one with the lower address is taken first, or the second is declared as
//!   [`Nesting::SingleDepth`], of which there is one at a time (I23). No leaf is waited for under a leaf.
//! - Nobody sleeps, changes threads or waits for a grace period under a lock, or with a frame mapped for a moment (I25).
//! - No thread takes an `mmap_lock` it has, for reading or for writing. It may take another's: `fork` does.
//!
//! A report names both locks, their classes, where they were taken, the CPU and the rule, and ends the run.

use super::held::Held;
use super::{LockClass, Nesting, RawLock};
use crate::config::CHECK_LOCK_ORDER;
use crate::machine::Machine;
use core::fmt;
use core::panic::Location;

/// Takes `lock`, for whoever will own it, after checking the order.
#[track_caller]
pub(crate) fn take<M: Machine, L: RawLock>(machine: M, lock: &L, class: LockClass, nesting: Nesting) {
    if CHECK_LOCK_ORDER {
        check(machine, Wanted { lock: address(lock), class, nesting, place: Location::caller() });
    }
    lock.lock(machine, class);
    note_place(machine, Location::caller());
}

/// Takes `lock` if it is free. No order applies: who does not wait cannot be part of a deadlock.
#[track_caller]
pub(crate) fn try_take<M: Machine, L: RawLock>(machine: M, lock: &L, class: LockClass) -> bool {
    let taken = lock.try_lock(machine, class);
    if taken {
        note_place(machine, Location::caller());
    }
    taken
}

/// Fails if this CPU holds a lock, or has a frame mapped: it is about to wait for `what`, for longer than a lock may be held,
/// and other threads may run on it meanwhile (I25).
///
/// # Panics
///
/// If it does, in builds with [`CHECK_LOCK_ORDER`].
#[track_caller]
pub fn assert_may_wait<M: Machine>(machine: M, what: &str) {
    if !CHECK_LOCK_ORDER {
        return;
    }
    let (cpu, place) = (machine.cpu().0, Location::caller());
    if let Some(held) = machine.local().held.iter().last() {
        broken(format_args!(
            "cpu {cpu} waits for {what} at {place} while it holds {held}: nothing sleeps under a lock (I25)"
        ));
    }
    let mapped = machine.mapped();
    if mapped > 0 {
        broken(format_args!(
            "cpu {cpu} waits for {what} at {place} with {mapped} frames mapped: no mapping is kept across a sleep (I25)"
        ));
    }
}

/// Fails if the running thread has the `mmap_lock` at address `lock`, which it is about to take.
#[track_caller]
pub(super) fn check_mmap_lock<M: Machine>(machine: M, lock: usize) {
    if !CHECK_LOCK_ORDER {
        return;
    }
    let (cpu, place) = (machine.cpu().0, Location::caller());
    machine.with_mmap_locks(&mut |held| {
        if let Some(Held { place: Some(first), .. }) = held.iter().find(|held| held.lock == lock) {
            broken(format_args!(
                "cpu {cpu} takes mmap_lock {lock:#x} at {place} a second time: its thread has it, taken at {first}, and \
                 would wait for itself, or for a writer that waits for it"
            ));
        }
    });
}

/// The running thread has taken the `mmap_lock` at address `lock`.
#[track_caller]
pub(super) fn note_mmap_lock<M: Machine>(machine: M, lock: usize) {
    if CHECK_LOCK_ORDER {
        let place = Location::caller();
        machine.with_mmap_locks(&mut |held| {
            held.push(lock, LockClass::Other);
            held.note_place(place);
        });
    }
}

/// The running thread gives up the `mmap_lock` at address `lock`.
pub(super) fn forget_mmap_lock<M: Machine>(machine: M, lock: usize) {
    if CHECK_LOCK_ORDER {
        machine.with_mmap_locks(&mut |held| {
            held.remove(lock);
        });
    }
}

fn note_place<M: Machine>(machine: M, place: &'static Location<'static>) {
    if CHECK_LOCK_ORDER {
        machine.local().held.note_place(place);
    }
}

pub(super) fn address<L>(lock: &L) -> usize {
    core::ptr::from_ref(lock).addr()
}

/// A lock this CPU is about to wait for.
struct Wanted {
    lock: usize,
    class: LockClass,
    nesting: Nesting,
    place: &'static Location<'static>,
}

/// Checks `wanted` against everything this CPU holds.
fn check<M: Machine>(machine: M, wanted: Wanted) {
    let held = &machine.local().held;
    let of_class = held.iter().filter(|held| held.class == wanted.class).count();
    for held in held.iter() {
        let rule = if held.class.rank() > wanted.class.rank() {
            "locks are waited for in the order page_table_lock, PMD, PTE, leaves (I22)"
        } else if held.class.rank() == wanted.class.rank() && wanted.class.rank() == LockClass::Other.rank() {
            "no leaf is waited for under a leaf (spec 2.2)"
        } else if held.class == wanted.class && wanted.nesting == Nesting::SingleDepth && of_class > 1 {
            "SINGLE_DEPTH_NESTING allows one lock of a class under one other (I23)"
        } else if held.class == wanted.class && wanted.nesting == Nesting::Plain && held.lock > wanted.lock {
            "two locks of a class are taken by rising address or as SINGLE_DEPTH_NESTING (I23)"
        } else {
            continue;
        };
        out_of_order(machine.cpu().0, &wanted, &held, rule);
    }
}

#[cold]
fn out_of_order(cpu: u32, wanted: &Wanted, held: &Held, rule: &str) -> ! {
    let Wanted { lock, class, place, .. } = wanted;
    let (description, name) = (class.description(), class.name());
    broken(format_args!("cpu {cpu} waits for {description} ({name} {lock:#x}) at {place} under {held}: {rule}"))
}

/// Ends the run with a report.
#[cold]
pub(super) fn broken(report: fmt::Arguments<'_>) -> ! {
    panic!("lock rule broken: {report}")
}

#[cfg(all(test, not(loom)))]
mod tests;
