//! The debug form of a lock (spec 12.4): any [`RawLock`], and beside it who has it, since when and from where.
//!
//! Rules checked at each use, before anybody waits: the lock is alive (its magic is right; a destroyed lock's is not, so a
//! stale user is caught, R5); a CPU does not take a lock it has (I23), nor any lock with interrupts off (I24); only the
//! owner unlocks, and only what is locked; a lock is free when its memory goes to another use (I12). What depends on the
//! *other* locks a CPU holds is checked in [`super::order`].
//!
//! The fields beside the lock are written by its owner. Others read them to report, and may see two owners mixed, except
//! for this: a CPU that reads its own number as the owner's is the owner.

use super::atomic::Ordering;
use super::atomic::plain::{AtomicPtr, AtomicU8, AtomicU32, Solo64};
use super::order::{address, broken};
use super::word::can_hear;
use super::{LockClass, RawLock};
use crate::machine::Machine;
use core::fmt;
use core::panic::Location;
use core::ptr;

/// Of a lock that may be used.
const ALIVE: u32 = 0xdead_4ead;
/// Of one that has been destroyed.
const DESTROYED: u32 = 0xdead_dead;

/// `L`, watched.
// The inner lock comes first: the two have one address, by which waiters and holders are found.
#[repr(C)]
pub struct DebugLock<L: RawLock> {
    raw: L,
    magic: AtomicU32,
    /// The owner's number and one; 0 while nobody has the lock.
    owner: AtomicU32,
    class: AtomicU8,
    /// Where it was last taken.
    place: AtomicPtr<Location<'static>>,
    acquired: Solo64,
    waited: Solo64,
    longest_wait: Solo64,
    /// By [`Machine::now`].
    taken_at: Solo64,
    longest_hold: Solo64,
}

impl<L: RawLock> DebugLock<L> {
    /// Fails unless this CPU may try to take the lock here.
    fn check_attempt<M: Machine>(&self, machine: M, class: LockClass, place: &Location<'_>) {
        let act = Act { cpu: machine.cpu().0, what: "takes", class, place };
        self.check_magic(&act);
        if !can_hear(machine) {
            self.report(&act, "with interrupts off: a shootdown would wait for this CPU for ever (I24)");
        }
    }

    fn check_magic(&self, act: &Act<'_>) {
        match self.magic.load(Ordering::Relaxed) {
            ALIVE => {}
            DESTROYED => self.report(act, "after it was destroyed (bad magic, R5)"),
            _ => self.report(act, "but there is no lock (bad magic)"),
        }
    }

    /// This CPU has the lock, after waiting for `waited` nanoseconds if it had to.
    fn note_owner<M: Machine>(
        &self,
        machine: M,
        class: LockClass,
        place: &'static Location<'static>,
        waited: Option<u64>,
    ) {
        self.owner.store(machine.cpu().0 + 1, Ordering::Relaxed);
        self.class.store(class as u8, Ordering::Relaxed);
        self.place.store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
        self.taken_at.set(machine.now());
        add(&self.acquired, 1);
        if let Some(nanoseconds) = waited {
            add(&self.waited, 1);
            raise(&self.longest_wait, nanoseconds);
        }
    }

    #[cold]
    fn report(&self, act: &Act<'_>, rule: &str) -> ! {
        let Act { cpu, what, class, place } = act;
        let (description, name, lock) = (class.description(), class.name(), address(self));
        let act = format_args!("cpu {cpu} {what} {description} ({name} {lock:#x}) at {place} {rule}");
        // What lies where a lock was may be anything.
        if self.magic.load(Ordering::Relaxed) != ALIVE {
            broken(act);
        }
        broken(format_args!("{act}; {self}"))
    }

    fn class(&self) -> LockClass {
        LockClass::from_index(self.class.load(Ordering::Relaxed))
    }
}

/// Who does what where to a lock.
struct Act<'a> {
    cpu: u32,
    what: &'static str,
    class: LockClass,
    place: &'a Location<'a>,
}

/// Owner, place, and what it has seen so far.
impl<L: RawLock> fmt::Display for DebugLock<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner.load(Ordering::Relaxed) {
            0 => f.write_str("nobody has it")?,
            owner => write!(f, "cpu {} has it", owner - 1)?,
        }
        // SAFETY: null, or stored by `note_owner` from a reference that lives for ever.
        if let Some(place) = unsafe { self.place.load(Ordering::Relaxed).as_ref() } {
            write!(f, ", last taken at {place} as {}", self.class().name())?;
        }
        write!(f, "; taken {} times, {} waits", self.acquired.get(), self.waited.get())?;
        write!(f, " of up to {} ns, held for up to {} ns", self.longest_wait.get(), self.longest_hold.get())
    }
}

/// Of a number only the lock's owner writes.
fn add(number: &Solo64, more: u64) {
    number.set(number.get() + more);
}

/// Of a number only the lock's owner writes.
fn raise(number: &Solo64, to: u64) {
    number.set(number.get().max(to));
}

impl<L: RawLock> RawLock for DebugLock<L> {
    fn new() -> Self {
        Self {
            raw: L::new(),
            magic: AtomicU32::new(ALIVE),
            owner: AtomicU32::new(0),
            class: AtomicU8::new(LockClass::Other as u8),
            place: AtomicPtr::new(ptr::null_mut()),
            acquired: Solo64::new(0),
            waited: Solo64::new(0),
            longest_wait: Solo64::new(0),
            taken_at: Solo64::new(0),
            longest_hold: Solo64::new(0),
        }
    }

    fn lock<M: Machine>(&self, machine: M, class: LockClass) {
        let place = Location::caller();
        self.check_attempt(machine, class, place);
        let cpu = machine.cpu().0;
        // Relaxed: only this CPU writes its own number here.
        if self.owner.load(Ordering::Relaxed) == cpu + 1 {
            self.report(&Act { cpu, what: "takes", class, place }, "a second time (I23)");
        }
        let since = machine.now();
        let at_once = self.raw.try_lock(machine, class);
        if !at_once {
            self.raw.lock(machine, class);
        }
        let waited = (!at_once).then(|| machine.now().saturating_sub(since));
        self.note_owner(machine, class, place, waited);
    }

    fn try_lock<M: Machine>(&self, machine: M, class: LockClass) -> bool {
        let place = Location::caller();
        self.check_attempt(machine, class, place);
        let taken = self.raw.try_lock(machine, class);
        if taken {
            self.note_owner(machine, class, place, None);
        }
        taken
    }

    unsafe fn unlock<M: Machine>(&self, machine: M) {
        let cpu = machine.cpu().0;
        let act = Act { cpu, what: "unlocks", class: self.class(), place: Location::caller() };
        self.check_magic(&act);
        match self.owner.load(Ordering::Relaxed) {
            0 => self.report(&act, "which nobody has locked"),
            owner if owner == cpu + 1 => {}
            _ => self.report(&act, "which another CPU has locked"),
        }
        raise(&self.longest_hold, machine.now().saturating_sub(self.taken_at.get()));
        self.owner.store(0, Ordering::Relaxed);
        // The last access: the lock may be gone as soon as it is free (I46).
        // SAFETY: this CPU owns the lock, as its owner field says.
        unsafe { self.raw.unlock(machine) }
    }

    fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    fn is_contended(&self) -> bool {
        self.raw.is_contended()
    }
}

/// The lock's memory goes to another use: freed with its table, or written over by a new lock.
impl<L: RawLock> Drop for DebugLock<L> {
    fn drop(&mut self) {
        if crate::is_unwinding() {
            return;
        }
        let (name, lock) = (self.class().name(), address(self));
        match self.magic.load(Ordering::Relaxed) {
            ALIVE => {}
            DESTROYED => broken(format_args!("lock {lock:#x} is destroyed twice (bad magic, I4)")),
            _ => broken(format_args!("lock {lock:#x} is destroyed but there is no lock (bad magic)")),
        }
        if self.raw.is_locked() {
            broken(format_args!("lock {lock:#x} ({name}) is freed or re-initialised while it is held (I12); {self}"));
        }
        self.magic.store(DESTROYED, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
