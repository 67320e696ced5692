//! PVH: QEMU's `-kernel` finds the entry point in an ELF note and calls it in 32-bit protected mode.
//!
//! The protocol is Xen's x86/HVM direct boot ABI (`docs/misc/pvh.pandoc` and `start_info.h` of the Xen sources):
//! flat segments, paging off, interrupts off, the physical address of `hvm_start_info` in `EBX`.

use core::arch::global_asm;

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

    # CR4.PAE, CR3, EFER.LME, then CR0.PG and CR0.WP: long mode, still in 32-bit code.
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $(pvh_pgd - {base}), %eax
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

    # Status "boot failed" to QEMU's exit device; elsewhere nothing more can be done or said.
pvh_no_long_mode:
    movl $0x15, %eax
    movw $0xf4, %dx
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
    stack = const STACK,
    main = sym pvh_main,
    options(att_syntax)
);

/// Called by the stub above with the physical address of `hvm_start_info`, which is mapped at itself.
extern "C" fn pvh_main(_start_info: u64) -> ! {
    super::start()
}

/// Keeps `link.ld`'s ENTRY satisfied.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    super::start()
}
