//! The ticket lock as spec 12.1 has it: everyone queues, nobody stands outside. For comparison.
//!
//! ```text
//!  31          16 15           0
//! +--------------+--------------+
//! | tail ticket  | head ticket  |      free: head == tail
//! +--------------+--------------+
//! ```
//!
//! Tickets are served in their order (I44), so a next owner whose virtual CPU does not run stops everyone behind it. A waiter
//! polls, then halts with its ticket. That it is woken (I47, R38) is shown by the argument *With a ticket* in
//! [`ticket`](super::ticket): a SeqCst fence stands between what each side shows and what it looks at. The unlock is the last
//! access to the word (I46).

use super::atomic::{AtomicU32, Ordering, fence};
use super::parking::{Wait, kick_ticket};
use super::{LockClass, RawLock, taking};
use crate::config::NR_CPUS;
use crate::machine::Machine;

/// Bits of a ticket. Small under the model checker, so that tickets wrap within a model (R40).
const TICKET_BITS: u32 = if cfg!(loom) { 2 } else { 16 };
const TICKET_MASK: u32 = (1 << TICKET_BITS) - 1;
/// The tail ends the word, so that its carry falls off.
const TAIL_SHIFT: u32 = u32::BITS - TICKET_BITS;
const TAIL: u32 = 1 << TAIL_SHIFT;
/// The head is its neighbour, in models too, so that a carry out of it is seen.
const HEAD_SHIFT: u32 = TAIL_SHIFT - TICKET_BITS;
const HEAD: u32 = 1 << HEAD_SHIFT;

// A CPU has at most one ticket: it waits with nothing else running (I45).
const _: () = assert!(NR_CPUS < 1 << TICKET_BITS);

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
}

/// The lock.
#[repr(transparent)]
pub struct FifoLock(AtomicU32);

impl FifoLock {
    /// Takes a ticket if it is served at once. Fails only if somebody else has one.
    fn take_if_free(&self) -> bool {
        let word = Word(self.0.load(Ordering::Relaxed));
        // Acquire pairs with the Release of the unlock that made the lock free.
        let taken = || self.0.compare_exchange(word.0, word.0.wrapping_add(TAIL), Ordering::Acquire, Ordering::Relaxed);
        word.tickets() == 0 && taken().is_ok()
    }

    #[cold]
    fn wait<M: Machine>(&self, machine: M, class: LockClass) {
        let wait = Wait::begin(&machine, self.address(), class);
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
        wait.end();
    }

    fn address(&self) -> usize {
        (&raw const self.0).addr()
    }
}

/// Tells the model checker that the word's memory is somebody else's from here on (R39).
#[cfg(loom)]
impl Drop for FifoLock {
    fn drop(&mut self) {
        self.0.with_mut(|_| ());
    }
}

impl RawLock for FifoLock {
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
        // Release: what the owner did is seen by the next one. At its largest value head goes back to zero by itself, or its
        // carry would leave the half word.
        let before = Word(if head == TICKET_MASK {
            self.0.fetch_sub(TICKET_MASK * HEAD, Ordering::Release)
        } else {
            self.0.fetch_add(HEAD, Ordering::Release)
        });
        // From here on the lock is only an address.
        let kicked = before.tickets() > 1 && {
            // Pairs with the fence in `wait`.
            fence(Ordering::SeqCst);
            kick_ticket(machine, lock, head.wrapping_add(1) & TICKET_MASK)
        };
        taking::count_kick(machine, class, kicked);
    }

    fn is_locked(&self) -> bool {
        Word(self.0.load(Ordering::Relaxed)).tickets() > 0
    }

    fn is_contended(&self) -> bool {
        Word(self.0.load(Ordering::Relaxed)).tickets() > 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{FifoLock, TAIL, TICKET_MASK};
    use crate::cpu::CpuId;
    use crate::machine::Machine;
    use crate::sync::LockClass::Pte;
    use crate::sync::RawLock;
    use crate::sync::atomic::Ordering::Relaxed;
    use crate::sync::testing::{machine, unlock};

    /// I49, R40: neither half carries into the other, and contention is seen on both sides of the wrap.
    #[test]
    fn tickets_wrap_without_touching_their_neighbours() {
        let sim = machine(1, 0, 1);
        let machine = sim.handle();
        let lock = FifoLock::new();
        machine.run_cpu(CpuId(0), || {
            for turn in 0..2 * (TICKET_MASK + 1) + 7 {
                assert!(!lock.is_locked());
                lock.lock(machine, Pte);
                assert!(lock.is_locked() && !lock.is_contended(), "turn {turn}");
                // A second ticket, as a waiter would take it, across the wrap of either half.
                lock.0.fetch_add(TAIL, Relaxed);
                assert!(lock.is_contended(), "turn {turn}");
                unlock(&lock, machine);
                assert!(lock.is_locked() && !lock.is_contended(), "turn {turn}");
                machine.local().held.push(lock.address(), Pte);
                unlock(&lock, machine);
            }
        });
    }
}
