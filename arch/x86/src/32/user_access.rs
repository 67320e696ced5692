//! The instructions that access the user half. Rule: each stands in the exception table.
//!
//! All functions ask for an open user half and an address in it; to copy, one side is a kernel object of the same length.
//! Eight bytes are changed at once, by the one instruction that can. It reads before it writes and writes even where it only
//! compares, so it serves neither to read them nor to store them: what touches a page shall fault as what it is.

use core::arch::asm;

use crate::user_access::{AccessFault, guarded};

/// Reads eight bytes: the lower four twice, until a store in between would have been noticed. Only a word whose lower half
/// changes and changes back meanwhile is read as a mixture.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn read(address: usize) -> Result<u64, AccessFault> {
    // SAFETY: the caller vouches for the address.
    let mut low = unsafe { read_word(address) }?;
    loop {
        // SAFETY: as above.
        let (high, again) = unsafe { (read_word(address + 4)?, read_word(address)?) };
        if again == low {
            return Ok(u64::from(high) << 32 | u64::from(low));
        }
        low = again;
    }
}

/// Reads four bytes.
///
/// # Safety
/// See the module.
unsafe fn read_word(address: usize) -> Result<u32, AccessFault> {
    let mut value = 0_u32;
    // SAFETY: reads user memory only, which no Rust object lives in; a fault is fixed up.
    unsafe {
        guarded!("mov {value}, [{address}]", value = inout(reg) value, address = in(reg) address, options(nostack))
    }?;
    Ok(value)
}

/// Writes eight bytes, the lower four first. Who reads meanwhile may find one half of each value, and if it fails, one half may
/// have been written.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn write(address: usize, value: u64) -> Result<(), AccessFault> {
    // SAFETY: the caller vouches for the address.
    unsafe {
        write_word(address, value as u32)?;
        write_word(address + 4, (value >> 32) as u32)
    }
}

/// Writes four bytes.
///
/// # Safety
/// See the module.
unsafe fn write_word(address: usize, value: u32) -> Result<(), AccessFault> {
    // SAFETY: writes user memory only, which no Rust object lives in; a fault is fixed up.
    unsafe { guarded!("mov [{address}], {value}", value = in(reg) value, address = in(reg) address, options(nostack)) }
}

/// Adds to eight bytes as one atomic step and returns what was there before.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn exchange_add(address: usize, add: u64) -> Result<u64, AccessFault> {
    let mut expected = 0_u64;
    loop {
        // SAFETY: the caller vouches for the address.
        let found = unsafe { compare_exchange(address, expected, expected.wrapping_add(add)) }?;
        if found == expected {
            return Ok(found);
        }
        expected = found;
    }
}

/// Stores `new` if `expected` is there, and returns what was there.
///
/// # Safety
/// See the module.
unsafe fn compare_exchange(address: usize, expected: u64, new: u64) -> Result<u64, AccessFault> {
    let (mut low, mut high) = (expected as u32, (expected >> 32) as u32);
    // SAFETY: reads and writes user memory only, which no Rust object lives in; a fault is fixed up. The jump goes to the next
    // instruction: the emulator's flags would be wrong without it (`entry.rs`).
    unsafe {
        guarded!(
            before "jmp 2f",
            "lock cmpxchg8b [{address}]",
            after "",
            address = in(reg) address,
            inout("eax") low,
            inout("edx") high,
            in("ebx") new as u32,
            in("ecx") (new >> 32) as u32,
            options(nostack),
        )
    }?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// Copies whole words, then the rest.
///
/// # Safety
/// See the module.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> Result<(), AccessFault> {
    const WORD: usize = size_of::<u32>();
    let (mut next_to, mut next_from) = (to, from);
    // SAFETY: the caller vouches for both sides; the direction flag is clear in all Rust code. ESI cannot be an operand, since the
    // compiler may address the stack by it, so it is exchanged with one, and back in any case.
    unsafe {
        guarded!(
            before "xchg esi, {from}",
            "rep movsd",
            after "xchg esi, {from}",
            from = inout(reg) next_from,
            inout("ecx") length / WORD => _,
            inout("edi") next_to,
            options(nostack),
        )?;
        guarded!(
            before "xchg esi, {from}",
            "rep movsb",
            after "xchg esi, {from}",
            from = inout(reg) next_from => _,
            inout("ecx") length % WORD => _,
            inout("edi") next_to => _,
            options(nostack),
        )
    }
}
