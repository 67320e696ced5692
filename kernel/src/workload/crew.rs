//! A crew: one thread on each of several CPUs, all let go at the same moment, for one job.
//!
//! Rule: [`run`] returns when every member has ended, so the job may borrow from its caller.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::spin_loop;
use core::mem;
use core::sync::atomic::{AtomicUsize, Ordering};

use mm::cpu::{CpuId, CpuSet};

use crate::thread::{JoinHandle, SpawnError, block_while, spawn_on, wake};

/// How often a member looks whether the others have come before it gives its CPU away: long, since members that are awake
/// when the last one comes go on in the same instant, and those that must be woken do not.
const POLLS: u64 = 200_000;

/// A place where members wait until all have come. It may be used again and again.
struct Barrier {
    members: usize,
    arrived: AtomicUsize,
    /// How often all have come. The last to come stores it with release; whoever waits loads it with acquire.
    meetings: AtomicUsize,
}

impl Barrier {
    fn new(members: usize) -> Self {
        Self { members, arrived: AtomicUsize::new(0), meetings: AtomicUsize::new(0) }
    }

    /// Waits for the others, and looks `polls` times before it gives its CPU away.
    fn wait(&self, polls: u64) {
        let meetings = self.meetings.load(Ordering::Acquire);
        // AcqRel: the last one comes after what all did before, and hands that on by its release below.
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.members {
            self.arrived.store(0, Ordering::Relaxed);
            self.meetings.store(meetings + 1, Ordering::Release);
            wake(self.key());
            return;
        }
        let waits = || self.meetings.load(Ordering::Acquire) == meetings;
        for poll in 0..polls {
            if !waits() {
                return;
            }
            if poll % 64 == 0 {
                spin_loop();
            }
        }
        block_while(self.key(), &mut || waits());
    }

    fn key(&self) -> usize {
        (&raw const self.meetings).addr()
    }
}

/// One member, as its job sees it.
pub struct Member<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// How many members there are.
    pub count: usize,
    /// The CPU it runs on.
    pub cpu: CpuId,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// Waits until every member has come here. Each must come as often as all others.
    pub fn meet(&self) {
        self.barrier.wait(POLLS);
    }

    /// As [`meet`](Self::meet), but no member sleeps: when it returns all have their CPUs, with what is loaded there. Dear on
    /// a host with fewer CPUs.
    pub fn meet_awake(&self) {
        self.barrier.wait(u64::MAX);
    }
}

/// Whether the members may begin.
const UNDECIDED: usize = 0;
const BEGIN: usize = 1;
const GO_HOME: usize = 2;

/// Runs `job` on each of `cpus` at once and returns what each member returned, in the order of the CPUs.
///
/// # Errors
/// A thread cannot be started; the job has run nowhere then.
pub fn run<T: Send + 'static>(cpus: CpuSet, job: &(dyn Fn(&Member<'_>) -> T + Sync)) -> Result<Vec<T>, SpawnError> {
    let count = cpus.iter().count();
    let barrier = Arc::new(Barrier::new(count));
    let decision = Arc::new(AtomicUsize::new(UNDECIDED));
    // SAFETY: only the lifetime changes. The threads that get the reference are joined below on every way out, before the
    // caller's borrow ends; the kernel does not unwind.
    let job = unsafe {
        mem::transmute::<&(dyn Fn(&Member<'_>) -> T + Sync), &'static (dyn Fn(&Member<'_>) -> T + Sync)>(job)
    };
    let mut threads: Vec<JoinHandle<Option<T>>> = Vec::with_capacity(count);
    let mut refused = None;
    for (index, cpu) in cpus.iter().enumerate() {
        let (barrier, gate) = (Arc::clone(&barrier), Arc::clone(&decision));
        let member = move || {
            block_while(Arc::as_ptr(&gate).addr(), &mut || gate.load(Ordering::Acquire) == UNDECIDED);
            if gate.load(Ordering::Acquire) == GO_HOME {
                return None;
            }
            let member = Member { index, count, cpu, barrier: &barrier };
            member.meet();
            Some(job(&member))
        };
        match spawn_on(cpu, "crew", member) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    decision.store(if refused.is_some() { GO_HOME } else { BEGIN }, Ordering::Release);
    wake(Arc::as_ptr(&decision).addr());
    let results = threads.into_iter().filter_map(JoinHandle::join).collect();
    match refused {
        Some(error) => Err(error),
        None => Ok(results),
    }
}
