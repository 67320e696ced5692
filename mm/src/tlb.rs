//! TLB.

/// TLB.
pub struct TlbCpu;

impl TlbCpu {
    /// New.
    pub fn new() -> Self {
        Self
    }
}
