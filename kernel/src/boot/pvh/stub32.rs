//! The entry point, from protected mode without paging to PAE. Rule: it looks whether the CPU can before it does.

use core::arch::global_asm;

use arch_x86::layout::{IMAGE, KERNEL_HALF};

use super::{KERNEL_BASE, NOTE_PHYS32_ENTRY, STACK, pvh_main};

/// The tables made here map this much physical memory at its own address.
pub(super) const REACH: u64 = KERNEL_HALF.start as u64;

/// Bytes that an entry of a PMD table maps.
const LARGE: usize = 2 << 20;

// The tables made here map the first 3 GiB at their own addresses, and the first of them at KERNEL_BASE. The top table has a
// frame of its own, as the kernel's has.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4
    .long 4
    .long {note}
    .asciz "Xen"
    .long pvh_start - {base}

    .section .bss.pvh, "aw", @nobits
    .balign 4096
pvh_pmd:      .skip 4 * 4096
pvh_top:      .skip 4096
    .balign 16
pvh_stack:    .skip {stack}
pvh_stack_top:

    .section .rodata.pvh, "a"
pvh_no_pae_line:
    .ascii "[    0.000000] cpu0 ERROR boot: boot failed: this CPU has no PAE\n"
    .set pvh_no_pae_line_length, . - pvh_no_pae_line

    .section .text.pvh, "ax"
    .code32
pvh_start:
    cli
    cld
    movl %ebx, %edi

    movl $1, %eax
    cpuid
    btl $6, %edx
    jnc pvh_no_pae

    # Three PMD tables of leaves: present, writable, 2 MiB.
    movl $(pvh_pmd - {base}), %edx
    movl $0x83, %eax
    movl $1536, %ecx
2:  movl %eax, (%edx)
    addl $0x200000, %eax
    addl $8, %edx
    decl %ecx
    jnz 2b

    # The image in the fourth.
    addl ${image_offset}, %edx
    movl $0x83, %eax
    movl ${image_leaves}, %ecx
3:  movl %eax, (%edx)
    addl $0x200000, %eax
    addl $8, %edx
    decl %ecx
    jnz 3b

    # The table above them: present, and nothing else is allowed.
    movl $(pvh_pmd - {base} + 0x0001), pvh_top - {base}
    movl $(pvh_pmd - {base} + 0x1001), pvh_top - {base} + 8
    movl $(pvh_pmd - {base} + 0x2001), pvh_top - {base} + 16
    movl $(pvh_pmd - {base} + 0x3001), pvh_top - {base} + 24

    # CR4.PAE, CR3, then CR0.PG and CR0.WP.
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $(pvh_top - {base}), %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80010000, %eax
    movl %eax, %cr0
    movl $4f, %eax
    jmp *%eax
4:  movl $pvh_stack_top, %esp
    xorl %ebp, %ebp
    # A multiple of 16 below the argument.
    subl $12, %esp
    pushl %edi
    call {main}
    ud2

pvh_no_pae:
    movl $(pvh_no_pae_line - {base}), %esi
    movl $pvh_no_pae_line_length, %ecx
    # Relative, so it holds wherever the image runs.
    jmp pvh_give_up
    "#,
    note = const NOTE_PHYS32_ENTRY,
    base = const KERNEL_BASE,
    image_offset = const (KERNEL_BASE - KERNEL_HALF.start) / LARGE * 8,
    image_leaves = const IMAGE.bytes / LARGE,
    stack = const STACK,
    main = sym pvh_main,
    options(att_syntax)
);
