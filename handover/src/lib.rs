//! What firmware, boot loader and command line hand the kernel.
//!
//! All of it comes from outside, so no byte is believed before it is checked, and whatever the bytes are, the answer is a value or
//! an error. Memory is read through a function the caller gives; nothing here touches the machine, so all of it runs on the
//! host too, in tests and under a fuzzer (`fuzz/`).

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod cmdline;
pub mod fw_cfg;
pub mod memory_map;
pub mod pvh;

/// Gives the bytes at a physical address, or `None` where they cannot be read.
pub type ReadMemory<'a> = &'a dyn Fn(u64, usize) -> Option<&'a [u8]>;

/// Little-endian number at `offset`, which the caller has checked to lie inside.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(number)
}

/// As [`u32_at`].
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
