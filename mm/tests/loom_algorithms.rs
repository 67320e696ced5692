//! Models of the lock algorithms: the real code, every interleaving within a bound of preemptions, C11 orders
//! included. A waiter that sleeps for ever ends a model as a deadlock.
//!
//! Tickets have two bits here, so that they wrap within a model. A model named `…_is_found` is the check on the check:
//! a rule is broken on purpose, and the model has to fail.
#![cfg(loom)]

mod loom_machine;
#[path = "loom_machine/watched.rs"]
mod watched;

use loom::cell::UnsafeCell;
use loom_machine::{Cpu, Model};
use mm::machine::Machine;
use mm::sync::mcs::McsLock;
use mm::sync::spin::SpinLock;
use mm::sync::test_and_set::TestAndSetLock;
use mm::sync::ticket::{FifoLock, TicketLock};
use mm::sync::{LockClass, RawLock};
use std::mem::ManuallyDrop;
use watched::Watched;

// Mutual exclusion (I44), tickets that wrap (R40), no waiter that sleeps for ever (I47, R38).

/// Every CPU takes the lock `turns` times. It has been taken twice before, so that the tickets wrap while they meet.
fn increments_add_up<L: RawLock>(model: Model, turns: u32) {
    model.run_on(
        |cpu| {
            let counter = SpinLock::<Watched, L>::new(Watched::new());
            (0..2).for_each(|_| drop(counter.lock(cpu, LockClass::Other)));
            counter
        },
        move |counter, cpu| (0..turns).for_each(|_| counter.lock(cpu, LockClass::Other).add()),
        move |counter, cpu| assert_eq!(counter.lock(cpu, LockClass::Other).get(), model.cpus as u32 * turns),
    );
}

#[test]
fn ticket_two_in_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up::<TicketLock>(Model::new(2, 0), 2);
}

#[test]
fn ticket_three_in_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up::<TicketLock>(Model::new(3, 0), 1);
}

#[test]
fn ticket_two_outside_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up::<TicketLock>(Model::new(2, 2), 2);
}

#[test]
fn ticket_three_outside_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up::<TicketLock>(Model::new(3, 1), 1);
}

#[test]
fn fifo_two_exclude_each_other_and_wake_up() {
    increments_add_up::<FifoLock>(Model::new(2, 0), 2);
}

#[test]
fn fifo_three_exclude_each_other_and_wake_up() {
    increments_add_up::<FifoLock>(Model::new(3, 0), 1);
}

#[test]
fn test_and_set_two_exclude_each_other_and_wake_up() {
    increments_add_up::<TestAndSetLock>(Model::new(2, 0), 2);
}

#[test]
fn test_and_set_three_exclude_each_other_and_wake_up() {
    increments_add_up::<TestAndSetLock>(Model::new(3, 0), 1);
}

#[test]
fn mcs_two_exclude_each_other_and_wake_up() {
    increments_add_up::<McsLock>(Model::new(2, 0), 2);
}

/// With three that come at once there is more to explore than anybody waits for: CPU 0 has the lock when the others come.
#[test]
fn mcs_two_behind_the_owner_exclude_each_other_and_wake_up() {
    Model::new(3, 0).run_on(
        |cpu| {
            let contest = Contest { lock: Box::new(McsLock::new()), served: Watched::new() };
            contest.lock.lock(cpu, LockClass::Other);
            contest
        },
        |Contest { lock, served }, cpu| {
            if cpu.cpu().index() != 0 {
                lock.lock(cpu, LockClass::Other);
            }
            served.add();
            give_up(&**lock, cpu);
        },
        |contest, _| assert_eq!(contest.served.get(), 3),
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn ticket_a_waiter_in_the_queue_that_nobody_kicks_is_found() {
    increments_add_up::<TicketLock>(Model { kicks: false, ..Model::new(2, 0) }, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn ticket_a_waiter_outside_the_queue_that_nobody_kicks_is_found() {
    increments_add_up::<TicketLock>(Model { kicks: false, ..Model::new(2, 1) }, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn fifo_a_waiter_that_nobody_kicks_is_found() {
    increments_add_up::<FifoLock>(Model { kicks: false, ..Model::new(2, 0) }, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn test_and_set_a_waiter_that_nobody_kicks_is_found() {
    increments_add_up::<TestAndSetLock>(Model { kicks: false, ..Model::new(2, 0) }, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn mcs_a_waiter_that_nobody_kicks_is_found() {
    increments_add_up::<McsLock>(Model { kicks: false, ..Model::new(2, 0) }, 1);
}

// Order (I44): who queues is served before whoever comes later.

/// A lock that CPU 0 holds when the model begins, and whether CPU 1 has had its turn.
struct Contest<L> {
    /// Boxed, since a lock that is held must not move.
    lock: Box<L>,
    served: Watched,
}

/// CPU 0 gives the lock up and CPU 1 takes it, with nothing between them. CPU 2 comes, and if the word says that somebody
/// queues, that is CPU 1: it must be served first. Executions in which CPU 2 does not see it say nothing.
fn first_come_first_served<L: RawLock>() {
    Model::new(3, 0).run_on(
        |cpu| {
            let contest = Contest { lock: Box::new(L::new()), served: Watched::new() };
            contest.lock.lock(cpu, LockClass::Other);
            contest
        },
        |Contest { lock, served }, cpu| match cpu.cpu().index() {
            0 => give_up(&**lock, cpu),
            1 => {
                lock.lock(cpu, LockClass::Other);
                served.add();
                give_up(&**lock, cpu);
            }
            _ => {
                if lock.is_contended() {
                    lock.lock(cpu, LockClass::Other);
                    assert_eq!(served.get(), 1, "served out of turn");
                    give_up(&**lock, cpu);
                }
            }
        },
        |contest, _| assert!(!contest.lock.is_locked()),
    );
}

fn give_up<L: RawLock>(lock: &L, cpu: Cpu) {
    // SAFETY: the models give up what they took, on the CPU that took it.
    unsafe { lock.unlock(cpu) }
}

#[test]
fn ticket_serves_its_queue_in_order() {
    first_come_first_served::<TicketLock>();
}

#[test]
fn fifo_serves_in_order() {
    first_come_first_served::<FifoLock>();
}

#[test]
fn mcs_serves_in_order() {
    first_come_first_served::<McsLock>();
}

#[test]
#[should_panic(expected = "served out of turn")]
fn a_lock_without_order_is_found() {
    first_come_first_served::<TestAndSetLock>();
}

// `try_lock` never enqueues (I48).

/// CPU 1 tries while CPU 0 takes the lock and gives it up. Afterwards nobody queues, and the lock can be had.
fn trying_leaves_nothing_behind<L: RawLock>() {
    Model::new(2, 0).run(
        || SpinLock::<Watched, L>::new(Watched::new()),
        |counter, cpu| {
            if cpu.cpu().index() == 0 {
                counter.lock(cpu, LockClass::Other).add();
            } else if let Some(counter) = counter.try_lock(cpu, LockClass::Other) {
                counter.add();
            }
        },
        |counter, cpu| {
            assert!(!counter.raw().is_locked() && !counter.raw().is_contended());
            counter.lock(cpu, LockClass::Other).add();
        },
    );
}

#[test]
fn trying_leaves_nothing_behind_in_any_lock() {
    trying_leaves_nothing_behind::<TestAndSetLock>();
    trying_leaves_nothing_behind::<FifoLock>();
    trying_leaves_nothing_behind::<TicketLock>();
    trying_leaves_nothing_behind::<McsLock>();
}

// Unlock, then free (I46, R39).

/// A lock in memory that its last user frees at once.
struct Shortlived<L: RawLock> {
    lock: UnsafeCell<ManuallyDrop<L>>,
    users: Watched,
}

// SAFETY: `RawLock` is Sync; loom watches the rest.
unsafe impl<L: RawLock> Sync for Shortlived<L> {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl<L: RawLock> Send for Shortlived<L> {}

/// Both CPUs take the lock once; the second to give it up frees it, while the first may still be on its way out.
fn the_last_user_frees<L: RawLock>(rounds: u32) {
    Model::new(2, rounds).run(
        || Shortlived { lock: UnsafeCell::new(ManuallyDrop::new(L::new())), users: Watched::new() },
        |shared, cpu| {
            let lock = shared.lock.with(|lock| lock);
            // SAFETY: not freed before both CPUs have counted themselves, which this one has not.
            let last = unsafe {
                (*lock).lock(cpu, LockClass::Pte);
                shared.users.add();
                let last = shared.users.get() == 2;
                (*lock).unlock(cpu);
                last
            };
            if last {
                // SAFETY: both CPUs have given the lock up and none takes it again. The memory itself stays until the
                // execution ends, so that a late access is reported and not undefined.
                unsafe { ManuallyDrop::drop(&mut *lock.cast_mut()) }
            }
        },
        |_, _| (),
    );
}

#[test]
fn a_lock_may_be_freed_as_soon_as_its_last_user_holds_it() {
    the_last_user_frees::<TicketLock>(0);
    the_last_user_frees::<TicketLock>(1);
    the_last_user_frees::<FifoLock>(0);
    the_last_user_frees::<TestAndSetLock>(0);
    the_last_user_frees::<McsLock>(0);
}

/// A lock whose unlocker looks at the word once more, as Linux's did until 4.0.
struct LookingBack(TicketLock);

impl RawLock for LookingBack {
    fn new() -> Self {
        Self(TicketLock::new())
    }

    fn lock<M: Machine>(&self, machine: M, class: LockClass) {
        self.0.lock(machine, class);
    }

    fn try_lock<M: Machine>(&self, machine: M, class: LockClass) -> bool {
        self.0.try_lock(machine, class)
    }

    unsafe fn unlock<M: Machine>(&self, machine: M) {
        // SAFETY: as the caller promises.
        unsafe { self.0.unlock(machine) };
        self.0.is_contended();
    }

    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }

    fn is_contended(&self) -> bool {
        self.0.is_contended()
    }
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_unlocker_that_looks_back_is_found() {
    the_last_user_frees::<LookingBack>(0);
}
