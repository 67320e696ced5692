//! The ticket lock.
#![allow(unsafe_code)]

use super::{LockClass, RawLock};
use crate::machine::Machine;
use crate::sync::atomic::{AtomicU32, Ordering};

/// The ticket lock.
pub struct TicketLock(AtomicU32);

impl RawLock for TicketLock {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }
    fn lock<M: Machine>(&self, machine: M, class: LockClass) {
        while !self.try_lock(machine, class) {
            machine.pause();
        }
    }
    fn try_lock<M: Machine>(&self, _machine: M, _class: LockClass) -> bool {
        self.0.swap(1, Ordering::Acquire) == 0
    }
    unsafe fn unlock<M: Machine>(&self, _machine: M) {
        self.0.store(0, Ordering::Release);
    }
    fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }
    fn is_contended(&self) -> bool {
        false
    }
}
