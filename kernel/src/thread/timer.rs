//! Waking threads whose time has come: each CPU's tick looks after the sleepers of that CPU.
//!
//! Rule: the tick never drops the last reference to a thread. A sleeper is in a bucket or in the run queue as well, and
//! only its own CPU, which is serving the tick, could end it.

use alloc::sync::Arc;

use arch_x86::{percpu, time};
use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};
use mm::config::NR_CPUS;

use super::wait::{NEVER, block_until, wake_one};
use super::{Thread, current};
use crate::sync::{LockName, Spin};

intrusive_adapter!(TimerLink = Arc<Thread>: Thread { timer_link => LinkedListAtomicLink });

type Sleepers = Spin<LinkedList<TimerLink>>;

/// The sleepers of each CPU, in no order: there are few.
static SLEEPERS: [Sleepers; NR_CPUS] =
    [const { Spin::new(&LockName("sleepers"), LinkedList::new(TimerLink::NEW)) }; NR_CPUS];

/// Whether the clock has reached `deadline`.
pub(super) fn has_passed(deadline: u64) -> bool {
    deadline != NEVER && time::now_nanos() >= deadline
}

/// Adds the running thread to the sleepers, unless `deadline` is [`NEVER`].
pub(super) fn enter(thread: &Arc<Thread>, deadline: u64) {
    thread.deadline.set(deadline);
    if deadline != NEVER {
        SLEEPERS[percpu::cpu().index()].lock().push_back(Arc::clone(thread));
    }
}

/// Takes the running thread out of the sleepers if the tick has not.
pub(super) fn leave(thread: &Arc<Thread>) {
    if thread.deadline.get() == NEVER {
        return;
    }
    let mut sleepers = SLEEPERS[percpu::cpu().index()].lock();
    if thread.timer_link.is_linked() {
        // SAFETY: a thread enters no list by this link but its CPU's, which is this one.
        unsafe { sleepers.cursor_mut_from_ptr(Arc::as_ptr(thread)) }.remove();
    }
}

/// Wakes the sleepers of this CPU whose time has come. To be called in every timer interrupt.
pub fn tick() {
    loop {
        let mut sleepers = SLEEPERS[percpu::cpu().index()].lock();
        let mut cursor = sleepers.front_mut();
        while cursor.get().is_some_and(|thread| !has_passed(thread.deadline.get())) {
            cursor.move_next();
        }
        let due = cursor.remove();
        drop(sleepers);
        match due {
            Some(thread) => wake_one(&thread),
            None => return,
        }
    }
}

/// Lets other threads run for at least `nanos` nanoseconds; up to a tick longer.
///
/// # Panics
/// As [`block_until`].
pub fn sleep(nanos: u64) {
    let deadline = time::now_nanos().saturating_add(nanos);
    // Nobody else knows this key, so nobody wakes it but the tick.
    let key = Arc::as_ptr(&current()).addr();
    block_until(key, deadline, &mut || true);
}
