//! A number that tells whether a lock excludes.

use loom::cell::UnsafeCell;

/// A number without any protection; loom fails the model if two accesses overlap or are unordered.
pub struct Watched(UnsafeCell<u32>);

// SAFETY: loom fails the model where this is wrong.
unsafe impl Sync for Watched {}

impl Watched {
    /// Zero.
    pub fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// Writes.
    pub fn add(&self) {
        // SAFETY: loom fails the model if this overlaps another access.
        self.0.with_mut(|number| unsafe { *number += 1 });
    }

    /// Reads.
    pub fn get(&self) -> u32 {
        // SAFETY: as above.
        self.0.with(|number| unsafe { *number })
    }
}
