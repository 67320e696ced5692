//! Numbers of rounds and other counts that the threads of a test share.
//!
//! Rule: the kernel has no atomic access wider than a word, its tests included: on 32 bits that would be `cmpxchg8b`, after
//! which the emulator's flags are wrong (`arch/x86/src/32/entry.rs`).

use core::sync::atomic::{AtomicUsize, Ordering};

/// An atomic word that speaks `u64`, as the numbers around it do. Its methods are those of core's atomics.
#[derive(Debug, Default)]
pub struct AtomicCount(AtomicUsize);

impl AtomicCount {
    /// The largest it can be.
    pub const MAX: u64 = usize::MAX as u64;

    /// With this count.
    pub const fn new(count: u64) -> Self {
        Self(AtomicUsize::new(word(count)))
    }

    pub fn load(&self, order: Ordering) -> u64 {
        self.0.load(order) as u64
    }

    pub fn store(&self, count: u64, order: Ordering) {
        self.0.store(word(count), order);
    }

    pub fn swap(&self, count: u64, order: Ordering) -> u64 {
        self.0.swap(word(count), order) as u64
    }

    pub fn fetch_add(&self, count: u64, order: Ordering) -> u64 {
        self.0.fetch_add(word(count), order) as u64
    }

    pub fn fetch_sub(&self, count: u64, order: Ordering) -> u64 {
        self.0.fetch_sub(word(count), order) as u64
    }

    pub fn into_inner(self) -> u64 {
        self.0.into_inner() as u64
    }
}

/// # Panics
/// If it does not fit.
const fn word(count: u64) -> usize {
    let word = count as usize;
    assert!(word as u64 == count, "a count that no word holds");
    word
}
