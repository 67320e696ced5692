//! Counters.

/// Counters.
pub struct CpuStats;

impl CpuStats {
    /// New.
    pub fn new() -> Self {
        Self
    }
}
