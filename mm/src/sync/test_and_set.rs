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
use super::word::{Protocol, WordLock};
use crate::config::NR_CPUS;
use crate::machine::Machine;

const OUTSIDER_BITS: u32 = 8;
const OUTSIDER_MASK: u32 = (1 << OUTSIDER_BITS) - 1;
const LOCKED: u32 = 1 << OUTSIDER_BITS;

const _: () = assert!(NR_CPUS < 1 << OUTSIDER_BITS);

/// The lock.
pub type TestAndSetLock = WordLock<TestAndSet>;

/// What happens on its word.
pub struct TestAndSet;

impl Protocol for TestAndSet {
    /// Sets the bit if it is clear. Outsiders may come and go meanwhile.
    fn take_if_free(word: &AtomicU32) -> bool {
        let mut seen = word.load(Ordering::Relaxed);
        while seen & LOCKED == 0 {
            // Acquire pairs with the Release of the last unlock, directly or through the RMWs since.
            match word.compare_exchange_weak(seen, seen | LOCKED, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    fn wait<M: Machine>(word: &AtomicU32, wait: &mut Wait<'_, M>) {
        while !wait.poll(|| Self::take_if_free(word)) {
            wait.halt_outside(word, Self::is_locked);
        }
    }

    fn release<M: Machine>(word: &AtomicU32, machine: M, lock: usize) -> bool {
        // Release: what the owner did is seen by the next one. Acquire: the slots of the outsiders that this counts.
        let before = word.fetch_sub(LOCKED, Ordering::AcqRel);
        // From here on the lock is only an address.
        before & OUTSIDER_MASK > 0 && kick_outsider(machine, lock)
    }

    fn is_locked(word: u32) -> bool {
        word & LOCKED != 0
    }

    /// Whether anyone sleeps for it: who polls is not known.
    fn is_contended(word: u32) -> bool {
        word & OUTSIDER_MASK > 0
    }
}
