//! Where the CPU enters the kernel on a trap: a stub per vector builds a [`TrapFrame`], makes GS, the direction flag
//! and `AC` what Rust code expects, and calls the kernel's handler.
//!
//! Two ways in. Most vectors tell by the saved code segment whether GS must be swapped. Those with a stack of their own
//! may come in the few instructions where that test lies, so they save the GS base whatever it is, take the right one
//! from the top of their stack, and put the saved one back at the end. They also keep `CR2`: a non-maskable interrupt
//! may come between a page fault and the read of its address, and its handler may fault on a probe.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::cpu::{FEATURES, Features};
use crate::{interrupts, msr};

/// The interrupted program's registers. The stubs build it, the handler may change it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are the registers of these names")]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Number of the trap.
    pub vector: u64,
    /// What the CPU tells about it; 0 where it tells nothing.
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// Whether the trap came from ring 3.
    #[must_use]
    pub fn from_user(&self) -> bool {
        self.cs & 0b11 != 0
    }

    /// Whether the interrupted program had interrupts enabled.
    #[must_use]
    pub fn interrupts_enabled(&self) -> bool {
        self.rflags & interrupts::FLAG_INTERRUPT as u64 != 0
    }

    /// Whether the interrupted program had supervisor access to user pages switched on.
    #[must_use]
    pub fn user_access_open(&self) -> bool {
        self.rflags & interrupts::FLAG_ALIGNMENT_CHECK as u64 != 0
    }
}

/// The kernel's handler, a `fn(&mut TrapFrame)`. Written by [`set_handler`] before the table of gates is loaded
/// anywhere, read relaxed by every trap after.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

pub(super) fn set_handler(handler: fn(&mut TrapFrame)) {
    HANDLER.store(handler as *mut (), Ordering::Relaxed);
}

/// Address of the stub for `vector`.
pub(super) fn stub(vector: usize) -> usize {
    (&raw const trap_stubs).addr() + vector * STUB_SIZE
}

unsafe extern "C" {
    /// The stubs, each [`STUB_SIZE`] bytes long.
    #[link_name = "latchwork_trap_stubs"]
    static trap_stubs: [u8; 256 * STUB_SIZE];
}

const STUB_SIZE: usize = 16;

/// Called by the stubs.
///
/// # Safety
/// `frame` must be the frame the stub built, which nothing else refers to.
unsafe extern "C" fn dispatch(frame: *mut TrapFrame) {
    let handler = HANDLER.load(Ordering::Relaxed);
    // SAFETY: gates are loaded only after `set_handler`, which stores a pointer of this very type.
    let handler: fn(&mut TrapFrame) = unsafe { core::mem::transmute(handler) };
    // SAFETY: the caller vouches for the frame.
    handler(unsafe { &mut *frame });
}

/// `INVARIANT`: on the way into `dispatch` the stack pointer is a multiple of 16. The CPU aligns it before it pushes
/// its five words; the frame has 22 words, the link for backtraces two.
const _: () = assert!(size_of::<TrapFrame>() == 22 * 8);

global_asm!(
    // Vectors whose error code the CPU pushes: 8, 10 to 14, 17, 21, 29, 30.
    ".set trap_error_codes, 0x60227d00",
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

    features = sym FEATURES,
    smap = const Features::SMAP.bits(),
    dispatch = sym dispatch,
    rip = const offset_of!(TrapFrame, rip),
    cs = const offset_of!(TrapFrame, cs),
    frame_size = const size_of::<TrapFrame>(),
    gs_base = const msr::GS_BASE,
);
