//! The entry point, from 32-bit protected mode to long mode. Rule: it looks whether the CPU can before it does.

use core::arch::global_asm;

use super::{KERNEL_BASE, NOTE_PHYS32_ENTRY, STACK, pvh_main};

/// The tables made here map this much physical memory at its own address.
pub(super) const REACH: u64 = 1 << 32;

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

    # Each: the line to give up with.
pvh_no_long_mode:
    movl $(pvh_no_long_mode_line - {base}), %esi
    movl $pvh_no_long_mode_line_length, %ecx
    jmp pvh_give_up
pvh_no_la57:
    movl $(pvh_no_la57_line - {base}), %esi
    movl $pvh_no_la57_line_length, %ecx
    jmp pvh_give_up

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
    main = sym pvh_main,
    options(att_syntax)
);
