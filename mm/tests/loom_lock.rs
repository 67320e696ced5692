//! Models of RCU and of `mmap_lock`: the real code, every interleaving within a bound of preemptions, C11 orders
//! included. A CPU that sleeps for ever ends a model as a deadlock.
//!
//! The locks of one word are in `loom_algorithms.rs`. A model named `…_is_found` is the check on the check:
//! a rule is broken on purpose, and the model has to fail.
#![cfg(loom)]

mod loom_machine;
#[path = "loom_machine/watched.rs"]
mod watched;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom_machine::{Cpu, Model};
use mm::machine::Machine;
use mm::sync::rcu::{self, GracePeriod, Rcu};
use mm::sync::rwlock::MmapLock;
use watched::Watched;

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
