//! Run queues, one per CPU, and changing threads.
//!
//! Who owns a thread: while it runs, its CPU's `running`; while it is ready, the run queue; while it waits, a bucket of
//! `wait`. A thread that stops running is kept by `previous` until the next one is on its own stack and lets go of it:
//! the last owner frees the stack, which must not be the one in use.
//!
//! Wake-up of a halted CPU: it sets `halting` and then looks at its queue, with interrupts off; a waker puts the thread
//! into the queue and then looks at `halting`. Both lock the queue in between, so the one that comes second sees the
//! other: either the CPU finds the thread, or the waker finds `halting` and sends a kick, which ends the halt.

use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use arch_x86::machine::X86;
use arch_x86::{interrupts, percpu, switch};
use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};
use mm::config::NR_CPUS;
use mm::cpu::CpuId;
use mm::sabotaged;
use mm::sync::order;

use super::join::note_gone;
use super::{ShortName, Thread};
use crate::sync::{LockName, Spin};
use crate::{interrupt, memory};

intrusive_adapter!(pub(super) QueueLink = Arc<Thread>: Thread { queue_link => LinkedListAtomicLink });

/// One CPU's part of the scheduler.
#[repr(align(128))]
struct CpuScheduler {
    queue: Spin<LinkedList<QueueLink>>,
    /// About to halt, or halted. Ordered by the queue's lock, see above.
    halting: AtomicBool,
    /// The thread that runs; an `Arc` in raw form. Only this CPU changes it, in one store, so that a report from a
    /// non-maskable interrupt finds a live thread at any moment.
    running: AtomicPtr<Thread>,
    /// The thread that ran before, until the running one has dropped it; an `Arc` in raw form. Only this CPU touches it.
    previous: AtomicPtr<Thread>,
    /// What runs when nothing else does; an `Arc` in raw form that is never dropped.
    idle: AtomicPtr<Thread>,
}

impl CpuScheduler {
    const fn new() -> Self {
        Self {
            queue: Spin::new(&LockName("run queue"), LinkedList::new(QueueLink::NEW)),
            halting: AtomicBool::new(false),
            running: AtomicPtr::new(ptr::null_mut()),
            previous: AtomicPtr::new(ptr::null_mut()),
            idle: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

static SCHEDULERS: [CpuScheduler; NR_CPUS] = [const { CpuScheduler::new() }; NR_CPUS];

fn local() -> &'static CpuScheduler {
    of(percpu::cpu())
}

fn of(cpu: CpuId) -> &'static CpuScheduler {
    &SCHEDULERS[cpu.index()]
}

/// Makes what runs on this CPU since its start a thread: the one that runs when no other does. Call once on each CPU,
/// before its first interrupt.
pub fn adopt_boot_context() {
    let scheduler = local();
    let idle = Arc::into_raw(Arc::new(Thread::new("idle", percpu::cpu(), true, None, None))).cast_mut();
    scheduler.idle.store(idle, Ordering::Relaxed);
    // `idle` and `running` share the one reference: the idle thread is never dropped, see `switch_away`.
    scheduler.running.store(idle, Ordering::Relaxed);
}

/// The running thread.
///
/// # Panics
/// Before [`adopt_boot_context`].
pub fn current() -> Arc<Thread> {
    let running = local().running.load(Ordering::Relaxed);
    assert!(!running.is_null(), "no threads yet");
    // SAFETY: `running` holds a reference of its own, which is not given up while the running thread itself is here.
    unsafe {
        Arc::increment_strong_count(running);
        Arc::from_raw(running)
    }
}

/// Name of the running thread. Callable in every context, also from a non-maskable interrupt.
pub fn current_name() -> ShortName {
    // SAFETY: as in `current`: the thread lives as long as it is `running`, and a thread that was replaced a moment ago
    // lives in `previous` until another one has run.
    unsafe { local().running.load(Ordering::Relaxed).as_ref() }.map_or(ShortName::new("boot"), |thread| thread.name)
}

/// Whether the running thread is the idle one. Callable in every context.
pub fn is_idle() -> bool {
    let scheduler = local();
    ptr::eq(scheduler.running.load(Ordering::Relaxed), scheduler.idle.load(Ordering::Relaxed))
}

/// Puts a thread into its CPU's run queue and sees that the CPU notices.
pub(super) fn make_ready(thread: Arc<Thread>) {
    let cpu = thread.cpu;
    let scheduler = of(cpu);
    scheduler.queue.lock().push_back(thread);
    if scheduler.halting.load(Ordering::Relaxed) && cpu != percpu::cpu() && !sabotaged!("thread-kick") {
        interrupt::kick(cpu);
    }
}

/// Whether another thread of this CPU is ready.
pub fn need_resched() -> bool {
    !local().queue.lock().is_empty()
}

/// Lets the other ready threads of this CPU run first. Under no lock of `mm`.
#[track_caller]
pub fn yield_now() {
    order::assert_may_wait(X86, "a context switch");
    let scheduler = local();
    let thread = current();
    let mut queue = scheduler.queue.lock();
    if queue.is_empty() {
        return;
    }
    if !thread.is_idle {
        queue.push_back(thread);
    }
    drop(queue);
    switch_away();
}

/// Runs the next ready thread, or the idle one. Returns when the caller's thread, which somebody must have put, or will
/// put, into the run queue, has its turn.
///
/// # Panics
/// With interrupts off: whoever holds a lock must not give its CPU away.
pub(super) fn switch_away() {
    assert!(interrupts::enabled(), "a thread gives its CPU away with interrupts off");
    order::assert_may_wait(X86, "a context switch");
    interrupts::disable();
    let scheduler = local();
    let next = match scheduler.queue.lock().pop_front() {
        Some(thread) => Arc::into_raw(thread).cast_mut(),
        None => scheduler.idle.load(Ordering::Relaxed),
    };
    let running = scheduler.running.load(Ordering::Relaxed);
    if ptr::eq(next, running) {
        if !ptr::eq(next, scheduler.idle.load(Ordering::Relaxed)) {
            // SAFETY: the reference that came out of the queue; `running` has its own.
            unsafe { Arc::decrement_strong_count(next) };
        }
    } else {
        scheduler.previous.store(running, Ordering::Relaxed);
        scheduler.running.store(next, Ordering::Relaxed);
        // SAFETY: both threads are alive: `previous` and `running` hold them.
        let (from, to) = unsafe { (&*running, &*next) };
        if let Some(stack) = &to.stack {
            percpu::current().set_kernel_stack(stack.top());
        }
        memory::switch_to(&to.user, to.is_idle);
        // SAFETY: `to` does not run, since its CPU is this one; its context was stored by an earlier switch away from
        // it, or prepared. Interrupts are off. `from.context` lives as long as its thread.
        unsafe { switch::switch_stacks(from.context.as_ptr(), to.context.load(Ordering::Relaxed)) };
        release_previous();
    }
    interrupts::enable();
}

/// Lets go of the thread that ran before. The first thing on a thread's stack after every switch, interrupts off.
pub(super) fn release_previous() {
    let scheduler = local();
    let previous = scheduler.previous.swap(ptr::null_mut(), Ordering::Relaxed);
    if !previous.is_null() && !ptr::eq(previous, scheduler.idle.load(Ordering::Relaxed)) {
        // SAFETY: the reference that was `running`'s before the switch.
        let thread = unsafe { Arc::from_raw(previous) };
        let has_ended = thread.has_ended.load(Ordering::Relaxed);
        // The last reference if the thread has ended: it is in no queue and no bucket.
        drop(thread);
        if has_ended {
            note_gone();
        }
    }
}

/// Sets or clears the mark that makes wakers kick this CPU, and tells whether a thread is ready. With interrupts off.
pub(super) fn set_halting(halting: bool) -> bool {
    let scheduler = local();
    scheduler.halting.store(halting, Ordering::Relaxed);
    !scheduler.queue.lock().is_empty()
}
