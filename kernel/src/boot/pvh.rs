//! PVH: QEMU's `-kernel` finds the entry point in an ELF note and calls it in 32-bit protected mode.
//!
//! The protocol is Xen's x86/HVM direct boot ABI (`docs/misc/pvh.pandoc` and `start_info.h` of the Xen sources):
//! flat segments, paging off, interrupts off, the physical address of `hvm_start_info` in `EBX`.

use core::arch::global_asm;
use core::slice;

use arch_x86::layout::IMAGE;

use crate::exit::{self, ExitCode};
use crate::serial;

use super::memory_map::{MemoryMap, RegionKind};
use super::{BootError, BootKind, Handoff, HandoffError, start};

/// Where the kernel image is linked, less its physical address; `KERNEL_BASE` of `link.ld`.
const KERNEL_BASE: usize = IMAGE.start;

/// Type of the note that holds the entry point: `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// Bytes of the stack used until the kernel has one of its own.
const STACK: usize = 32 << 10;

#[cfg_attr(target_arch = "x86", path = "pvh/stub32.rs")]
#[cfg_attr(target_arch = "x86_64", path = "pvh/stub64.rs")]
mod stub;

// Where the stub goes with a line at ESI, ECX bytes long: onto the serial port with it, and the status "boot failed" to QEMU's
// exit device. That is all that can be done there.
global_asm!(
    r#"
    .section .text.pvh_give_up, "ax"
    .code32
    .global pvh_give_up
pvh_give_up:
    movw ${serial}, %dx
    rep outsb
    movl ${failed}, %eax
    movw ${exit}, %dx
    outl %eax, %dx
2:  hlt
    jmp 2b
    .if {long_mode}
    .code64
    .endif
    "#,
    serial = const serial::COM1,
    exit = const exit::PORT,
    failed = const ExitCode::BootFailed as u32,
    long_mode = const cfg!(target_arch = "x86_64") as u32,
    options(att_syntax)
);

/// First word of `hvm_start_info`.
const MAGIC: u32 = 0x336e_c578;

/// More entries than any firmware names.
const MAX_ENTRIES: u32 = 1024;

/// `hvm_start_info`, up to the fields of version 1.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    cmdline: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `hvm_memmap_table_entry`; the type is the one of the BIOS's E820 call.
#[repr(C)]
struct MemoryMapEntry {
    start: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// Called by the stub with the physical address of `hvm_start_info`.
extern "C" fn pvh_main(start_info: usize) -> ! {
    start(|| read(start_info as u64))
}

fn read(start_info: u64) -> Result<Handoff, BootError> {
    // SAFETY: `StartInfo` is plain numbers.
    let info = unsafe { at::<StartInfo>(start_info, 1) }?;
    let info = info.first().filter(|info| info.magic == MAGIC).ok_or(HandoffError::WrongMagic)?;
    if info.version < 1 || info.memory_map == 0 {
        return Err(HandoffError::NoMemoryMap.into());
    }
    if info.memory_map_entries > MAX_ENTRIES {
        return Err(HandoffError::MemoryMapLength(info.memory_map_entries).into());
    }
    // SAFETY: `MemoryMapEntry` is plain numbers.
    let entries = unsafe { at::<MemoryMapEntry>(info.memory_map, info.memory_map_entries as usize) }?;
    let regions = entries.iter().map(|entry| {
        let kind = match entry.kind {
            1 => RegionKind::Usable,
            3 | 4 => RegionKind::Firmware,
            _ => RegionKind::Reserved,
        };
        (entry.start, entry.bytes, kind)
    });
    Ok(Handoff {
        kind: BootKind::Pvh,
        memory: MemoryMap::new(regions)?,
        rsdp: (info.rsdp != 0).then_some(info.rsdp),
        access: 0,
        reach: stub::REACH,
    })
}

/// `count` values of `T` at a physical address.
///
/// # Safety
/// Every bit pattern must be a `T`.
unsafe fn at<T>(address: u64, count: usize) -> Result<&'static [T], HandoffError> {
    let bytes = (count * size_of::<T>()) as u64;
    let inside = address != 0 && address.checked_add(bytes).is_some_and(|end| end <= stub::REACH);
    if !inside || !address.is_multiple_of(align_of::<T>() as u64) {
        return Err(HandoffError::StrayPointer(address));
    }
    // SAFETY: aligned, not null, mapped at its own address by the stub, and changed by nobody during boot; the caller
    // vouches for `T`.
    Ok(unsafe { slice::from_raw_parts(address as *const T, count) })
}
