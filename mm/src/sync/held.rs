//! Held locks.

/// Held locks.
pub struct HeldLocks;

impl HeldLocks {
    /// New.
    pub fn new() -> Self {
        Self
    }
}
