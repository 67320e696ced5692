//! Where the CPU enters the kernel on a trap: a stub per vector builds a [`TrapFrame`], makes GS, the direction flag
//! and `AC` what Rust code expects, and calls the kernel's handler.
//!
//! Two ways in. Most vectors tell by the saved code segment whether GS must be swapped. Those with a stack of their own
//! may come in the few instructions where that test lies, so they save the GS base whatever it is, take the right one
//! from the top of their stack, and put the saved one back at the end. They also keep `CR2`: a non-maskable interrupt
//! may come between a page fault and the read of its address, and its handler may fault on a probe.

use core::arch::{asm, global_asm};
use core::fmt;
use core::mem::offset_of;

use crate::cpu::{FEATURES, Features};
use crate::entry::{ERROR_CODES, dispatch};
use crate::msr;

/// The interrupted program's registers. The stubs build it, the handler may change it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl TrapFrame {
    /// Number of the trap.
    #[must_use]
    pub fn vector(&self) -> u64 {
        self.vector
    }

    /// What the CPU tells about it; 0 where it tells nothing.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        self.error_code
    }

    /// The interrupted instruction.
    #[must_use]
    pub fn instruction(&self) -> usize {
        self.rip as usize
    }

    /// Has the interrupted program go on at `address`.
    pub fn set_instruction(&mut self, address: usize) {
        self.rip = address as u64;
    }

    /// The innermost link of the chain of frames.
    #[must_use]
    pub fn frame_pointer(&self) -> usize {
        self.rbp as usize
    }

    pub(crate) fn code_segment(&self) -> usize {
        self.cs as usize
    }

    pub(crate) fn flags(&self) -> usize {
        self.rflags as usize
    }

    /// Shows all registers, line by line.
    pub fn registers(&self, show: &mut dyn FnMut(fmt::Arguments)) {
        let f = self;
        show(format_args!("rip {:016x}  rsp {:016x}  rbp {:016x}  rflags {:08x}", f.rip, f.rsp, f.rbp, f.rflags));
        show(format_args!("rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}", f.rax, f.rbx, f.rcx, f.rdx));
        show(format_args!("rsi {:016x}  rdi {:016x}  r8  {:016x}  r9  {:016x}", f.rsi, f.rdi, f.r8, f.r9));
        show(format_args!("r10 {:016x}  r11 {:016x}  r12 {:016x}  r13 {:016x}", f.r10, f.r11, f.r12, f.r13));
        show(format_args!("r14 {:016x}  r15 {:016x}  cs {:04x}  ss {:04x}", f.r14, f.r15, f.cs, f.ss));
    }
}

/// The running function's link in the chain of frames.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let frame_pointer: usize;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame_pointer, options(nomem, nostack, preserves_flags)) }
    frame_pointer
}

/// The flags register.
pub(crate) fn flags() -> usize {
    let flags: usize;
    // SAFETY: pushes and pops one word below the stack pointer; `nostack` is not claimed.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) }
    flags
}

/// `INVARIANT`: on the way into `dispatch` the stack pointer is a multiple of 16. The CPU aligns it before it pushes
/// its five words; the frame has 22 words, the link for backtraces two.
const _: () = assert!(size_of::<TrapFrame>() == 22 * 8);

global_asm!(
    ".set trap_error_codes, {error_codes}",
    // Vectors with a stack of their own: 1, 2, 8, 18.
    ".set trap_own_stacks, 0x00040106",

    ".pushsection .text.trap_stubs, \"ax\"",
    ".balign 16",
    ".global latchwork_trap_stubs",
    "latchwork_trap_stubs:",
    ".set trap_vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (trap_vector >= 32) || !((trap_error_codes >> trap_vector) & 1)",
    "push 0",
    ".endif",
    "push trap_vector",
    ".if (trap_vector < 32) && ((trap_own_stacks >> trap_vector) & 1)",
    "jmp trap_enter_own_stack",
    ".else",
    "jmp trap_enter",
    ".endif",
    ".set trap_vector, trap_vector + 1",
    ".endr",
    ".balign 16",

    ".macro TRAP_SAVE",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp; push r8",
    "push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "cld",
    // An interrupt gate leaves AC as it was: close the user half. The instruction exists only with SMAP.
    "test dword ptr [rip + {features}], {smap}",
    "jz 2f",
    "clac",
    "2:",
    ".endm",

    ".macro TRAP_CALL",
    "mov rdi, rsp",
    // Looks like a call from the interrupted instruction to whoever follows frame pointers.
    "push qword ptr [rsp + {rip}]",
    "push rbp",
    "mov rbp, rsp",
    "call {dispatch}",
    "add rsp, 16",
    ".endm",

    ".macro TRAP_RESTORE",
    "pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9",
    "pop r8; pop rbp; pop rdi; pop rsi; pop rdx; pop rcx; pop rbx; pop rax",
    // Vector and error code.
    "add rsp, 16",
    "iretq",
    ".endm",

    "trap_enter:",
    "TRAP_SAVE",
    "test byte ptr [rsp + {cs}], 3",
    "jz 3f",
    "swapgs",
    "3:",
    "TRAP_CALL",
    "test byte ptr [rsp + {cs}], 3",
    "jz 4f",
    "swapgs",
    "4:",
    "TRAP_RESTORE",

    "trap_enter_own_stack:",
    "TRAP_SAVE",
    "mov ecx, {gs_base}",
    "rdmsr",
    "shl rdx, 32",
    "lea r12, [rdx + rax]",
    "mov r13, cr2",
    // The address of this CPU's area lies above the frame, see `gdt`.
    "mov rax, [rsp + {frame_size}]",
    "mov rdx, rax",
    "shr rdx, 32",
    "wrmsr",
    "TRAP_CALL",
    "mov cr2, r13",
    "mov rax, r12",
    "mov rdx, r12",
    "shr rdx, 32",
    "mov ecx, {gs_base}",
    "wrmsr",
    "TRAP_RESTORE",
    ".popsection",

    error_codes = const ERROR_CODES,
    features = sym FEATURES,
    smap = const Features::SMAP.bits(),
    dispatch = sym dispatch,
    rip = const offset_of!(TrapFrame, rip),
    cs = const offset_of!(TrapFrame, cs),
    frame_size = const size_of::<TrapFrame>(),
    gs_base = const msr::GS_BASE,
);
