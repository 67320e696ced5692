//! Bytes and words to and from I/O ports.

use core::arch::asm;

/// Writes a byte to `port`.
///
/// # Safety
/// The device behind `port` must not break memory safety when it receives `value`.
pub unsafe fn write_u8(port: u16, value: u8) {
    // SAFETY: the caller vouches for the device's reaction; the instruction touches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads a byte from `port`.
///
/// # Safety
/// The device behind `port` must not break memory safety when it is read.
#[must_use]
pub unsafe fn read_u8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the caller vouches for the device's reaction; the instruction touches no memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes a word to `port`.
///
/// # Safety
/// The device behind `port` must not break memory safety when it receives `value`.
pub unsafe fn write_u16(port: u16, value: u16) {
    // SAFETY: the caller vouches for the device's reaction; the instruction touches no memory.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) }
}
