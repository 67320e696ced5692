//! The queued lock: waiters stand in a list and each polls a line of its own (spec 12.3). For comparison.
//!
//! ```text
//!  31                1 0
//! +-------------------+--------+
//! | last in the queue | locked |      0: free, and nobody queues
//! +-------------------+--------+
//! ```
//!
//! The word fits where the ticket lock's does; the places in the queue are the [`QueueNode`]s of the CPUs, one each, since a
//! CPU waits for one lock at a time, with nothing else running (I24, I45). A node is in use from the RMW that makes it the
//! last of the queue until its CPU has taken the lock and passed the first place on; nobody names it after that.
//!
//! A waiter makes itself the last, links itself to the one before it and polls its own node until that one has passed the
//! first place on. The first of the queue, and it alone, polls the word. When the lock is free it takes it and passes the
//! first place on. So places are served in their order (I44), newcomers included: the short path needs the word to be 0.
//!
//! Why no waiter sleeps for ever (I47, R38). A waiter shows a *ticket* of this file's making: [`FIRST`], or its own CPU's
//! number plus one further back. *Further back:* the waiter shows ASLEEP; SeqCst fence; reads its node. The one before it
//! stores to the node; SeqCst fence; reads the slot. One fence comes first, so one of the two sees the other's store. *First:*
//! the same between the first's look at the word and the unlocking RMW. If the unlocker sees the slot still without FIRST,
//! its fence came before that of the first's next halt, which then finds the lock free. Two CPUs never show FIRST asleep for
//! one lock: who passes the place on is awake, and has said so before.
//!
//! The unlocker learns from its releasing RMW whether anyone queues, and finds the first among the slots by the lock's
//! address; the word is not touched again (I46, R39).

use super::atomic::{AtomicU32, Ordering, const_new, fence};
use super::parking::{Wait, kick_ticket};
use super::{LockClass, RawLock, taking};
use crate::config::NR_CPUS;
use crate::cpu::CpuId;
use crate::machine::Machine;

const LOCKED: u32 = 1;
const LAST_SHIFT: u32 = 1;
/// The ticket that the first of a queue shows. Nobody further back does.
const FIRST: u32 = 0;

/// How many come before a waiter is not to be seen in the word, so the count of turns says nothing of this lock.
const UNKNOWN_TURNS: u32 = 0;

const _: () = assert!(NR_CPUS < 1 << (u32::BITS - LAST_SHIFT));

/// A CPU in a link or in the word: its number plus one, so that zero is nobody.
fn link(cpu: CpuId) -> u32 {
    cpu.0 + 1
}

/// The CPU a link names.
fn linked(link: u32) -> Option<CpuId> {
    link.checked_sub(1).map(CpuId)
}

/// The last of the queue, by the lock word.
fn last(word: u32) -> Option<CpuId> {
    linked(word >> LAST_SHIFT)
}

/// The place of one CPU in a queue.
#[repr(align(64))]
pub struct QueueNode {
    /// Who comes next; stored by that CPU.
    next: AtomicU32,
    /// 1 when this place has become the first; stored by the CPU before it.
    first: AtomicU32,
}

impl QueueNode {
    const_new! {
        /// In no queue.
        pub fn new() -> Self {
            Self { next: AtomicU32::new(0), first: AtomicU32::new(0) }
        }
    }
}

impl Default for QueueNode {
    fn default() -> Self {
        Self::new()
    }
}

/// The lock.
#[repr(transparent)]
pub struct McsLock(AtomicU32);

impl McsLock {
    /// Takes the lock if it is free and nobody queues for it.
    fn take_if_free(&self) -> bool {
        // Looked at before it is written to: a line that is only read stays with all CPUs. Acquire pairs with the Release of
        // the last unlock.
        self.0.load(Ordering::Relaxed) == 0
            && self.0.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn wait<M: Machine>(&self, machine: M, class: LockClass) {
        let wait = Wait::begin(&machine, self.address(), class);
        let (me, node) = (link(machine.cpu()), &machine.local().queue);
        // Relaxed: the Release below publishes the node.
        node.next.store(0, Ordering::Relaxed);
        node.first.store(0, Ordering::Relaxed);
        let before = self.become_last(me);
        if let Some(before) = last(before) {
            wait.take_ticket(me, UNKNOWN_TURNS);
            // Release: this CPU is done with the stores above when the other one stores to its node.
            machine.cpus().of(before).queue.next.store(me, Ordering::Release);
            // Acquire pairs with the Release in `pass_on`.
            self.sleep_until(&wait, || node.first.load(Ordering::Acquire) == 1);
        }
        wait.take_ticket(FIRST, UNKNOWN_TURNS);
        // Acquire pairs with the Release of the last unlock. Only the first of the queue takes a lock that others queue for.
        self.sleep_until(&wait, || self.0.load(Ordering::Acquire) & LOCKED == 0);
        self.take_as_first(machine, me, class);
        wait.end();
    }

    /// Makes `me` the last of the queue and returns the word as it was before.
    fn become_last(&self, me: u32) -> u32 {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let queued = word & LOCKED | me << LAST_SHIFT;
            // Release: the node is ready. Acquire: so is that of the one before.
            match self.0.compare_exchange_weak(word, queued, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(before) => return before,
                Err(now) => word = now,
            }
        }
    }

    /// Takes the free lock as the first of the queue, and passes that place on if anyone is there to have it.
    fn take_as_first<M: Machine>(&self, machine: M, me: u32, class: LockClass) {
        // Relaxed, twice: the first has acquired the lock when it saw it free, and nobody else could take it since.
        let alone = self.0.compare_exchange(me << LAST_SHIFT, LOCKED, Ordering::Relaxed, Ordering::Relaxed);
        if alone.is_err() {
            self.0.fetch_or(LOCKED, Ordering::Relaxed);
            let kicked = self.pass_on(machine);
            taking::count_kick(machine, class, kicked);
        }
    }

    /// Tells the next in the queue that it is the first now. Returns whether it had to be woken for that.
    fn pass_on<M: Machine>(&self, machine: M) -> bool {
        let node = &machine.local().queue;
        let next = loop {
            // Acquire pairs with the Release in `wait`. The other one links itself right after it became the last.
            if let Some(next) = linked(node.next.load(Ordering::Acquire)) {
                break next;
            }
            machine.pause();
        };
        // Release: this CPU is done with its node, and has left FIRST before the next one shows it.
        machine.cpus().of(next).queue.first.store(1, Ordering::Release);
        // Pairs with the fence in `sleep_until`.
        fence(Ordering::SeqCst);
        kick_ticket(machine, self.address(), link(next))
    }

    fn sleep_until<M: Machine>(&self, wait: &Wait<'_, M>, mine: impl Fn() -> bool) {
        while !wait.poll(&mine) {
            wait.halt(|| {
                // Pairs with the fence in `unlock`, and with that in `pass_on`.
                fence(Ordering::SeqCst);
                !mine()
            });
        }
    }

    fn address(&self) -> usize {
        (&raw const self.0).addr()
    }
}

/// Tells the model checker that the word's memory is somebody else's from here on (R39).
#[cfg(loom)]
impl Drop for McsLock {
    fn drop(&mut self) {
        self.0.with_mut(|_| ());
    }
}

impl RawLock for McsLock {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn lock<M: Machine>(&self, machine: M, class: LockClass) {
        taking::may_wait(machine, self.address());
        if !self.take_if_free() {
            self.wait(machine, class);
        }
        taking::taken(machine, self.address(), class);
    }

    fn try_lock<M: Machine>(&self, machine: M, class: LockClass) -> bool {
        taking::may_try(machine);
        let taken = self.take_if_free();
        if taken {
            taking::taken(machine, self.address(), class);
        }
        taken
    }

    unsafe fn unlock<M: Machine>(&self, machine: M) {
        let lock = self.address();
        let class = taking::gives_up(machine, lock);
        // Release: what the owner did is seen by the next one.
        let before = self.0.fetch_sub(LOCKED, Ordering::Release);
        // From here on the lock is only an address.
        let kicked = last(before).is_some() && {
            // Pairs with the fence in `sleep_until`.
            fence(Ordering::SeqCst);
            kick_ticket(machine, lock, FIRST)
        };
        taking::count_kick(machine, class, kicked);
    }

    fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed) & LOCKED != 0
    }

    fn is_contended(&self) -> bool {
        last(self.0.load(Ordering::Relaxed)).is_some()
    }
}
