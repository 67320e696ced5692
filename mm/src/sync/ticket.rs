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
//! outsider, and kicks one, or finds one kicked already. Call the kicked one X. X hides its slot before its RMW that
//! leaves the outsiders, so this RMW is after the unlock that saw the slot, and X looks at the lock after it: X takes it,
//! or finds an owner whose unlock is still to come and sees all outsiders that remain. A kick can also hit one that
//! joins only after the unlock: then its RMW sees the lock free or that later owner, and the same holds.

use super::atomic::{AtomicU32, Ordering, fence};
use super::parking::{Wait, kick_outsider, kick_ticket};
use super::{LockClass, RawLock};
use crate::config::NR_CPUS;
use crate::machine::Machine;
use crate::stats::LockCounter;

/// Bits of a ticket. Small under the model checker, so that tickets wrap within a model (R40).
const TICKET_BITS: u32 = if cfg!(loom) { 2 } else { 12 };
const TICKET_MASK: u32 = (1 << TICKET_BITS) - 1;
const OUTSIDER_BITS: u32 = 8;
const OUTSIDER_MASK: u32 = (1 << OUTSIDER_BITS) - 1;
const OUTSIDER: u32 = 1;
const HEAD_SHIFT: u32 = OUTSIDER_BITS;
const HEAD: u32 = 1 << HEAD_SHIFT;
/// The tail ends the word, so that its carry falls off.
const TAIL_SHIFT: u32 = u32::BITS - TICKET_BITS;
const TAIL: u32 = 1 << TAIL_SHIFT;

const _: () = assert!(HEAD_SHIFT + TICKET_BITS <= TAIL_SHIFT);
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
            // AcqRel, both: the module head says what they order.
            if wait.halt(|| !Word(self.0.fetch_add(OUTSIDER, Ordering::AcqRel)).is_free()) {
                self.0.fetch_sub(OUTSIDER, Ordering::AcqRel);
            }
        }
        false
    }

    /// Takes a ticket and waits for its turn.
    fn wait_in_queue<M: Machine>(&self, wait: &Wait<'_, M>) {
        // Acquire: the lock may be free, and then this takes it. Release: an unlocker that sees the ticket sees this CPU
        // online.
        let before = Word(self.0.fetch_add(TAIL, Ordering::AcqRel));
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
        debug_assert!(machine.irqs_enabled(), "a lock of mm is taken with interrupts off (I24)");
        debug_assert!(!machine.local().held.contains(self.address()), "a lock of mm is taken twice by one CPU");
        if !self.take_if_free() {
            self.wait(machine, class);
        }
        note_taken(machine, self.address(), class);
    }

    fn try_lock<M: Machine>(&self, machine: M, class: LockClass) -> bool {
        debug_assert!(machine.irqs_enabled(), "a lock of mm is taken with interrupts off (I24)");
        let taken = self.take_if_free();
        if taken {
            note_taken(machine, self.address(), class);
        }
        taken
    }

    unsafe fn unlock<M: Machine>(&self, machine: M) {
        let (local, lock) = (machine.local(), self.address());
        let class = local.held.remove(lock);
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
        if kicked {
            local.stats.add_lock(class, LockCounter::Kicks, 1);
        }
    }

    fn is_locked(&self) -> bool {
        !Word(self.0.load(Ordering::Relaxed)).is_free()
    }

    fn is_contended(&self) -> bool {
        Word(self.0.load(Ordering::Relaxed)).tickets() > 1
    }
}

fn note_taken<M: Machine>(machine: M, lock: usize, class: LockClass) {
    let local = machine.local();
    local.held.push(lock, class);
    local.stats.add_lock(class, LockCounter::Acquired, 1);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{OUTSIDER, TAIL, TICKET_MASK, TicketLock, Word};
    use crate::cpu::CpuId;
    use crate::machine::Machine;
    use crate::stats::{LockCounter, LockPeak, StatsSnapshot};
    use crate::sync::LockClass::Pte;
    use crate::sync::RawLock;
    use crate::sync::atomic::Ordering::Relaxed;
    use crate::sync::spin::SpinLock;
    use crate::sync::testing::TestMachine;

    fn unlock(lock: &TicketLock, machine: TestMachine) {
        // SAFETY: the tests give up only what they took.
        unsafe { lock.unlock(machine) }
    }

    /// Every CPU increments a counter under one lock; nothing is lost and the bounds of the waiting rule hold.
    fn increments_add_up(rounds: u32, polls: u32) {
        const CPUS: usize = 6;
        const TURNS: u64 = 3000;
        let machine = TestMachine::new(CPUS, rounds, polls);
        let counter = SpinLock::<u64, TicketLock>::new(0);
        machine.on_all(|_| {
            for _ in 0..TURNS {
                *counter.lock(machine, Pte) += 1;
            }
        });
        let stats = StatsSnapshot::sum(machine.cpus());
        assert_eq!(*counter.lock(machine, Pte), CPUS as u64 * TURNS);
        assert_eq!(stats.locks(&[Pte], LockCounter::Acquired), CPUS as u64 * TURNS);
        assert!(stats.peak(&[Pte], LockPeak::RoundsOutside) <= rounds.into());
        assert!(stats.peak(&[Pte], LockPeak::TurnsInQueue) < CPUS as u64);
        assert_eq!(machine.cpus().iter().map(|(_, local)| local.held.count()).sum::<usize>(), 0);
        assert!(machine.cpus().iter().all(|(_, local)| local.parking.waiting_for().is_none()));
        assert_eq!(Word(counter.raw().0.load(Relaxed)).outsiders(), 0);
    }

    #[test]
    fn plain_ticket_lock_excludes() {
        increments_add_up(0, 50);
    }

    #[test]
    fn waiters_outside_the_queue_are_excluded_and_served() {
        increments_add_up(8, 20);
    }

    #[test]
    fn waiters_that_always_sleep_are_woken() {
        increments_add_up(2, 1);
    }

    /// CPU 1 waits for a lock that CPU 0 holds until CPU 1 sleeps; `check` looks at it then.
    fn with_a_sleeper(rounds: u32, check: impl Fn(&TicketLock, TestMachine)) {
        let machine = TestMachine::new(2, rounds, 1);
        let lock = TicketLock::new();
        lock.lock(machine, Pte);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                machine.as_cpu(CpuId(1), || {
                    lock.lock(machine, Pte);
                    unlock(&lock, machine);
                });
            });
            let asleep = || machine.cpus().of(CpuId(1)).parking.waiting_for().is_some_and(|waiting| waiting.asleep);
            let outsiders = || Word(lock.0.load(Relaxed)).outsiders();
            while !asleep() || outsiders() != rounds.min(1) {
                std::thread::yield_now();
            }
            check(&lock, machine);
            unlock(&lock, machine);
        });
        let stats = StatsSnapshot::sum(machine.cpus());
        assert_eq!(stats.locks(&[Pte], LockCounter::Waited), 1);
        assert_eq!(stats.locks(&[Pte], LockCounter::Kicks), 1);
        assert!(stats.locks(&[Pte], LockCounter::WaitNanos) >= stats.peak(&[Pte], LockPeak::WaitNanos));
        assert!(stats.peak(&[Pte], LockPeak::WaitNanos) > 0);
    }

    #[test]
    fn a_sleeper_with_a_ticket_is_kicked_and_visible() {
        with_a_sleeper(0, |lock, machine| {
            assert!(lock.is_contended());
            let waiting = machine.cpus().of(CpuId(1)).parking.waiting_for().unwrap();
            assert_eq!((waiting.lock, waiting.ticket, waiting.class), (lock.address(), Some(1), Pte));
        });
    }

    #[test]
    fn a_sleeper_outside_the_queue_is_kicked_and_visible() {
        with_a_sleeper(8, |lock, machine| {
            assert!(!lock.is_contended());
            let waiting = machine.cpus().of(CpuId(1)).parking.waiting_for().unwrap();
            assert_eq!((waiting.lock, waiting.ticket, waiting.class), (lock.address(), None, Pte));
        });
    }

    #[test]
    fn tickets_wrap_without_touching_their_neighbours() {
        let machine = TestMachine::new(1, 0, 1);
        let lock = TicketLock::new();
        lock.0.fetch_add(OUTSIDER, Relaxed);
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
    }

    #[test]
    fn try_lock_neither_waits_nor_queues() {
        let machine = TestMachine::new(1, 0, 1);
        let lock = TicketLock::new();
        assert!(lock.try_lock(machine, Pte));
        let word = lock.0.load(Relaxed);
        assert!(!lock.try_lock(machine, Pte));
        assert_eq!(lock.0.load(Relaxed), word);
        unlock(&lock, machine);
        assert!(lock.try_lock(machine, Pte));
        unlock(&lock, machine);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "I24")]
    fn locking_with_interrupts_off_is_caught() {
        let machine = TestMachine::new(1, 0, 1);
        machine.irq_save();
        TicketLock::new().lock(machine, Pte);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "taken twice")]
    fn taking_a_lock_twice_is_caught() {
        let machine = TestMachine::new(1, 0, 1);
        let lock = TicketLock::new();
        lock.lock(machine, Pte);
        lock.lock(machine, Pte);
    }
}
