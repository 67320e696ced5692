//! The instructions that access the user half. Rule: each stands in the exception table.
//!
//! All functions ask for an open user half and an address in it; to copy, one side is a kernel object of the same length.

use core::arch::asm;

use crate::user_access::{AccessFault, guarded};

/// Reads eight bytes.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn read(address: usize) -> Result<u64, AccessFault> {
    let mut value = 0_u64;
    // SAFETY: reads user memory only, which no Rust object lives in; a fault is fixed up.
    unsafe {
        guarded!("mov {value}, [{address}]", value = inout(reg) value, address = in(reg) address, options(nostack))
    }?;
    Ok(value)
}

/// Writes eight bytes.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn write(address: usize, value: u64) -> Result<(), AccessFault> {
    // SAFETY: writes user memory only, which no Rust object lives in; a fault is fixed up.
    unsafe { guarded!("mov [{address}], {value}", value = in(reg) value, address = in(reg) address, options(nostack)) }
}

/// Adds to eight bytes as one atomic step and returns what was there before.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn exchange_add(address: usize, add: u64) -> Result<u64, AccessFault> {
    let mut value = add;
    // SAFETY: as in `write`.
    unsafe {
        guarded!("lock xadd [{address}], {value}", value = inout(reg) value, address = in(reg) address, options(nostack))
    }?;
    Ok(value)
}

/// Copies whole words, then the rest.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> Result<(), AccessFault> {
    const WORD: usize = size_of::<u64>();
    let (mut next_to, mut next_from) = (to, from);
    // SAFETY: the caller vouches for both sides; the direction flag is clear in all Rust code.
    unsafe {
        guarded!(
            "rep movsq",
            inout("rcx") length / WORD => _,
            inout("rdi") next_to,
            inout("rsi") next_from,
            options(nostack),
        )?;
        guarded!(
            "rep movsb",
            inout("rcx") length % WORD => _,
            inout("rdi") next_to => _,
            inout("rsi") next_from => _,
            options(nostack),
        )
    }
}
