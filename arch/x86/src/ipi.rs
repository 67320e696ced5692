//! Interrupt vectors of this kernel and sending them between CPUs.
//!
//! Vectors below 0x20 are the CPU's exceptions; 0x20 to 0x2f catch what the masked legacy controllers may still
//! raise; those named here come from local APICs. A higher vector's upper half is a higher priority.

use mm::cpu::CpuId;

use crate::apic::{self, Message, NotDelivered};
use crate::percpu;

/// Interrupts that a local APIC raises, at another CPU's bidding or by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Vector {
    /// This CPU's timer.
    Timer = 0xe0,
    /// Ends a halt; means nothing else.
    Kick = 0xf0,
    /// Run the function that lies ready.
    Call = 0xf1,
    /// Flush translations.
    Flush = 0xf2,
    /// The local APIC met an error.
    Error = 0xfe,
    /// An interrupt went away while it was being delivered; not to be acknowledged.
    Spurious = 0xff,
}

impl Vector {
    /// The vector with this number, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Timer, Self::Kick, Self::Call, Self::Flush, Self::Error, Self::Spurious]
            .into_iter()
            .find(|vector| *vector as u64 == number)
    }
}

/// First vector of the legacy interrupt controllers, which [`mask_legacy_controllers`] leaves without work.
pub const LEGACY_FIRST: u8 = 0x20;
/// Number of vectors of the legacy interrupt controllers.
pub const LEGACY_COUNT: u8 = 16;

/// Raises `vector` on CPU `cpu`.
///
/// # Errors
/// See [`apic::send`].
pub fn send(cpu: CpuId, vector: Vector) -> Result<(), NotDelivered> {
    // SAFETY: every `Vector` has a handler, and an interrupt leaves the target's work intact.
    unsafe { apic::send(percpu::area(cpu).apic_id(), Message::Interrupt(vector as u8)) }
}

/// Raises a non-maskable interrupt on CPU `cpu`.
///
/// # Errors
/// See [`apic::send`].
pub fn send_non_maskable(cpu: CpuId) -> Result<(), NotDelivered> {
    // SAFETY: the non-maskable interrupt has a handler with a stack of its own.
    unsafe { apic::send(percpu::area(cpu).apic_id(), Message::NonMaskable) }
}

/// Moves the two legacy 8259 controllers to [`LEGACY_FIRST`] and masks all their lines, so that a spurious interrupt
/// of theirs is not taken for an exception.
pub fn mask_legacy_controllers() {
    use crate::io_port::write_u8;
    const COMMAND: [u16; 2] = [0x20, 0xa0];
    const DATA: [u16; 2] = [0x21, 0xa1];
    const INITIALISE: u8 = 0x11;
    const MODE_8086: u8 = 0x01;
    const WIRING: [u8; 2] = [1 << 2, 2];
    for controller in 0..2 {
        // SAFETY: these ports are the 8259 controllers on every PC that has them, and nothing elsewhere; masked
        // controllers raise nothing.
        unsafe {
            write_u8(COMMAND[controller], INITIALISE);
            write_u8(DATA[controller], LEGACY_FIRST + 8 * controller as u8);
            write_u8(DATA[controller], WIRING[controller]);
            write_u8(DATA[controller], MODE_8086);
            write_u8(DATA[controller], 0xff);
        }
    }
}
