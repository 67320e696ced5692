//! The ticket lock in one word, with waiters that may stand outside the queue (design decision 2, spec 12).
//!
//! ```text
//!  31          20 19           8 7         0
//! +--------------+--------------+-----------+
//! | tail ticket  | head ticket  | outsiders |      free: head == tail
//! +--------------+--------------+-----------+
//! ```
//!
//! A waiter without a ticket polls for a free lock, then joins the count of *outsiders* and halts. After the rounds the
//! machine's rule allows it takes a ticket and is served in order. The unlocker advances head by one RMW, and what that
//! RMW returns says whether somebody must be kicked; the word is not touched again, since it may be freed (I46, R39).
//!
//! Why no waiter sleeps for ever (I47, R38). "Before" among RMWs is the word's modification order.
//!
//! *With a ticket.* Waiter: show ASLEEP with the ticket; SeqCst fence; read head. Unlocker: RMW on head; SeqCst fence;
//! read the slots. One fence comes first, so either the waiter reads the head that makes it the owner, or the unlocker
//! reads ASLEEP and kicks. The unlocker whose RMW makes a ticket the owner's is the one that looks for it.
//!
//! *Outside.* Waiter: show ASLEEP; RMW that joins the outsiders; halt if that RMW saw the lock taken. If it did, the
//! owner's unlocking RMW comes after it, counts the waiter, and sees its slot (the waiter's RMW releases, the unlocker's
//! acquires). If a ticket follows, its owner's unlock does the same in turn. So some unlock finds no ticket, at least one
//! outsider, and kicks one, or finds one kicked already. Call that one X. Awake, X hides its slot, and before it can
//! sleep again it takes the lock, takes a ticket or joins anew, all by RMWs on the word. The next of these comes after the
//! unlock that saw the slot; otherwise that unlock would have acquired the hiding from it, or from X's own unlock. So X
//! takes the lock, or finds an owner whose unlock is still to come and sees all outsiders that remain.

use super::atomic::{AtomicU32, Ordering, fence};
use super::parking::{Wait, kick_outsider, kick_ticket};
use super::{LockClass, RawLock, taking};
use crate::config::NR_CPUS;
use crate::machine::Machine;

/// Bits of a ticket. Small under the model checker, so that tickets wrap within a model (R40).
const TICKET_BITS: u32 = if cfg!(loom) { 2 } else { 12 };
const TICKET_MASK: u32 = (1 << TICKET_BITS) - 1;
const OUTSIDER_BITS: u32 = 8;
const OUTSIDER_MASK: u32 = (1 << OUTSIDER_BITS) - 1;
const OUTSIDER: u32 = 1;
/// The tail ends the word, so that its carry falls off.
const TAIL_SHIFT: u32 = u32::BITS - TICKET_BITS;
const TAIL: u32 = 1 << TAIL_SHIFT;
const HEAD_SHIFT: u32 = TAIL_SHIFT - TICKET_BITS;
const HEAD: u32 = 1 << HEAD_SHIFT;

const _: () = assert!(OUTSIDER_BITS <= HEAD_SHIFT);
// A CPU has at most one ticket and stands outside at most once: it waits with nothing else running (I45).
const _: () = assert!(NR_CPUS < 1 << TICKET_BITS && NR_CPUS < 1 << OUTSIDER_BITS);

/// A value of the lock word.
#[derive(Clone, Copy)]
struct Word(u32);

impl Word {
    fn tail(self) -> u32 {
        self.0 >> TAIL_SHIFT
    }

    fn head(self) -> u32 {
        self.0 >> HEAD_SHIFT & TICKET_MASK
    }

    /// Tickets out, the owner's included. Truncated to a ticket's width, or it is wrong when tail has wrapped (I49).
    fn tickets(self) -> u32 {
        self.tail().wrapping_sub(self.head()) & TICKET_MASK
    }

    fn is_free(self) -> bool {
        self.tickets() == 0
    }

    fn outsiders(self) -> u32 {
        self.0 & OUTSIDER_MASK
    }
}

/// The lock.
#[repr(transparent)]
pub struct TicketLock(AtomicU32);

impl TicketLock {
    /// Takes the lock if it is free. Whoever changes the word meanwhile may be an outsider that comes or goes.
    fn take_if_free(&self) -> bool {
        let mut word = Word(self.0.load(Ordering::Relaxed));
        while word.is_free() {
            let taken = word.0.wrapping_add(TAIL);
            // Acquire pairs with the Release of the last unlock, directly or through the RMWs since.
            match self.0.compare_exchange_weak(word.0, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = Word(now),
            }
        }
        false
    }

    #[cold]
    fn wait<M: Machine>(&self, machine: M, class: LockClass) {
        let mut wait = Wait::begin(&machine, self.address(), class);
        if !self.wait_outside(&mut wait) {
            self.wait_in_queue(&wait);
        }
        wait.end();
    }

    /// Stands outside for as many rounds as the rule allows; whether the lock was taken.
    fn wait_outside<M: Machine>(&self, wait: &mut Wait<'_, M>) -> bool {
        for _ in 0..wait.rule.rounds {
            if wait.poll(|| self.take_if_free()) {
                return true;
            }
            wait.count_round();
            // Release: the slot, for the unlocker that counts this waiter. Leaving publishes nothing.
            if wait.halt(|| !Word(self.0.fetch_add(OUTSIDER, Ordering::Release)).is_free()) {
                self.0.fetch_sub(OUTSIDER, Ordering::Relaxed);
            }
        }
        false
    }

    /// Takes a ticket and waits for its turn.
    fn wait_in_queue<M: Machine>(&self, wait: &Wait<'_, M>) {
        // Relaxed: being served is what acquires, even if that is at once.
        let before = Word(self.0.fetch_add(TAIL, Ordering::Relaxed));
        let ticket = before.tail();
        wait.take_ticket(ticket, before.tickets());
        // Acquire pairs with the Release of the unlock that made head this ticket.
        let served = || Word(self.0.load(Ordering::Acquire)).head() == ticket;
        while !wait.poll(served) {
            wait.halt(|| {
                // Pairs with the fence in `unlock`.
                fence(Ordering::SeqCst);
                !served()
            });
        }
    }

    /// The key under which waiters of this lock are found.
    fn address(&self) -> usize {
        (&raw const self.0).addr()
    }
}

/// Tells the model checker that the word's memory is somebody else's from here on (R39).
#[cfg(loom)]
impl Drop for TicketLock {
    fn drop(&mut self) {
        self.0.with_mut(|_| ());
    }
}

impl RawLock for TicketLock {
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
        // Relaxed: nobody but the owner changes head.
        let head = Word(self.0.load(Ordering::Relaxed)).head();
        // Release: what the owner did is seen by the next one. Acquire: the slots of the outsiders that this counts.
        // At its largest value head goes back to zero by itself, or the carry would end up in the tail.
        let before = Word(if head == TICKET_MASK {
            self.0.fetch_sub(TICKET_MASK * HEAD, Ordering::AcqRel)
        } else {
            self.0.fetch_add(HEAD, Ordering::AcqRel)
        });
        // From here on the lock is only an address.
        let kicked = if before.tickets() > 1 {
            // Pairs with the fence in `wait_in_queue`.
            fence(Ordering::SeqCst);
            kick_ticket(machine, lock, head.wrapping_add(1) & TICKET_MASK)
        } else {
            before.outsiders() > 0 && kick_outsider(machine, lock)
        };
        taking::count_kick(machine, class, kicked);
    }

    fn is_locked(&self) -> bool {
        !Word(self.0.load(Ordering::Relaxed)).is_free()
    }

    fn is_contended(&self) -> bool {
        Word(self.0.load(Ordering::Relaxed)).tickets() > 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{OUTSIDER, TAIL, TICKET_MASK, TicketLock, Word};
    use crate::cpu::CpuId;
    use crate::machine::Machine;
    use crate::machine::sim::Body;
    use crate::stats::{LockCounter, LockPeak, StatsSnapshot};
    use crate::sync::LockClass::Pte;
    use crate::sync::RawLock;
    use crate::sync::atomic::Ordering::Relaxed;
    use crate::sync::parking::WaitingFor;
    use crate::sync::spin::SpinLock;
    use crate::sync::testing::{machine, unlock};

    /// Every CPU increments a counter under one lock; nothing is lost and the bounds of the waiting rule hold.
    fn increments_add_up(rounds: u32, polls: u32) {
        const CPUS: usize = 6;
        const TURNS: u64 = 1500;
        let sim = machine(CPUS, rounds, polls);
        let machine = sim.handle();
        let counter = SpinLock::<u64, TicketLock>::new(0);
        machine.run_all(|_| {
            for _ in 0..TURNS {
                let mut counter = counter.lock(machine, Pte);
                // Time for the others to come and wait.
                machine.pause();
                *counter += 1;
            }
        });
        let stats = StatsSnapshot::sum(machine.cpus());
        assert_eq!(machine.run_cpu(CpuId(0), || *counter.lock(machine, Pte)), CPUS as u64 * TURNS);
        assert_eq!(stats.locks(&[Pte], LockCounter::Acquired), CPUS as u64 * TURNS);
        assert!(stats.locks(&[Pte], LockCounter::Halts) > 0, "nobody ever had to halt");
        assert!(stats.peak(&[Pte], LockPeak::RoundsOutside) <= rounds.into());
        assert!(stats.peak(&[Pte], LockPeak::TurnsInQueue) < CPUS as u64);
        assert!(machine.cpus().iter().all(|(_, local)| local.parking.waiting_for().is_none()));
        assert_eq!(Word(counter.raw().0.load(Relaxed)).outsiders(), 0);
    }

    #[test]
    fn plain_ticket_lock_excludes() {
        increments_add_up(0, 10);
    }

    #[test]
    fn waiters_outside_the_queue_are_excluded_and_served() {
        increments_add_up(8, 4);
    }

    #[test]
    fn waiters_that_always_sleep_are_woken() {
        increments_add_up(2, 1);
    }

    /// CPU 1 waits for a lock that CPU 0 holds, until CPU 1 sleeps. Returns what it is seen waiting for then.
    fn a_sleeper_is_kicked(rounds: u32, is_contended: bool) -> WaitingFor {
        let sim = machine(2, rounds, 1);
        let machine = sim.handle();
        let lock = TicketLock::new();
        let mut seen = None;
        let owner = || {
            lock.lock(machine, Pte);
            let slot = &machine.cpus().of(CpuId(1)).parking;
            while !slot.waiting_for().is_some_and(|waiting| waiting.asleep)
                || Word(lock.0.load(Relaxed)).outsiders() != rounds.min(1)
            {
                machine.pause();
            }
            seen = slot.waiting_for();
            assert_eq!(lock.is_contended(), is_contended);
            unlock(&lock, machine);
        };
        let waiter = || {
            while !lock.is_locked() {
                machine.pause();
            }
            lock.lock(machine, Pte);
            unlock(&lock, machine);
        };
        machine.run(vec![(CpuId(0), Box::new(owner) as Body<'_>), (CpuId(1), Box::new(waiter))]);
        let stats = StatsSnapshot::sum(machine.cpus());
        assert_eq!(stats.locks(&[Pte], LockCounter::Waited), 1);
        assert_eq!(stats.locks(&[Pte], LockCounter::Kicks), 1);
        assert!(stats.peak(&[Pte], LockPeak::WaitNanos) > 0);
        assert_eq!(stats.locks(&[Pte], LockCounter::WaitNanos), stats.peak(&[Pte], LockPeak::WaitNanos));
        let seen = seen.unwrap();
        assert_eq!((seen.lock, seen.class), (lock.address(), Pte));
        seen
    }

    #[test]
    fn a_sleeper_with_a_ticket_is_kicked_and_visible() {
        assert_eq!(a_sleeper_is_kicked(0, true).ticket, Some(1));
    }

    #[test]
    fn a_sleeper_outside_the_queue_is_kicked_and_visible() {
        assert_eq!(a_sleeper_is_kicked(8, false).ticket, None);
    }

    #[test]
    fn tickets_wrap_without_touching_their_neighbours() {
        let sim = machine(1, 0, 1);
        let machine = sim.handle();
        let lock = TicketLock::new();
        lock.0.fetch_add(OUTSIDER, Relaxed);
        machine.run_cpu(CpuId(0), || {
            for turn in 0..3 * (TICKET_MASK + 1) + 7 {
                assert!(!lock.is_locked());
                lock.lock(machine, Pte);
                assert!(lock.is_locked() && !lock.is_contended(), "turn {turn}");
                // A second ticket, as a waiter would take it, across the wrap of either counter.
                lock.0.fetch_add(TAIL, Relaxed);
                assert!(lock.is_contended(), "turn {turn}");
                unlock(&lock, machine);
                assert!(lock.is_locked() && !lock.is_contended(), "turn {turn}");
                machine.local().held.push(lock.address(), Pte);
                unlock(&lock, machine);
                assert_eq!(Word(lock.0.load(Relaxed)).outsiders(), 1, "turn {turn}");
            }
        });
    }
}
