//! Models of the page-table lock, of RCU and of `mmap_lock`: the real code, every interleaving within the bounds given
//! on the command line, C11 orders included. A waiter that sleeps for ever ends a model as a deadlock.
//!
//! Tickets have two bits here, so that they wrap within a model. A model named `…_is_found` is the check on the check:
//! a rule is broken on purpose, and the model has to fail.
#![cfg(loom)]

mod loom_machine;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom_machine::{Cpu, Model};
use mm::machine::Machine;
use mm::sync::rcu::{self, GracePeriod, Rcu};
use mm::sync::rwlock::MmapLock;
use mm::sync::spin::SpinLock;
use mm::sync::ticket::TicketLock;
use mm::sync::{LockClass, RawLock};
use std::mem::ManuallyDrop;

/// A number without any protection; loom fails the model if two accesses overlap or are unordered.
struct Watched(UnsafeCell<u32>);

// SAFETY: loom fails the model where this is wrong.
unsafe impl Sync for Watched {}

impl Watched {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn add(&self) {
        // SAFETY: loom fails the model if this overlaps another access.
        self.0.with_mut(|number| unsafe { *number += 1 });
    }

    fn get(&self) -> u32 {
        // SAFETY: as above.
        self.0.with(|number| unsafe { *number })
    }
}

// The lock: mutual exclusion (I44), tickets that wrap (R40), no waiter that sleeps for ever (I47, R38).

/// Every CPU takes the lock `turns` times. It has been taken twice before, so that the tickets wrap while they meet.
fn increments_add_up(model: Model, turns: u32) {
    model.run_on(
        |cpu| {
            let counter = SpinLock::<Watched, TicketLock>::new(Watched::new());
            (0..2).for_each(|_| drop(counter.lock(cpu, LockClass::Other)));
            counter
        },
        move |counter, cpu| (0..turns).for_each(|_| counter.lock(cpu, LockClass::Other).add()),
        move |counter, cpu| assert_eq!(counter.lock(cpu, LockClass::Other).get(), model.cpus as u32 * turns),
    );
}

#[test]
fn two_in_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up(Model::new(2, 0), 2);
}

#[test]
fn three_in_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up(Model::new(3, 0), 1);
}

#[test]
fn two_outside_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up(Model::new(2, 2), 2);
}

#[test]
fn three_outside_the_queue_exclude_each_other_and_wake_up() {
    increments_add_up(Model::new(3, 1), 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_waiter_in_the_queue_that_nobody_kicks_is_found() {
    increments_add_up(Model { kicks: false, ..Model::new(2, 0) }, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_waiter_outside_the_queue_that_nobody_kicks_is_found() {
    increments_add_up(Model { kicks: false, ..Model::new(2, 1) }, 1);
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

// RCU: nobody reads what has been freed.

/// Something that is unhooked and freed while others look it up.
struct Hooked {
    /// Index of the object that a reader finds.
    current: AtomicUsize,
    objects: [Watched; 2],
}

impl Hooked {
    fn new() -> Self {
        Self { current: AtomicUsize::new(0), objects: [Watched::new(), Watched::new()] }
    }

    /// Finds the object and uses it, with an interrupt in between.
    fn read(&self, cpu: Cpu) {
        // Relaxed, here and below: the grace period alone must do.
        let found = &self.objects[self.current.load(Ordering::Relaxed)];
        rcu::on_interrupt(cpu);
        found.get();
    }

    fn read_in_section(&self, cpu: Cpu) {
        let _section = rcu::read_lock(cpu);
        self.read(cpu);
    }

    fn unhook(&self) {
        self.current.store(1, Ordering::Relaxed);
    }

    fn free(&self) {
        self.objects[0].add();
    }
}

/// CPU 0 unhooks, waits by `wait` and frees; CPU 1 does `read`. Only readers leave idle, which keeps the models small.
fn unhook_wait_free(
    wait: impl Fn(&Rcu, Cpu) -> bool + Copy + Send + Sync + 'static,
    read: impl Fn(&Hooked, Cpu) + Copy + Send + Sync + 'static,
) {
    Model::new(2, 0).run(
        || (Rcu::new(), Hooked::new()),
        move |(rcu, hooked), cpu| {
            if cpu.cpu().index() == 1 {
                return cpu.awake(|| read(hooked, cpu));
            }
            hooked.unhook();
            if wait(rcu, cpu) {
                hooked.free();
            }
        },
        |_, _| (),
    );
}

/// Waits for a whole grace period.
fn synchronize(rcu: &Rcu, cpu: Cpu) -> bool {
    rcu::synchronize(rcu, cpu);
    true
}

/// Asks whether the grace period is over, once. Executions in which it is not say nothing, but there is no loop to
/// explore, so that more can happen around it.
fn poll_once(rcu: &Rcu, cpu: Cpu) -> bool {
    GracePeriod::start(rcu, cpu).poll(cpu)
}

#[test]
fn a_reader_never_meets_what_was_freed_after_a_grace_period() {
    unhook_wait_free(synchronize, |hooked, cpu| {
        hooked.read_in_section(cpu);
        hooked.read_in_section(cpu);
    });
}

#[test]
fn a_reader_never_meets_what_was_freed_while_it_was_idle() {
    unhook_wait_free(poll_once, |hooked, cpu| {
        hooked.read_in_section(cpu);
        rcu::enter_idle(cpu);
        rcu::exit_idle(cpu);
        hooked.read_in_section(cpu);
    });
}

#[test]
fn a_grace_period_does_not_pass_for_an_older_one_that_has_not_been_requested_yet() {
    Model::new(3, 0).run(
        || (Rcu::new(), Hooked::new()),
        |(rcu, hooked), cpu| match cpu.cpu().index() {
            0 => {
                hooked.unhook();
                if poll_once(rcu, cpu) {
                    hooked.free();
                }
            }
            1 => drop(GracePeriod::start(rcu, cpu)),
            _ => cpu.awake(|| {
                rcu::on_interrupt(cpu);
                hooked.read_in_section(cpu);
            }),
        },
        |_, _| (),
    );
}

#[test]
#[should_panic(expected = "Causality violation")]
fn freeing_without_a_grace_period_is_found() {
    unhook_wait_free(|_, _| true, |hooked, cpu| hooked.read_in_section(cpu));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_reader_without_a_section_is_found() {
    unhook_wait_free(synchronize, |hooked, cpu| hooked.read(cpu));
}

#[test]
#[should_panic(expected = "not left idle")]
fn a_reader_that_calls_itself_idle_is_found() {
    unhook_wait_free(poll_once, |hooked, cpu| {
        rcu::enter_idle(cpu);
        hooked.read_in_section(cpu);
        rcu::exit_idle(cpu);
    });
}

// `mmap_lock`.

#[test]
fn mmap_lock_excludes_and_wakes_its_sleepers() {
    Model::new(3, 0).run(
        || (MmapLock::new(), Watched::new()),
        |(lock, value), cpu| {
            if cpu.cpu().index() == 0 {
                let _reading = lock.read(cpu);
                value.get();
            } else {
                let _writing = lock.write(cpu);
                value.add();
            }
        },
        |(_, value), _| assert_eq!(value.get(), 2),
    );
}

#[test]
fn mmap_lock_lets_readers_in_between_writers() {
    Model::new(3, 0).run(
        || (MmapLock::new(), Watched::new()),
        |(lock, value), cpu| {
            if cpu.cpu().index() == 0 {
                let _writing = lock.write(cpu);
                value.add();
            } else {
                let _reading = lock.read(cpu);
                value.get();
            }
        },
        |(_, value), _| assert_eq!(value.get(), 1),
    );
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_write_under_a_read_lock_is_found() {
    Model::new(2, 0).run(
        || (MmapLock::new(), Watched::new()),
        |(lock, value), cpu| {
            let _reading = lock.read(cpu);
            value.add();
        },
        |_, _| (),
    );
}
