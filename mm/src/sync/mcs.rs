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

use super::atomic::{AtomicU32, Ordering, const_new};
use super::order::address;
use super::parking::{Wait, kick_ticket};
use super::word::{Protocol, WordLock, count_kick};
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
pub type McsLock = WordLock<Mcs>;

/// What happens on its word.
pub struct Mcs;

impl Protocol for Mcs {
    /// Takes the lock if it is free and nobody queues for it.
    fn take_if_free(word: &AtomicU32) -> bool {
        // Looked at before it is written to: a line that is only read stays with all CPUs. Acquire pairs with the Release of
        // the last unlock.
        word.load(Ordering::Relaxed) == 0
            && word.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn wait<M: Machine>(word: &AtomicU32, wait: &mut Wait<'_, M>) {
        let machine = *wait.machine;
        let (me, node) = (link(machine.cpu()), &machine.local().queue);
        // Relaxed: the Release below publishes the node.
        node.next.store(0, Ordering::Relaxed);
        node.first.store(0, Ordering::Relaxed);
        if let Some(before) = last(become_last(word, me)) {
            wait.take_ticket(me, UNKNOWN_TURNS);
            // Release: this CPU is done with the stores above when the other one stores to its node.
            machine.cpus().of(before).queue.next.store(me, Ordering::Release);
            // Acquire pairs with the Release in `pass_on`.
            wait.sleep_until(|| node.first.load(Ordering::Acquire) == 1);
        }
        wait.take_ticket(FIRST, UNKNOWN_TURNS);
        // Acquire pairs with the Release of the last unlock. Only the first of the queue takes a lock that others queue for.
        wait.sleep_until(|| !Self::is_locked(word.load(Ordering::Acquire)));
        take_as_first(word, wait, me);
    }

    fn release<M: Machine>(word: &AtomicU32, machine: M, lock: usize) -> bool {
        // Release: what the owner did is seen by the next one.
        let before = word.fetch_sub(LOCKED, Ordering::Release);
        // From here on the lock is only an address.
        last(before).is_some() && kick_ticket(machine, lock, FIRST)
    }

    fn is_locked(word: u32) -> bool {
        word & LOCKED != 0
    }

    fn is_contended(word: u32) -> bool {
        last(word).is_some()
    }
}

/// Makes `me` the last of the queue and returns the word as it was before.
fn become_last(word: &AtomicU32, me: u32) -> u32 {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let queued = seen & LOCKED | me << LAST_SHIFT;
        // Release: the node is ready. Acquire: so is that of the one before.
        match word.compare_exchange_weak(seen, queued, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(before) => return before,
            Err(now) => seen = now,
        }
    }
}

/// Takes the free lock as the first of the queue, and passes that place on if anyone is there to have it.
fn take_as_first<M: Machine>(word: &AtomicU32, wait: &Wait<'_, M>, me: u32) {
    // Relaxed, twice: the first has acquired the lock when it saw it free, and nobody else could take it since.
    let alone = word.compare_exchange(me << LAST_SHIFT, LOCKED, Ordering::Relaxed, Ordering::Relaxed);
    if alone.is_err() {
        word.fetch_or(LOCKED, Ordering::Relaxed);
        let kicked = pass_on(wait, address(word));
        count_kick(*wait.machine, wait.class, kicked);
    }
}

/// Tells the next in the queue of the lock at address `lock` that it is the first now. Returns whether it had to be woken
/// for that.
fn pass_on<M: Machine>(wait: &Wait<'_, M>, lock: usize) -> bool {
    let machine = *wait.machine;
    let node = &machine.local().queue;
    let next = loop {
        // Acquire pairs with the Release in `wait`. The other one links itself right after it became the last.
        if let Some(next) = linked(node.next.load(Ordering::Acquire)) {
            break next;
        }
        machine.pause();
        wait.assert_not_stuck();
    };
    // Release: this CPU is done with its node, and has left FIRST before the next one shows it.
    machine.cpus().of(next).queue.first.store(1, Ordering::Release);
    kick_ticket(machine, lock, link(next))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{LAST_SHIFT, address, link, take_as_first};
    use crate::cpu::CpuId;
    use crate::machine::sim::{SimConfig, SimMachine};
    use crate::pgtable::FourLevel;
    use crate::sync::LockClass::Pte;
    use crate::sync::atomic::AtomicU32;
    use crate::sync::parking::Wait;

    /// CPU 0 waits, first of the queue; CPU 1 makes itself the last and goes no further; the owner unlocks; CPU 0 takes the
    /// lock and waits for CPU 1 to link itself. By the machine's clock that takes a minute.
    #[test]
    #[should_panic(expected = "stuck: the lock of a PTE table")]
    fn a_successor_that_never_links_itself_is_reported() {
        let sim = SimMachine::<FourLevel>::new(SimConfig { clock_rate: 1000, ..SimConfig::calm(16, 2, 1) });
        let machine = sim.handle();
        machine.run_cpu(CpuId(0), || {
            let word = AtomicU32::new(link(CpuId(1)) << LAST_SHIFT);
            let wait = Wait::begin(&machine, address(&word), Pte);
            take_as_first(&word, &wait, link(CpuId(0)));
        });
    }
}
