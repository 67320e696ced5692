//! The test-and-set lock: one bit, and whoever comes while it is clear takes it. For comparison only.
//!
//! ```text
//!  31       9 8        7         0
//! +----------+--------+-----------+
//! |    0     | locked | outsiders |
//! +----------+--------+-----------+
//! ```
//!
//! It excludes (I44) and wakes its sleepers (I47), but promises no order: a waiter may lose to newcomers for ever. Waiters
//! poll, then join the count of *outsiders* and halt. That none sleeps for ever is shown by the argument *Outside* in
//! [`ticket`](super::ticket), with no ticket in it: joining, taking and unlocking are RMWs on the word; the unlock that counts
//! an outsider sees its slot and kicks one, and that one tries the lock before it can sleep again, so that another unlock
//! follows. The unlock is the last access to the word (I46).

use super::atomic::{AtomicU32, Ordering};
use super::parking::{Wait, kick_outsider};
use super::{LockClass, RawLock, taking};
use crate::config::NR_CPUS;
use crate::machine::Machine;

const OUTSIDER_BITS: u32 = 8;
const OUTSIDER_MASK: u32 = (1 << OUTSIDER_BITS) - 1;
const OUTSIDER: u32 = 1;
const LOCKED: u32 = 1 << OUTSIDER_BITS;

const _: () = assert!(NR_CPUS < 1 << OUTSIDER_BITS);

/// The lock.
#[repr(transparent)]
pub struct TestAndSetLock(AtomicU32);

impl TestAndSetLock {
    /// Sets the bit if it is clear. Outsiders may come and go meanwhile.
    fn take_if_free(&self) -> bool {
        let mut word = self.0.load(Ordering::Relaxed);
        while word & LOCKED == 0 {
            // Acquire pairs with the Release of the last unlock, directly or through the RMWs since.
            match self.0.compare_exchange_weak(word, word | LOCKED, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    #[cold]
    fn wait<M: Machine>(&self, machine: M, class: LockClass) {
        let mut wait = Wait::begin(&machine, self.address(), class);
        while !wait.poll(|| self.take_if_free()) {
            wait.count_round();
            // Release: the slot, for the unlocker that counts this waiter. Leaving publishes nothing.
            if wait.halt(|| self.0.fetch_add(OUTSIDER, Ordering::Release) & LOCKED != 0) {
                self.0.fetch_sub(OUTSIDER, Ordering::Relaxed);
            }
        }
        wait.end();
    }

    fn address(&self) -> usize {
        (&raw const self.0).addr()
    }
}

/// Tells the model checker that the word's memory is somebody else's from here on (R39).
#[cfg(loom)]
impl Drop for TestAndSetLock {
    fn drop(&mut self) {
        self.0.with_mut(|_| ());
    }
}

impl RawLock for TestAndSetLock {
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
        // Release: what the owner did is seen by the next one. Acquire: the slots of the outsiders that this counts.
        let before = self.0.fetch_sub(LOCKED, Ordering::AcqRel);
        // From here on the lock is only an address.
        let kicked = before & OUTSIDER_MASK > 0 && kick_outsider(machine, lock);
        taking::count_kick(machine, class, kicked);
    }

    fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed) & LOCKED != 0
    }

    /// Whether anyone sleeps for it: who polls is not known.
    fn is_contended(&self) -> bool {
        self.0.load(Ordering::Relaxed) & OUTSIDER_MASK > 0
    }
}
