//! Sleeping until something changes: the primitive under joins and sleeping locks.
//!
//! A waiter names what it waits for by a key, usually an address, and says by a closure whether it still has to wait. Keys
//! share a fixed number of buckets; a bucket's lock makes "look, then sleep" one step. Waking is: change what the closure
//! looks at, then call [`wake`].
//!
//! No wake-up is lost. Let W be the waiter and K the waker:
//! - W: lock bucket · evaluate `still` · enter bucket · unlock · give the CPU away
//! - K: make `still` false · lock bucket · take W out if it is there · unlock · put it into its run queue
//!
//! If K's locked part comes first, its change happens before W's look, by the bucket's lock, and W does not sleep. If W's
//! comes first, K finds W in the bucket. K may then put W into its run queue before W has given its CPU away: W takes
//! itself out of the queue and goes on (see `thread`). The time limit works the same way: the tick is a waker that comes
//! on W's own CPU, and whoever finds `in_bucket` set, under the lock, is the one that wakes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use arch_x86::machine::X86;
use intrusive_collections::LinkedList;
use mm::sync::order;

use super::scheduler::{QueueLink, current, make_ready, switch_away};
use super::{Thread, timer};
use crate::sync::{LockName, Spin};

/// Number of buckets; a power of two, some times the number of threads that wait at once.
const BUCKETS: usize = 64;

/// A time limit that never comes.
pub const NEVER: u64 = u64::MAX;

type Bucket = Spin<LinkedList<QueueLink>>;

static TABLE: [Bucket; BUCKETS] =
    [const { Spin::new(&LockName("wait bucket"), LinkedList::new(QueueLink::NEW)) }; BUCKETS];

fn bucket(key: usize) -> &'static Bucket {
    // Fibonacci hashing: the upper bits of the product depend on all bits of the key.
    const GOLDEN: usize = 0x9e37_79b9_7f4a_7c15_u64 as usize;
    &TABLE[key.wrapping_mul(GOLDEN) >> (usize::BITS - BUCKETS.ilog2())]
}

/// Sleeps as long as `still` holds; looks again after each [`wake`] of `key`. `still` is evaluated with interrupts off and
/// must only look at memory.
///
/// # Panics
/// With interrupts off, and on a CPU's idle thread, which must always be able to run.
#[track_caller]
pub fn block_while(key: usize, still: &mut dyn FnMut() -> bool) {
    let woken = block_until(key, NEVER, still);
    debug_assert!(woken);
}

/// As [`block_while`], but at most until `deadline`, in nanoseconds of the clock. `false`: the deadline came first.
///
/// # Panics
/// As [`block_while`].
#[track_caller]
pub fn block_until(key: usize, deadline: u64, still: &mut dyn FnMut() -> bool) -> bool {
    order::assert_may_wait(X86, "block_while");
    let thread = current();
    assert!(!thread.is_idle, "the idle thread sleeps");
    loop {
        let mut bucket = bucket(key).lock();
        if !still() {
            return true;
        }
        if timer::has_passed(deadline) {
            return false;
        }
        thread.wait_key.store(key, Ordering::Relaxed);
        thread.in_bucket.store(true, Ordering::Relaxed);
        bucket.push_back(Arc::clone(&thread));
        // Still locked, so that the tick cannot come before the thread is in the bucket.
        timer::enter(&thread, deadline);
        drop(bucket);
        switch_away();
        timer::leave(&thread);
    }
}

/// Wakes all threads that wait for `key`. Callable in interrupts.
pub fn wake(key: usize) {
    let mut woken = LinkedList::new(QueueLink::NEW);
    let mut bucket = bucket(key).lock();
    let mut cursor = bucket.front_mut();
    while let Some(thread) = cursor.get() {
        if thread.wait_key.load(Ordering::Relaxed) == key {
            thread.in_bucket.store(false, Ordering::Relaxed);
            if let Some(thread) = cursor.remove() {
                woken.push_back(thread);
            }
        } else {
            cursor.move_next();
        }
    }
    drop(bucket);
    while let Some(thread) = woken.pop_front() {
        make_ready(thread);
    }
}

/// Wakes `thread` if it still waits: its time limit has come. Callable in interrupts.
pub(super) fn wake_one(thread: &Arc<Thread>) {
    let mut bucket = bucket(thread.wait_key.load(Ordering::Relaxed)).lock();
    if !thread.in_bucket.load(Ordering::Relaxed) {
        return;
    }
    thread.in_bucket.store(false, Ordering::Relaxed);
    // SAFETY: `in_bucket`, seen under the bucket's lock, says that the thread is in this very list.
    let taken = unsafe { bucket.cursor_mut_from_ptr(Arc::as_ptr(thread)) }.remove();
    drop(bucket);
    if let Some(thread) = taken {
        make_ready(thread);
    }
}
