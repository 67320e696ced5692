//! Starting threads and waiting for their end.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch_x86::{interrupts, switch, time};
use mm::cpu::CpuId;

use super::Thread;
use super::scheduler::{current, make_ready, release_previous, switch_away, yield_now};
use super::stack::{NoStack, Stack};
use super::wait::{NEVER, block_until, wake};
use crate::harness::books::{counter, settler};
use crate::smp;
use crate::sync::{LockName, Spin};

/// Why a thread could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnError {
    /// The CPU is not online.
    NoSuchCpu,
    /// There is no memory for a stack.
    NoStack,
}

impl From<NoStack> for SpawnError {
    fn from(_: NoStack) -> Self {
        Self::NoStack
    }
}

/// What a thread leaves behind.
struct Outcome<T> {
    value: Spin<Option<T>>,
    /// Set with release after `value`; joiners load it with acquire.
    done: AtomicBool,
}

impl<T> Outcome<T> {
    fn key(&self) -> usize {
        (&raw const self.done).addr()
    }
}

/// The right to wait for a thread and to have what it returns. Dropping it lets the thread run on.
pub struct JoinHandle<T>(Arc<Outcome<T>>);

impl<T> JoinHandle<T> {
    /// Waits for the thread's end. The limit is that of the test or workload it belongs to.
    pub fn join(self) -> T {
        let mut handle = self;
        loop {
            match handle.join_until(NEVER) {
                Ok(value) => return value,
                Err(again) => handle = again,
            }
        }
    }

    /// Waits for the thread's end for at most `nanos` nanoseconds.
    ///
    /// # Errors
    /// The handle itself if that was not enough; the thread goes on.
    pub fn join_within(self, nanos: u64) -> Result<T, Self> {
        self.join_until(time::now_nanos().saturating_add(nanos))
    }

    fn join_until(self, deadline: u64) -> Result<T, Self> {
        let outcome = &self.0;
        block_until(outcome.key(), deadline, &mut || !outcome.done.load(Ordering::Acquire));
        // Nobody else has a handle, so the value is there as soon as the thread is done.
        let value = outcome.value.lock().take();
        value.ok_or(self)
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let state = if self.0.done.load(Ordering::Relaxed) { "ended" } else { "running" };
        write!(out, "thread that is still {state}")
    }
}

/// Threads whose memory is not back yet, the idle ones not counted; of these, those that have nothing left to do.
static ALIVE: AtomicUsize = AtomicUsize::new(0);
static ENDING: AtomicUsize = AtomicUsize::new(0);

/// Notes that the memory of a thread that has ended is back.
pub(super) fn note_gone() {
    // Release: whoever sees the numbers sees stack and heap as they are now.
    ALIVE.fetch_sub(1, Ordering::Release);
    ENDING.fetch_sub(1, Ordering::Release);
}

fn alive() -> u64 {
    ALIVE.load(Ordering::Acquire) as u64
}

/// Lets threads that have ended give their memory back: a join returns a little earlier.
fn settle() {
    const LIMIT_NANOS: u64 = 10_000_000_000;
    let give_up = time::now_nanos().saturating_add(LIMIT_NANOS);
    while ENDING.load(Ordering::Acquire) != 0 && time::now_nanos() < give_up {
        yield_now();
        core::hint::spin_loop();
    }
}

counter!("kernel threads", alive);
settler!(settle);

/// Starts a thread on `cpu` that runs `body`.
///
/// # Errors
/// See [`SpawnError`].
pub fn spawn_on<T: Send + 'static>(
    cpu: CpuId,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, SpawnError> {
    if !smp::online().contains(cpu) {
        return Err(SpawnError::NoSuchCpu);
    }
    let stack = Stack::new()?;
    let top = stack.top();
    let outcome =
        Arc::new(Outcome { value: Spin::new(&LockName("thread outcome"), None), done: AtomicBool::new(false) });
    let leave = Arc::clone(&outcome);
    let start = Box::new(move || {
        let value = body();
        ENDING.fetch_add(1, Ordering::Relaxed);
        *leave.value.lock() = Some(value);
        leave.done.store(true, Ordering::Release);
        wake(leave.key());
    });
    ALIVE.fetch_add(1, Ordering::Relaxed);
    let thread = Arc::new(Thread::new(name, cpu, false, Some(start), Some(stack)));
    // SAFETY: the stack is the new thread's own and nothing runs on it yet.
    let context = unsafe { switch::prepare(top, begin, 0) };
    thread.context.store(context, Ordering::Relaxed);
    make_ready(thread);
    Ok(JoinHandle(outcome))
}

/// Where every thread begins, interrupts off, right after the switch to it.
extern "C" fn begin(_: usize) -> ! {
    release_previous();
    interrupts::enable();
    {
        let thread = current();
        // SAFETY: only the thread itself takes its start, here.
        let start = unsafe { (*thread.start.get()).take() };
        if let Some(start) = start {
            start();
        }
    }
    // Nobody puts this thread into a run queue any more; whoever runs next drops it.
    current().has_ended.store(true, Ordering::Relaxed);
    switch_away();
    unreachable!("an ended thread runs");
}
