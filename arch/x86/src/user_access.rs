//! Access to the user half from the kernel, and the table of instructions that may fault.
//!
//! An accessor opens the user half (`stac`), makes one access, closes it again. Its faulting instruction stands in the
//! exception table beside the address to continue at; a page fault that the kernel cannot serve continues there, with
//! the outcome left at "failed". Any other kernel instruction that touches the user half is a bug and is treated so.

use core::arch::asm;

use mm::config::PAGE_SIZE;
use mm::pgtable::PagingMode;

use crate::bits::user_access::{copy, exchange_add, read, write};
use crate::cpu::{self, Features};
use crate::entry::TrapFrame;
use crate::layout::{KERNEL_HALF, Mode};

/// First address above the user half. Its last page stays unused, so that no instruction ends where the half does: with
/// 64 bits the canonical hole follows.
pub const USER_END: usize = <Mode as PagingMode>::USER_END.0 as usize - PAGE_SIZE;

/// An address in the user half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserAddr(usize);

/// An access to the user half did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFault {
    /// Some byte lies outside the user half; nothing was accessed.
    NotUser,
    /// Nothing is mapped there, or not for this kind of access. A copy may have moved some bytes.
    Fault,
}

impl UserAddr {
    /// The address, if it lies in the user half.
    #[must_use]
    pub fn new(address: usize) -> Option<Self> {
        (address < USER_END).then_some(Self(address))
    }

    /// The address as a number.
    #[must_use]
    pub fn get(self) -> usize {
        self.0
    }

    /// Checks that `length` bytes from here lie in the user half.
    fn check(self, length: usize) -> Result<usize, AccessFault> {
        if length <= USER_END - self.0 { Ok(self.0) } else { Err(AccessFault::NotUser) }
    }
}

/// Whether `address` lies in the user half.
#[must_use]
pub fn is_user(address: usize) -> bool {
    address < USER_END
}

/// The user half is open as long as this lives.
struct Open;

impl Open {
    fn new() -> Self {
        if cpu::features().contains(Features::SMAP) {
            // SAFETY: the feature is there; no `nomem`, so that the access stays behind it.
            unsafe { asm!("stac", options(nostack)) }
        }
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if cpu::features().contains(Features::SMAP) {
            // SAFETY: as in `new`.
            unsafe { asm!("clac", options(nostack)) }
        }
    }
}

/// One instruction that may fault; `failed` stays 1 if it does. What stands `after` it is executed in any case.
macro_rules! guarded {
    ($instruction:literal, $($operands:tt)*) => {
        $crate::user_access::guarded!(before "", $instruction, after "", $($operands)*)
    };
    (before $before:literal, $instruction:literal, after $after:literal, $($operands:tt)*) => {{
        let failed: u32;
        asm!(
            $before,
            concat!("2: ", $instruction),
            "xor {failed:e}, {failed:e}",
            "3:",
            $after,
            ".pushsection exception_table, \"aR\", @progbits",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            failed = inout(reg) 1_u32 => failed,
            $($operands)*
        );
        if failed == 0 { Ok(()) } else { Err($crate::user_access::AccessFault::Fault) }
    }};
}
pub(crate) use guarded;

/// Reads eight bytes.
///
/// # Errors
/// See [`AccessFault`].
pub fn read_u64(address: UserAddr) -> Result<u64, AccessFault> {
    let address = address.check(size_of::<u64>())?;
    let _open = Open::new();
    // SAFETY: the address lies in the user half, which is open.
    unsafe { read(address) }
}

/// Writes eight bytes.
///
/// # Errors
/// See [`AccessFault`].
pub fn write_u64(address: UserAddr, value: u64) -> Result<(), AccessFault> {
    let address = address.check(size_of::<u64>())?;
    let _open = Open::new();
    // SAFETY: as in `read_u64`.
    unsafe { write(address, value) }
}

/// Adds to eight bytes as one atomic step and returns what was there before.
///
/// # Errors
/// See [`AccessFault`].
pub fn fetch_add_u64(address: UserAddr, add: u64) -> Result<u64, AccessFault> {
    let address = address.check(size_of::<u64>())?;
    let _open = Open::new();
    // SAFETY: as in `read_u64`.
    unsafe { exchange_add(address, add) }
}

/// Fills `to` from user memory.
///
/// # Errors
/// See [`AccessFault`]; `to` may be filled in part.
pub fn copy_from(to: &mut [u8], from: UserAddr) -> Result<(), AccessFault> {
    let from = from.check(to.len())?;
    let _open = Open::new();
    // SAFETY: writes `to.len()` bytes of `to`, reads user memory only; a fault is fixed up.
    unsafe { copy(to.as_mut_ptr(), from as *const u8, to.len()) }
}

/// Writes `from` to user memory.
///
/// # Errors
/// See [`AccessFault`]; part of `from` may have been written.
pub fn copy_to(to: UserAddr, from: &[u8]) -> Result<(), AccessFault> {
    let to = to.check(from.len())?;
    let _open = Open::new();
    // SAFETY: reads `from.len()` bytes of `from`, writes user memory only; a fault is fixed up.
    unsafe { copy(to as *mut u8, from.as_ptr(), from.len()) }
}

/// Reads a word of kernel memory that may not be mapped; `None` if it is not, or is no kernel address.
#[must_use]
pub fn probe_kernel_word(address: usize) -> Option<usize> {
    if !KERNEL_HALF.contains(address) || !address.is_multiple_of(size_of::<usize>()) {
        return None;
    }
    let mut value = 0_usize;
    // SAFETY: reads one word into a register; a fault is fixed up.
    let outcome = unsafe {
        guarded!(
            "mov {value}, [{address}]",
            value = inout(reg) value,
            address = in(reg) address,
            options(nostack, readonly),
        )
    };
    outcome.ok().map(|()| value)
}

/// One line of the exception table: both numbers are offsets from their own place.
#[repr(C)]
struct ExceptionEntry {
    instruction: i32,
    continuation: i32,
}

unsafe extern "C" {
    #[link_name = "__start_exception_table"]
    static TABLE_START: ExceptionEntry;
    #[link_name = "__stop_exception_table"]
    static TABLE_STOP: ExceptionEntry;
}

/// Where to continue if the interrupted instruction is one that may fault.
#[must_use]
pub fn continuation(frame: &TrapFrame) -> Option<usize> {
    let (start, stop) = (&raw const TABLE_START, &raw const TABLE_STOP);
    let length = (stop.addr() - start.addr()) / size_of::<ExceptionEntry>();
    // SAFETY: the linker puts both symbols around the section, which holds nothing but entries and is never written.
    let table = unsafe { core::slice::from_raw_parts(start, length) };
    let resolve = |offset: &i32| core::ptr::from_ref(offset).addr().wrapping_add_signed(*offset as isize);
    let hit = |entry: &&ExceptionEntry| resolve(&entry.instruction) == frame.instruction();
    table.iter().find(hit).map(|entry| resolve(&entry.continuation))
}
