//! The locks a CPU holds, for the panic report, for leak checks, and for "no lock is held here" assertions.
//!
//! Rule: written by its own CPU alone; others read it when they report, and may see a list that is just changing.

use super::LockClass;
use super::atomic::Ordering;
use super::atomic::plain::{AtomicU8, AtomicUsize};

/// Locks whose address is kept. The deepest nesting of the lock order (spec 2.2) is far below.
const RECORDED: usize = 16;

/// The locks one CPU holds, in the order it took them; on lines no other CPU writes.
#[repr(align(64))]
pub struct HeldLocks {
    count: AtomicUsize,
    entries: [Held; RECORDED],
}

struct Held {
    lock: AtomicUsize,
    class: AtomicU8,
}

impl Held {
    fn set(&self, lock: usize, class: u8) {
        self.lock.store(lock, Ordering::Relaxed);
        self.class.store(class, Ordering::Relaxed);
    }

    fn lock(&self) -> usize {
        self.lock.load(Ordering::Relaxed)
    }

    fn class(&self) -> u8 {
        self.class.load(Ordering::Relaxed)
    }
}

impl HeldLocks {
    /// None held.
    pub const fn new() -> Self {
        let entries = [const { Held { lock: AtomicUsize::new(0), class: AtomicU8::new(0) } }; RECORDED];
        Self { count: AtomicUsize::new(0), entries }
    }

    /// Number of locks held.
    pub fn count(&self) -> usize {
        // Relaxed everywhere in this module: the own CPU sees its own stores, a report needs no more.
        self.count.load(Ordering::Relaxed)
    }

    /// Address and class of each held lock, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (usize, LockClass)> {
        self.recorded().iter().map(|held| (held.lock(), LockClass::from_index(held.class())))
    }

    /// Whether the lock at address `lock` is held.
    pub fn contains(&self, lock: usize) -> bool {
        self.recorded().iter().any(|held| held.lock() == lock)
    }

    /// This CPU now holds the lock at address `lock`.
    pub(super) fn push(&self, lock: usize, class: LockClass) {
        let count = self.count();
        debug_assert!(count < RECORDED, "too many locks held at once");
        if let Some(free) = self.entries.get(count) {
            free.set(lock, class as u8);
            self.count.store(count + 1, Ordering::Relaxed);
        }
    }

    /// This CPU gives up the lock at address `lock`, the youngest or another. Returns its class.
    pub(super) fn remove(&self, lock: usize) -> LockClass {
        let held = self.recorded();
        let Some(at) = held.iter().rposition(|held| held.lock() == lock) else {
            debug_assert!(false, "gives up a lock that this CPU does not hold");
            return LockClass::Other;
        };
        let class = LockClass::from_index(held[at].class());
        for younger in at + 1..held.len() {
            held[younger - 1].set(held[younger].lock(), held[younger].class());
        }
        self.count.store(held.len() - 1, Ordering::Relaxed);
        class
    }

    fn recorded(&self) -> &[Held] {
        self.entries.get(..self.count()).unwrap_or(&self.entries)
    }
}

impl Default for HeldLocks {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::HeldLocks;
    use crate::sync::LockClass::{Pmd, Pte, Zone};

    #[test]
    fn locks_may_be_given_up_in_any_order() {
        let held = HeldLocks::new();
        held.push(0x100, Pmd);
        held.push(0x200, Pte);
        held.push(0x300, Zone);
        assert_eq!(held.remove(0x200), Pte);
        assert!(held.iter().eq([(0x100, Pmd), (0x300, Zone)]));
        assert!(held.contains(0x300) && !held.contains(0x200));
        assert_eq!(held.remove(0x300), Zone);
        assert_eq!(held.remove(0x100), Pmd);
        assert_eq!(held.count(), 0);
    }
}
