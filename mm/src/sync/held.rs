//! The locks a CPU holds, for the lock-order checker, the panic report, leak checks, and "no lock is held here"; and, in a
//! record of their own, the `mmap_lock`s a thread holds, for it may sleep with them.
//!
//! Rule: written by its own CPU or thread alone; others read it when they report, and may see a list that is just changing.

use super::LockClass;
use super::atomic::Ordering;
use super::atomic::plain::{AtomicPtr, AtomicU8, AtomicUsize};
use core::fmt;
use core::panic::Location;
use core::ptr;

/// Locks whose address is kept. The deepest nesting of the lock order (spec 2.2) is below, far below but in models, whose stacks
/// are small.
const RECORDED: usize = if cfg!(loom) { 6 } else { 16 };

/// The locks one CPU or thread holds, in the order it took them; on lines no other CPU writes.
#[repr(align(64))]
pub struct HeldLocks {
    count: AtomicUsize,
    entries: [Slot; RECORDED],
}

struct Slot {
    lock: AtomicUsize,
    class: AtomicU8,
    /// Null unless the build keeps it.
    place: AtomicPtr<Location<'static>>,
}

/// A lock that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its address.
    pub lock: usize,
    /// What it protects.
    pub class: LockClass,
    /// Where it was taken, in builds that keep it.
    pub place: Option<&'static Location<'static>>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {:#x}", self.class.description(), self.class.name(), self.lock)?;
        match self.place {
            Some(place) => write!(f, ", taken at {place})"),
            None => f.write_str(")"),
        }
    }
}

impl Slot {
    const fn empty() -> Self {
        Self { lock: AtomicUsize::new(0), class: AtomicU8::new(0), place: AtomicPtr::new(ptr::null_mut()) }
    }

    fn set(&self, lock: usize, class: u8, place: *mut Location<'static>) {
        self.lock.store(lock, Ordering::Relaxed);
        self.class.store(class, Ordering::Relaxed);
        self.place.store(place, Ordering::Relaxed);
    }

    fn copy(&self, from: &Self) {
        self.set(from.lock(), from.class.load(Ordering::Relaxed), from.place.load(Ordering::Relaxed));
    }

    fn lock(&self) -> usize {
        self.lock.load(Ordering::Relaxed)
    }

    fn class(&self) -> LockClass {
        LockClass::from_index(self.class.load(Ordering::Relaxed))
    }

    #[allow(unsafe_code)]
    fn held(&self) -> Held {
        // SAFETY: null, or stored by `note_place` from a reference that lives for ever.
        let place = unsafe { self.place.load(Ordering::Relaxed).as_ref() };
        Held { lock: self.lock(), class: self.class(), place }
    }
}

impl HeldLocks {
    /// None held.
    pub const fn new() -> Self {
        Self { count: AtomicUsize::new(0), entries: [const { Slot::empty() }; RECORDED] }
    }

    /// Number of locks held.
    pub fn count(&self) -> usize {
        // Relaxed everywhere in this module: the own CPU sees its own stores, a report needs no more.
        self.count.load(Ordering::Relaxed)
    }

    /// Each held lock, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Held> {
        self.recorded().iter().map(Slot::held)
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
            free.set(lock, class as u8, ptr::null_mut());
            self.count.store(count + 1, Ordering::Relaxed);
        }
    }

    /// The lock taken last was taken at `place`.
    pub(super) fn note_place(&self, place: &'static Location<'static>) {
        if let Some(last) = self.recorded().last() {
            last.place.store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
        }
    }

    /// This CPU gives up the lock at address `lock`, the youngest or another. Returns its class.
    pub(super) fn remove(&self, lock: usize) -> LockClass {
        let held = self.recorded();
        let Some(at) = held.iter().rposition(|held| held.lock() == lock) else {
            debug_assert!(false, "gives up a lock that this CPU does not hold");
            return LockClass::Other;
        };
        let class = held[at].class();
        for younger in at + 1..held.len() {
            held[younger - 1].copy(&held[younger]);
        }
        self.count.store(held.len() - 1, Ordering::Relaxed);
        class
    }

    fn recorded(&self) -> &[Slot] {
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
    use core::panic::Location;

    #[test]
    fn locks_may_be_given_up_in_any_order() {
        let held = HeldLocks::new();
        let place = Location::caller();
        held.push(0x100, Pmd);
        held.push(0x200, Pte);
        held.push(0x300, Zone);
        held.note_place(place);
        assert_eq!(held.remove(0x200), Pte);
        assert!(held.iter().map(|held| (held.lock, held.class)).eq([(0x100, Pmd), (0x300, Zone)]));
        assert!(held.iter().map(|held| held.place).eq([None, Some(place)]));
        assert!(held.contains(0x300) && !held.contains(0x200));
        assert_eq!(held.remove(0x300), Zone);
        assert_eq!(held.remove(0x100), Pmd);
        assert_eq!(held.count(), 0);
    }
}
