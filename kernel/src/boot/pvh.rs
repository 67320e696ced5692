//! PVH: QEMU's `-kernel` finds the entry point in an ELF note and calls it in 32-bit protected mode.
//!
//! The protocol is Xen's x86/HVM direct boot ABI (`docs/misc/pvh.pandoc` and `start_info.h` of the Xen sources):
//! flat segments, paging off, interrupts off, the physical address of `hvm_start_info` in `EBX`.

use core::arch::global_asm;

use arch_x86::cpu;
use arch_x86::layout::IMAGE;
use handover::memory_map::MemoryMap;
use handover::pvh;

use crate::exit::{self, ExitCode};
use crate::serial;

use super::{BootError, BootKind, Handoff, mapped, start};

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

/// Called by the stub with the physical address of `hvm_start_info`.
extern "C" fn pvh_main(start_info: usize) -> ! {
    start(|| read(start_info as u64))
}

fn read(start_info: u64) -> Result<Handoff, BootError> {
    let memory = |address: u64, bytes: usize| -> Option<&[u8]> {
        let bytes_at = mapped(0, stub::REACH, address, bytes)?;
        // SAFETY: the stub maps everything below `REACH` at its own address, and nobody changes it during boot.
        Some(unsafe { bytes_at.as_ref() })
    };
    let info = pvh::read(start_info, &memory)?;
    Ok(Handoff {
        kind: BootKind::Pvh,
        memory: MemoryMap::new(info.regions, cpu::physical_end())?,
        rsdp: info.rsdp,
        access: 0,
        reach: stub::REACH,
    })
}
