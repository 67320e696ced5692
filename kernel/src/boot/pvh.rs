//! PVH: QEMU's `-kernel` finds the entry point in an ELF note and calls it in 32-bit protected mode.
//!
//! The protocol is Xen's x86/HVM direct boot ABI (`docs/misc/pvh.pandoc` and `start_info.h` of the Xen sources):
//! flat segments, paging off, interrupts off, the physical address of `hvm_start_info` in `EBX`.

use core::arch::global_asm;
use core::slice;

use crate::exit::{self, ExitCode};
use crate::serial;

use super::memory_map::{MemoryMap, RegionKind};
use super::{BootError, BootKind, Handoff, HandoffError, start};

/// Where the kernel image is linked, less its physical address; `KERNEL_BASE` of `link.ld`.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// Type of the note that holds the entry point: `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// Bytes of the stack used until the kernel has one of its own.
const STACK: usize = 32 << 10;

// The tables made here map the first 4 GiB twice: at their own addresses, and the first of them at KERNEL_BASE.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4
    .long 8
    .long {note}
    .asciz "Xen"
    .quad pvh_start - {base}

    .section .bss.pvh, "aw", @nobits
    .balign 4096
pvh_top:      .skip 4096
pvh_pgd:      .skip 4096
pvh_pud_low:  .skip 4096
pvh_pud_high: .skip 4096
pvh_pmd:      .skip 4 * 4096
    .balign 16
pvh_stack:    .skip {stack}
pvh_stack_top:

    .section .rodata.pvh, "a"
    .balign 8
pvh_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
pvh_gdt_end:
pvh_gdt_pointer:
    .word pvh_gdt_end - pvh_gdt - 1
    .long pvh_gdt - {base}
pvh_no_long_mode_line:
    .ascii "[    0.000000] cpu0 ERROR boot: boot failed: this CPU has no 64-bit mode\n"
    .set pvh_no_long_mode_line_length, . - pvh_no_long_mode_line
pvh_no_la57_line:
    .ascii "[    0.000000] cpu0 ERROR boot: boot failed: this kernel has five levels of page tables, and this CPU knows four (no LA57)\n"
    .set pvh_no_la57_line_length, . - pvh_no_la57_line

    .section .text.pvh, "ax"
    .code32
pvh_start:
    cli
    cld
    movl %ebx, %esi

    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb pvh_no_long_mode
    movl $0x80000001, %eax
    cpuid
    btl $29, %edx
    jnc pvh_no_long_mode

    .if {five_levels}
    xorl %eax, %eax
    cpuid
    cmpl $7, %eax
    jb pvh_no_la57
    movl $7, %eax
    xorl %ecx, %ecx
    cpuid
    btl $16, %ecx
    jnc pvh_no_la57
    .endif

    # Four PMD tables of leaves: present, writable, 2 MiB.
    movl $(pvh_pmd - {base}), %edi
    movl $0x83, %eax
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b

    # The tables above them: present, writable.
    movl $(pvh_pmd - {base} + 0x0003), pvh_pud_low - {base}
    movl $(pvh_pmd - {base} + 0x1003), pvh_pud_low - {base} + 8
    movl $(pvh_pmd - {base} + 0x2003), pvh_pud_low - {base} + 16
    movl $(pvh_pmd - {base} + 0x3003), pvh_pud_low - {base} + 24
    movl $(pvh_pmd - {base} + 0x0003), pvh_pud_high - {base} + 510 * 8
    movl $(pvh_pud_low - {base} + 3), pvh_pgd - {base}
    movl $(pvh_pud_high - {base} + 3), pvh_pgd - {base} + 511 * 8

    # With five levels one more, which leads to those at both ends of the address space.
    movl $(pvh_pgd - {base} + 3), pvh_top - {base}
    movl $(pvh_pgd - {base} + 3), pvh_top - {base} + 511 * 8

    # CR4.PAE and LA57, CR3, EFER.LME, then CR0.PG and CR0.WP: long mode, still in 32-bit code.
    movl %cr4, %eax
    .if {five_levels}
    orl $0x1020, %eax
    movl %eax, %cr4
    movl $(pvh_top - {base}), %eax
    .else
    orl $0x20, %eax
    movl %eax, %cr4
    movl $(pvh_pgd - {base}), %eax
    .endif
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010000, %eax
    movl %eax, %cr0

    lgdt pvh_gdt_pointer - {base}
    ljmpl $8, $(pvh_long_mode - {base})

    # One line on the serial port and the status "boot failed" for QEMU's exit device: all that can be done here.
pvh_no_long_mode:
    movl $(pvh_no_long_mode_line - {base}), %esi
    movl $pvh_no_long_mode_line_length, %ecx
    jmp pvh_give_up
pvh_no_la57:
    movl $(pvh_no_la57_line - {base}), %esi
    movl $pvh_no_la57_line_length, %ecx
pvh_give_up:
    movw ${serial}, %dx
    rep outsb
    movl ${failed}, %eax
    movw ${exit}, %dx
    outl %eax, %dx
3:  hlt
    jmp 3b

    .code64
pvh_long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq $pvh_stack_top, %rsp
    xorl %ebp, %ebp
    movl %esi, %edi
    movabsq ${main}, %rax
    callq *%rax
    ud2
    "#,
    note = const NOTE_PHYS32_ENTRY,
    base = const KERNEL_BASE as i64,
    five_levels = const cfg!(feature = "five-level") as u32,
    stack = const STACK,
    serial = const serial::COM1,
    exit = const exit::PORT,
    failed = const ExitCode::BootFailed as u32,
    main = sym pvh_main,
    options(att_syntax)
);

/// The tables made above map this much physical memory at its own address.
const REACH: u64 = 1 << 32;

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

/// Called by the stub above with the physical address of `hvm_start_info`.
extern "C" fn pvh_main(start_info: u64) -> ! {
    start(|| read(start_info))
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
        reach: REACH,
    })
}

/// `count` values of `T` at a physical address.
///
/// # Safety
/// Every bit pattern must be a `T`.
unsafe fn at<T>(address: u64, count: usize) -> Result<&'static [T], HandoffError> {
    let bytes = (count * size_of::<T>()) as u64;
    let inside = address != 0 && address.checked_add(bytes).is_some_and(|end| end <= REACH);
    if !inside || !address.is_multiple_of(align_of::<T>() as u64) {
        return Err(HandoffError::StrayPointer(address));
    }
    // SAFETY: aligned, not null, mapped at its own address by the stub, and changed by nobody during boot; the caller
    // vouches for `T`.
    Ok(unsafe { slice::from_raw_parts(address as *const T, count) })
}
