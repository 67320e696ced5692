//! Where the CPU enters the kernel on a trap: a stub per vector builds a [`TrapFrame`], makes segments, the direction flag
//! and `AC` what Rust code expects, and calls the kernel's handler.
//!
//! Ring 0 always has a usable stack, but for the overflow that a task gate serves (`gate.rs`): every other trap is served on the
//! stack in use. Those that may come between a page fault and the read of its address keep `CR2`: their handlers may fault on a
//! probe.
//!
//! **The emulator's flags.** QEMU 7.2 computes the flags of the next instructions from a stray operand after `cmpxchg8b` (its
//! helper takes the flags' source for up to date before the translator has stored it), until an instruction sets all of them.
//! Whatever pushes flags then pushes any bit of that operand, and one bit, `VM`, has an interrupt that comes at that moment end
//! as a double fault. So no code of the kernel has the instruction (a test disassembles it), but for the accessor of user memory that
//! needs it: a jump before it has the translator store all. A program in ring 3 may have it, and [`flags`] and the stubs, which
//! set all flags first and take out of the interrupted program's what the kernel never sets, bear with whatever bits that
//! leaves, but for `VM`.

use core::arch::{asm, global_asm};
use core::fmt;
use core::mem::offset_of;

use super::gdt;
use crate::cpu::{FEATURES, Features};
use crate::entry::{ERROR_CODES, dispatch};

/// The interrupted program's registers. The stubs build it, the handler may change it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapFrame {
    /// The interrupted stack pointer.
    pub(super) stack: u32,
    pub(super) gs: u32,
    pub(super) fs: u32,
    pub(super) es: u32,
    pub(super) ds: u32,
    pub(super) edi: u32,
    pub(super) esi: u32,
    pub(super) ebp: u32,
    pub(super) ebx: u32,
    pub(super) edx: u32,
    pub(super) ecx: u32,
    pub(super) eax: u32,
    pub(super) vector: u32,
    pub(super) error_code: u32,
    pub(super) eip: u32,
    pub(super) cs: u32,
    pub(super) eflags: u32,
    /// From ring 0 the CPU pushes neither this nor `ss`: they are the two topmost words of the interrupted stack then. Every
    /// stack keeps two words at its top, so that there are some.
    pub(super) esp: u32,
    pub(super) ss: u32,
}

impl TrapFrame {
    /// Number of the trap.
    #[must_use]
    pub fn vector(&self) -> u64 {
        u64::from(self.vector)
    }

    /// What the CPU tells about it; 0 where it tells nothing.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        u64::from(self.error_code)
    }

    /// The interrupted instruction.
    #[must_use]
    pub fn instruction(&self) -> usize {
        self.eip as usize
    }

    /// Has the interrupted program go on at `address`.
    pub fn set_instruction(&mut self, address: usize) {
        self.eip = address as u32;
    }

    /// The innermost link of the chain of frames.
    #[must_use]
    pub fn frame_pointer(&self) -> usize {
        self.ebp as usize
    }

    pub(crate) fn code_segment(&self) -> usize {
        self.cs as usize
    }

    pub(crate) fn flags(&self) -> usize {
        self.eflags as usize
    }

    /// Shows all registers, line by line.
    pub fn registers(&self, show: &mut dyn FnMut(fmt::Arguments)) {
        let f = self;
        show(format_args!("eip {:08x}  esp {:08x}  ebp {:08x}  eflags {:08x}", f.eip, f.stack, f.ebp, f.eflags));
        show(format_args!("eax {:08x}  ebx {:08x}  ecx {:08x}  edx {:08x}", f.eax, f.ebx, f.ecx, f.edx));
        show(format_args!(
            "esi {:08x}  edi {:08x}  cs {:04x}  ds {:04x}  es {:04x}  fs {:04x}  gs {:04x}",
            f.esi, f.edi, f.cs, f.ds, f.es, f.fs, f.gs
        ));
        if self.from_user() {
            show(format_args!("ss {:04x}", f.ss));
        }
    }
}

/// The running function's link in the chain of frames.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let frame_pointer: usize;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, ebp", out(reg) frame_pointer, options(nomem, nostack, preserves_flags)) }
    frame_pointer
}

/// The flags register; only bits that no arithmetic changes are of use. The `test` cures the emulator's, see above.
pub(crate) fn flags() -> usize {
    let flags: usize;
    // SAFETY: pushes and pops one word below the stack pointer; `nostack` is not claimed.
    unsafe { asm!("test esp, esp", "pushfd", "pop {}", out(reg) flags, options(nomem)) }
    flags
}

/// Flags of the interrupted program that are put back: CF, PF, AF, ZF, SF, IF, DF, OF, AC, ID and the bit that is always set.
const KEPT_FLAGS: u32 = 0x0024_0ed7;

global_asm!(
    ".set trap_error_codes, {error_codes}",
    // Vectors that keep CR2: 1, 2, 18.
    ".set trap_keep_cr2, 0x00040006",

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
    ".if (trap_vector < 32) && ((trap_keep_cr2 >> trap_vector) & 1)",
    "jmp trap_enter_keep_cr2",
    ".else",
    "jmp trap_enter",
    ".endif",
    ".set trap_vector, trap_vector + 1",
    ".endr",
    ".balign 16",

    ".macro TRAP_SAVE",
    "push eax; push ecx; push edx; push ebx; push ebp; push esi; push edi",
    // push ds, es, fs, gs: by these names the assembler emits 16-bit pushes.
    ".byte 0x1e, 0x06, 0x0f, 0xa0, 0x0f, 0xa8",
    "cld",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov eax, {per_cpu}",
    "mov gs, eax",
    // `stack` is not pushed yet.
    "and dword ptr [esp + {eflags} - 4], {kept_flags}",
    "lea eax, [esp + {esp} - 4]",
    "test byte ptr [esp + {cs} - 4], 3",
    "jz 2f",
    "mov eax, [eax]",
    "2:",
    "push eax",
    // An interrupt gate leaves AC as it was: close the user half. The instruction exists only with SMAP.
    "test dword ptr [{features}], {smap}",
    "jz 3f",
    "clac",
    "3:",
    ".endm",

    ".macro TRAP_CALL",
    "mov ebx, esp",
    // Looks like a call from the interrupted instruction to whoever follows frame pointers.
    "push dword ptr [esp + {eip}]",
    "push ebp",
    "mov ebp, esp",
    // The calling convention: a multiple of 16 below the argument.
    "and esp, -16",
    "sub esp, 12",
    "push ebx",
    "call {dispatch}",
    "mov esp, ebx",
    ".endm",

    ".macro TRAP_RESTORE",
    "add esp, 4",
    // pop gs, fs, es, ds.
    ".byte 0x0f, 0xa9, 0x0f, 0xa1, 0x07, 0x1f",
    "pop edi; pop esi; pop ebp; pop ebx; pop edx; pop ecx; pop eax",
    // Vector and error code.
    "add esp, 8",
    "iretd",
    ".endm",

    "trap_enter:",
    "TRAP_SAVE",
    "TRAP_CALL",
    "TRAP_RESTORE",

    "trap_enter_keep_cr2:",
    "TRAP_SAVE",
    "mov edi, cr2",
    "TRAP_CALL",
    "mov cr2, edi",
    "TRAP_RESTORE",
    ".popsection",

    error_codes = const ERROR_CODES,
    features = sym FEATURES,
    smap = const Features::SMAP.bits(),
    dispatch = sym dispatch,
    eip = const offset_of!(TrapFrame, eip),
    cs = const offset_of!(TrapFrame, cs),
    eflags = const offset_of!(TrapFrame, eflags),
    esp = const offset_of!(TrapFrame, esp),
    kept_flags = const KEPT_FLAGS,
    data = const gdt::KERNEL_DATA,
    per_cpu = const gdt::PER_CPU,
);
