//! A value that only the holder of a lock can reach.

use super::{LockClass, RawLock};
use crate::machine::Machine;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// A value of `T` under a lock of algorithm `L`.
pub struct SpinLock<T, L: RawLock> {
    raw: L,
    value: UnsafeCell<T>,
}

#[allow(unsafe_code)]
// SAFETY: the value is reached through the guard alone, so by one CPU at a time; sharing the lock moves it at most.
unsafe impl<T: Send, L: RawLock> Sync for SpinLock<T, L> {}

impl<T, L: RawLock> SpinLock<T, L> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        Self { raw: L::new(), value: UnsafeCell::new(value) }
    }

    /// Takes the lock, waiting by the rule of the machine.
    pub fn lock<M: Machine<Lock = L>>(&self, machine: M, class: LockClass) -> SpinGuard<'_, T, L, M> {
        self.raw.lock(machine, class);
        SpinGuard { lock: self, machine }
    }
}

/// A held [`SpinLock`]; dropping it unlocks.
pub struct SpinGuard<'a, T, L: RawLock, M: Machine<Lock = L>> {
    lock: &'a SpinLock<T, L>,
    machine: M,
}

#[allow(unsafe_code)]
impl<T, L: RawLock, M: Machine<Lock = L>> Deref for SpinGuard<'_, T, L, M> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this guard's CPU holds the lock, so nobody writes the value.
        unsafe { &*self.lock.value.get() }
    }
}
#[allow(unsafe_code)]
impl<T, L: RawLock, M: Machine<Lock = L>> DerefMut for SpinGuard<'_, T, L, M> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard's CPU holds the lock, and `&mut self` excludes its other borrows.
        unsafe { &mut *self.lock.value.get() }
    }
}
#[allow(unsafe_code)]
impl<T, L: RawLock, M: Machine<Lock = L>> Drop for SpinGuard<'_, T, L, M> {
    fn drop(&mut self) {
        // SAFETY: a guard is made by taking the lock and dropped once.
        unsafe { self.lock.raw.unlock(self.machine) }
    }
}
