//! RCU.

/// RCU.
pub struct RcuCpu;

impl RcuCpu {
    /// New.
    pub fn new() -> Self {
        Self
    }
}
