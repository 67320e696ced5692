//! Kernel threads. A thread belongs to one CPU for life, and kernel mode is not preemptible: a thread runs until it
//! sleeps, waits, yields or ends.
//!
//! That a thread stays on its CPU makes the scheduler small: only that CPU takes it from a run queue, so a thread that is
//! woken while it is still on its way to sleep merely finds itself in the queue.

mod idle;
mod join;
mod scheduler;
pub mod stack;
mod tests;
mod timer;
mod wait;

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize};

use intrusive_collections::LinkedListAtomicLink;
use mm::cpu::CpuId;
use mm::sync::atomic::plain::Solo64;
use mm::sync::held::HeldLocks;

pub use idle::{IdleHooks, run as run_idle, set_hooks as set_idle_hooks};
pub use join::{JoinHandle, SpawnError, spawn_on};
pub use scheduler::{adopt_boot_context, current, current_name, is_idle, need_resched, yield_now};
use stack::Stack;
pub use timer::{sleep, tick};
pub use wait::{NEVER, block_until, block_while, wake};

use crate::memory::UserSlot;

/// A thread's name for reports; what does not fit is cut.
#[derive(Clone, Copy)]
pub struct ShortName {
    bytes: [u8; Self::ROOM],
    length: usize,
}

impl ShortName {
    const ROOM: usize = 24;

    /// No name.
    pub const EMPTY: Self = Self { bytes: [0; Self::ROOM], length: 0 };

    /// The name, or as much of it as fits.
    pub fn new(name: &str) -> Self {
        let length = name.floor_char_boundary(Self::ROOM);
        let mut bytes = [0; Self::ROOM];
        for (to, from) in bytes.iter_mut().zip(name.bytes().take(length)) {
            *to = from;
        }
        Self { bytes, length }
    }
}

impl fmt::Display for ShortName {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let name = self.bytes.get(..self.length).and_then(|bytes| core::str::from_utf8(bytes).ok());
        write!(out, "'{}'", name.unwrap_or("?"))
    }
}

/// What a thread does when it first runs.
type Start = Box<dyn FnOnce() + Send>;

/// A kernel thread.
pub struct Thread {
    name: ShortName,
    cpu: CpuId,
    /// Whether this is the context its CPU falls back to when no thread wants to run.
    is_idle: bool,
    /// The stack pointer while it does not run. Only its CPU touches it.
    context: AtomicUsize,
    /// What to do first; taken by the thread itself.
    start: UnsafeCell<Option<Start>>,
    /// Set by the thread itself when it gives its CPU away for the last time.
    has_ended: AtomicBool,
    /// None for the idle contexts, which run on the stacks their CPUs started on.
    stack: Option<Stack>,
    /// The address space it is in.
    user: UserSlot,
    /// Which address spaces' `mmap_lock` it holds. Only the thread itself writes it.
    mmap_locks: HeldLocks,
    /// In its CPU's run queue or in a bucket of `wait`, never in both.
    queue_link: LinkedListAtomicLink,
    /// In its CPU's list of sleepers.
    timer_link: LinkedListAtomicLink,
    /// What it waits for, and whether it is in that key's bucket. Changed with the bucket locked.
    wait_key: AtomicUsize,
    in_bucket: AtomicBool,
    /// When its wait ends at the latest, in nanoseconds. Set before it joins the sleepers, and not while it is among them.
    deadline: Solo64,
}

// SAFETY: `start` is written before the thread is shared and afterwards touched by the thread itself alone.
unsafe impl Sync for Thread {}

impl Thread {
    fn new(name: &str, cpu: CpuId, is_idle: bool, start: Option<Start>, stack: Option<Stack>) -> Self {
        Self {
            name: ShortName::new(name),
            cpu,
            is_idle,
            context: AtomicUsize::new(0),
            start: UnsafeCell::new(start),
            has_ended: AtomicBool::new(false),
            stack,
            user: UserSlot::new(),
            mmap_locks: HeldLocks::new(),
            queue_link: LinkedListAtomicLink::new(),
            timer_link: LinkedListAtomicLink::new(),
            wait_key: AtomicUsize::new(0),
            in_bucket: AtomicBool::new(false),
            deadline: Solo64::new(NEVER),
        }
    }

    /// The address space it is in.
    pub fn user(&self) -> &UserSlot {
        &self.user
    }

    /// Which `mmap_lock`s it holds, in builds whose `mm` notes it.
    pub fn mmap_locks(&self) -> &HeldLocks {
        &self.mmap_locks
    }
}
