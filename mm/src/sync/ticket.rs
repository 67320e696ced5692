//! The ticket lock in one word, with waiters that may stand outside the queue (design decision 2, spec 12), and the one
//! that has no room for such: as spec 12.1 has it, for comparison.
//!
//! ```text
//!  31          20 19           8 7         0            31          16 15           0
//! +--------------+--------------+-----------+          +--------------+--------------+
//! | tail ticket  | head ticket  | outsiders |          | tail ticket  | head ticket  |      free: head == tail
//! +--------------+--------------+-----------+          +--------------+--------------+
//! ```
//!
//! Tickets are served in their order (I44), so a next owner whose virtual CPU does not run stops everyone behind it. Hence
//! the outsiders.
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

use super::atomic::{AtomicU32, Ordering};
use super::parking::{Wait, kick_outsider, kick_ticket};
use super::word::{Protocol, WordLock};
use crate::config::NR_CPUS;
use crate::machine::Machine;

/// The lock.
pub type TicketLock = WordLock<Tickets<8>>;
/// The lock for which everyone queues.
pub type FifoLock = WordLock<Tickets<0>>;

/// A value of the lock word, with so many bits to count outsiders: none, if nobody stands outside.
#[derive(Clone, Copy)]
pub struct Tickets<const OUTSIDER_BITS: u32>(u32);

impl<const OUTSIDER_BITS: u32> Tickets<OUTSIDER_BITS> {
    /// Bits of a ticket. Small under the model checker, so that tickets wrap within a model (R40).
    const TICKET_BITS: u32 = if cfg!(loom) { 2 } else { (u32::BITS - OUTSIDER_BITS) / 2 };
    const TICKET_MASK: u32 = (1 << Self::TICKET_BITS) - 1;
    const OUTSIDER_MASK: u32 = (1 << OUTSIDER_BITS) - 1;
    /// The tail ends the word, so that its carry falls off.
    const TAIL_SHIFT: u32 = u32::BITS - Self::TICKET_BITS;
    const TAIL: u32 = 1 << Self::TAIL_SHIFT;
    /// The head is its neighbour, in models too, so that a carry out of it is seen.
    const HEAD_SHIFT: u32 = Self::TAIL_SHIFT - Self::TICKET_BITS;
    const HEAD: u32 = 1 << Self::HEAD_SHIFT;

    // A CPU has at most one ticket and stands outside at most once: it waits with nothing else running (I45).
    const ROOM_FOR_ALL_CPUS: () = {
        assert!(NR_CPUS < 1 << Self::TICKET_BITS && OUTSIDER_BITS <= Self::HEAD_SHIFT);
        assert!(OUTSIDER_BITS == 0 || NR_CPUS < 1 << OUTSIDER_BITS);
    };

    fn tail(self) -> u32 {
        self.0 >> Self::TAIL_SHIFT
    }

    fn head(self) -> u32 {
        self.0 >> Self::HEAD_SHIFT & Self::TICKET_MASK
    }

    /// Tickets out, the owner's included. Truncated to a ticket's width, or it is wrong when tail has wrapped (I49).
    fn out(self) -> u32 {
        let mask = if sabotaged!("contended-wrap") { u32::MAX } else { Self::TICKET_MASK };
        self.tail().wrapping_sub(self.head()) & mask
    }

    fn outsiders(self) -> u32 {
        self.0 & Self::OUTSIDER_MASK
    }

    /// Stands outside for as many rounds as the rule allows; whether the lock was taken.
    fn wait_outside<M: Machine>(word: &AtomicU32, wait: &mut Wait<'_, M>) -> bool {
        for _ in 0..wait.rule.rounds {
            if wait.poll(|| Self::take_if_free(word)) {
                return true;
            }
            wait.halt_outside(word, Self::is_locked);
        }
        false
    }

    /// Takes a ticket and waits for its turn.
    fn wait_in_queue<M: Machine>(word: &AtomicU32, wait: &Wait<'_, M>) {
        // Relaxed: being served is what acquires, even if that is at once.
        let before = Self(word.fetch_add(Self::TAIL, Ordering::Relaxed));
        let ticket = before.tail();
        wait.take_ticket(ticket, before.out());
        // Acquire pairs with the Release of the unlock that made head this ticket.
        wait.sleep_until(|| Self(word.load(Ordering::Acquire)).head() == ticket);
    }
}

impl<const OUTSIDER_BITS: u32> Protocol for Tickets<OUTSIDER_BITS> {
    /// Takes a ticket if it is served at once. Whoever changes the word meanwhile may be an outsider that comes or goes.
    fn take_if_free(word: &AtomicU32) -> bool {
        let () = Self::ROOM_FOR_ALL_CPUS;
        let mut seen = word.load(Ordering::Relaxed);
        while !Self::is_locked(seen) {
            let taken = seen.wrapping_add(Self::TAIL);
            // Acquire pairs with the Release of the last unlock, directly or through the RMWs since.
            match word.compare_exchange_weak(seen, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        if sabotaged!("try-queues") {
            word.fetch_add(Self::TAIL, Ordering::Relaxed);
        }
        false
    }

    fn wait<M: Machine>(word: &AtomicU32, wait: &mut Wait<'_, M>) {
        if OUTSIDER_BITS == 0 || !Self::wait_outside(word, wait) {
            Self::wait_in_queue(word, wait);
        }
    }

    fn release<M: Machine>(word: &AtomicU32, machine: M, lock: usize) -> bool {
        // Relaxed: nobody but the owner changes head.
        let head = Self(word.load(Ordering::Relaxed)).head();
        // Release: what the owner did is seen by the next one. Acquire: the slots of the outsiders that this counts.
        let order = if sabotaged!("unlock-order") { Ordering::Relaxed } else { Ordering::AcqRel };
        // At its largest value head goes back to zero by itself, or its carry would end up in the tail.
        let before = Self(if head == Self::TICKET_MASK && !sabotaged!("head-carry") {
            word.fetch_sub(Self::TICKET_MASK * Self::HEAD, order)
        } else {
            word.fetch_add(Self::HEAD, order)
        });
        // From here on the lock is only an address.
        if sabotaged!("look-back") {
            word.load(Ordering::Relaxed);
        }
        if before.out() > 1 {
            kick_ticket(machine, lock, head.wrapping_add(1) & Self::TICKET_MASK)
        } else {
            before.outsiders() > 0 && kick_outsider(machine, lock)
        }
    }

    fn is_locked(word: u32) -> bool {
        Self(word).out() > 0
    }

    fn is_contended(word: u32) -> bool {
        Self(word).out() > 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{TicketLock, Tickets};
    use crate::cpu::CpuId;
    use crate::machine::Machine;
    use crate::machine::sim::Body;
    use crate::stats::{LockCounter, LockPeak, StatsSnapshot};
    use crate::sync::LockClass::Pte;
    use crate::sync::RawLock;
    use crate::sync::atomic::Ordering::Relaxed;
    use crate::sync::order::address;
    use crate::sync::parking::WaitingFor;
    use crate::sync::spin::SpinLock;
    use crate::sync::testing::{machine, unlock};
    use crate::sync::word::WordLock;

    fn outsiders(lock: &TicketLock) -> u32 {
        Tickets::<8>(lock.word.load(Relaxed)).outsiders()
    }

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
        assert_eq!(outsiders(counter.raw()), 0);
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
            while !slot.waiting_for().is_some_and(|waiting| waiting.asleep) || outsiders(&lock) != rounds.min(1) {
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
        assert_eq!((seen.lock, seen.class), (address(&lock), Pte));
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

    /// I49, R40: no field carries into another, and contention is seen on both sides of the wrap.
    #[test]
    fn tickets_wrap_without_touching_their_neighbours() {
        tickets_wrap::<8>(1);
        tickets_wrap::<0>(0);
    }

    fn tickets_wrap<const OUTSIDER_BITS: u32>(outsiders: u32) {
        let sim = machine(1, 0, 1);
        let machine = sim.handle();
        let lock = WordLock::<Tickets<OUTSIDER_BITS>>::new();
        lock.word.fetch_add(outsiders, Relaxed);
        machine.run_cpu(CpuId(0), || {
            for turn in 0..2 * (Tickets::<OUTSIDER_BITS>::TICKET_MASK + 1) + 7 {
                assert!(!lock.is_locked());
                lock.lock(machine, Pte);
                assert!(lock.is_locked() && !lock.is_contended(), "turn {turn}");
                // A second ticket, as a waiter would take it, across the wrap of either counter.
                lock.word.fetch_add(Tickets::<OUTSIDER_BITS>::TAIL, Relaxed);
                assert!(lock.is_contended(), "turn {turn}");
                unlock(&lock, machine);
                assert!(lock.is_locked() && !lock.is_contended(), "turn {turn}");
                machine.local().held.push(address(&lock), Pte);
                unlock(&lock, machine);
                assert_eq!(Tickets::<OUTSIDER_BITS>(lock.word.load(Relaxed)).outsiders(), outsiders, "turn {turn}");
            }
        });
    }
}
