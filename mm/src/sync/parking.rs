//! Parking.

/// Parking.
pub struct ParkingSlot;

impl ParkingSlot {
    /// New.
    pub fn new() -> Self {
        Self
    }
}
