//! A value behind one of `mm`'s locks, for `mm`'s own structures. Page tables use the bare lock in their descriptor.

use super::{LockClass, Nesting, RawLock, order};
use crate::machine::Machine;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// A `T` that only the holder of the lock reaches.
pub struct SpinLock<T, L: RawLock> {
    lock: L,
    value: UnsafeCell<T>,
}

// SAFETY: the lock lets one CPU at a time reach the value, which thus moves between CPUs: `T: Send`. No two CPUs share
// it, so `T: Sync` is not needed.
unsafe impl<T: Send, L: RawLock> Sync for SpinLock<T, L> {}

impl<T, L: RawLock> SpinLock<T, L> {
    /// A free lock around `value`.
    pub fn new(value: T) -> Self {
        Self { lock: L::new(), value: UnsafeCell::new(value) }
    }

    /// Takes the lock. With interrupts on (I24), and by the order of [`super::order`].
    #[track_caller]
    pub fn lock<M: Machine>(&self, machine: M, class: LockClass) -> SpinGuard<'_, T, L, M> {
        self.lock_nested(machine, class, Nesting::Plain)
    }

    /// As [`lock`](Self::lock), under another lock of the class for the reason given.
    #[track_caller]
    pub fn lock_nested<M: Machine>(&self, machine: M, class: LockClass, nesting: Nesting) -> SpinGuard<'_, T, L, M> {
        order::take(machine, &self.lock, class, nesting);
        SpinGuard { lock: self, machine, not_send: PhantomData }
    }

    /// Takes the lock if it is free now, whatever is held.
    #[track_caller]
    pub fn try_lock<M: Machine>(&self, machine: M, class: LockClass) -> Option<SpinGuard<'_, T, L, M>> {
        let taken = order::try_take(machine, &self.lock, class);
        taken.then(|| SpinGuard { lock: self, machine, not_send: PhantomData })
    }

    /// The bare lock, to ask whether it is held or contended.
    pub fn raw(&self) -> &L {
        &self.lock
    }
}

/// The held lock; dropping it gives the lock up, on the CPU that took it.
#[must_use = "dropping the guard gives the lock up"]
pub struct SpinGuard<'a, T, L: RawLock, M: Machine> {
    lock: &'a SpinLock<T, L>,
    machine: M,
    /// A lock is given up by the CPU that took it.
    not_send: PhantomData<*mut ()>,
}

impl<T, L: RawLock, M: Machine> Deref for SpinGuard<'_, T, L, M> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so its CPU holds the lock, and `&self` excludes the `&mut` of `deref_mut`.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, L: RawLock, M: Machine> DerefMut for SpinGuard<'_, T, L, M> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard exists, so its CPU holds the lock, and `&mut self` excludes every other reference.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, L: RawLock, M: Machine> Drop for SpinGuard<'_, T, L, M> {
    fn drop(&mut self) {
        // SAFETY: the guard was made when this CPU took the lock, cannot leave the CPU, and is dropped once.
        unsafe { self.lock.lock.unlock(self.machine) }
    }
}
