//! Lock storage.

/// Lock storage.
pub struct PtlStorage;

impl PtlStorage {
    /// New.
    pub fn new() -> Self {
        Self
    }
}
