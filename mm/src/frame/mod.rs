//! Frames.

/// Frames.
pub struct CpuFrames;

impl CpuFrames {
    /// New.
    pub fn new() -> Self {
        Self
    }
}

/// Injection.
pub struct Injection;

impl Injection {
    /// New.
    pub fn new() -> Self {
        Self
    }
}
