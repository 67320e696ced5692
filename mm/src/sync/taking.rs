//! What every lock algorithm does around its word: the checks before a lock is taken, the notes when it is taken and given up.

use super::LockClass;
use crate::machine::Machine;
use crate::stats::LockCounter;

/// Before the lock at address `lock` is waited for.
pub(super) fn may_wait<M: Machine>(machine: M, lock: usize) {
    may_try(machine);
    debug_assert!(!machine.local().held.contains(lock), "a lock of mm is taken twice by one CPU");
}

/// Before a lock is tried.
pub(super) fn may_try<M: Machine>(machine: M) {
    debug_assert!(can_hear(machine), "a lock of mm is taken with interrupts off (I24)");
}

/// This CPU has taken the lock at address `lock`.
pub(super) fn taken<M: Machine>(machine: M, lock: usize, class: LockClass) {
    let local = machine.local();
    local.held.push(lock, class);
    local.stats.add_lock(class, LockCounter::Acquired, 1);
}

/// This CPU gives the lock at address `lock` up: to be called before the releasing store. Returns its class.
pub(super) fn gives_up<M: Machine>(machine: M, lock: usize) -> LockClass {
    machine.local().held.remove(lock)
}

/// Counts a kick, if there was one.
pub(super) fn count_kick<M: Machine>(machine: M, class: LockClass, kicked: bool) {
    if kicked {
        machine.local().stats.add_lock(class, LockCounter::Kicks, 1);
    }
}

/// Whether this CPU answers the others while it waits. Before there are others it need not: the kernel boots so.
pub(super) fn can_hear<M: Machine>(machine: M) -> bool {
    machine.irqs_enabled() || machine.online().without(machine.cpu()).is_empty()
}
