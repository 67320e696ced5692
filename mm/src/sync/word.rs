//! A lock that is one word, whatever happens on the word: the checks before it is taken, the notes when it is taken and
//! given up. What happens on the word is a [`Protocol`], one per module beside this one.

use super::atomic::{AtomicU32, Ordering};
use super::order::address;
use super::parking::Wait;
use super::{LockClass, RawLock};
use crate::machine::Machine;
use crate::stats::LockCounter;
use core::marker::PhantomData;

/// How CPUs pass a lock on by one word. The word of a free lock nobody waits for is 0.
pub(super) trait Protocol: Send + Sync + 'static {
    /// Takes the lock if it is free, as far as the protocol lets newcomers.
    fn take_if_free(word: &AtomicU32) -> bool;
    /// Waits for the lock and takes it.
    fn wait<M: Machine>(word: &AtomicU32, wait: &mut Wait<'_, M>);
    /// Gives the lock up by one RMW, the last access to the word (I46, R39), then kicks whoever sleeps and is to have it
    /// next. Returns whether anyone was kicked. `lock` is the word's address.
    fn release<M: Machine>(word: &AtomicU32, machine: M, lock: usize) -> bool;
    /// See [`RawLock::is_locked`].
    fn is_locked(word: u32) -> bool;
    /// See [`RawLock::is_contended`].
    fn is_contended(word: u32) -> bool;
}

/// The lock of the protocol `P`.
#[repr(transparent)]
pub struct WordLock<P> {
    pub(super) word: AtomicU32,
    protocol: PhantomData<P>,
}

/// Tells the model checker that the word's memory is somebody else's from here on (R39).
#[cfg(loom)]
impl<P> Drop for WordLock<P> {
    fn drop(&mut self) {
        self.word.with_mut(|_| ());
    }
}

impl<P: Protocol> RawLock for WordLock<P> {
    fn new() -> Self {
        Self { word: AtomicU32::new(0), protocol: PhantomData }
    }

    fn lock<M: Machine>(&self, machine: M, class: LockClass) {
        may_try(machine);
        debug_assert!(!machine.local().held.contains(address(self)), "a lock of mm is taken twice by one CPU");
        if !P::take_if_free(&self.word) {
            wait::<P, M>(&self.word, machine, class);
        }
        taken(machine, address(self), class);
    }

    fn try_lock<M: Machine>(&self, machine: M, class: LockClass) -> bool {
        may_try(machine);
        let free = P::take_if_free(&self.word);
        if free {
            taken(machine, address(self), class);
        }
        free
    }

    unsafe fn unlock<M: Machine>(&self, machine: M) {
        let lock = address(self);
        let class = machine.local().held.remove(lock);
        let kicked = P::release(&self.word, machine, lock);
        // The lock may be gone by now.
        count_kick(machine, class, kicked);
    }

    fn is_locked(&self) -> bool {
        P::is_locked(self.word.load(Ordering::Relaxed))
    }

    fn is_contended(&self) -> bool {
        P::is_contended(self.word.load(Ordering::Relaxed))
    }
}

#[cold]
fn wait<P: Protocol, M: Machine>(word: &AtomicU32, machine: M, class: LockClass) {
    let mut wait = Wait::begin(&machine, address(word), class);
    P::wait(word, &mut wait);
    wait.end();
}

fn may_try<M: Machine>(machine: M) {
    debug_assert!(can_hear(machine), "a lock of mm is taken with interrupts off (I24)");
}

/// This CPU has taken the lock at address `lock`.
fn taken<M: Machine>(machine: M, lock: usize, class: LockClass) {
    let local = machine.local();
    local.held.push(lock, class);
    local.stats.add_lock(class, LockCounter::Acquired, 1);
}

/// Counts a kick, if there was one.
pub(super) fn count_kick<M: Machine>(machine: M, class: LockClass, kicked: bool) {
    if kicked {
        machine.local().stats.add_lock(class, LockCounter::Kicks, 1);
    }
}

/// Whether this CPU answers the others while it waits. Before there are others it need not: the kernel boots so.
pub(super) fn can_hear<M: Machine>(machine: M) -> bool {
    machine.irqs_enabled() || machine.online().without(machine.cpu()).is_empty()
}
