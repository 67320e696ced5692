//! The interrupt descriptor table: one for all CPUs, a gate for each of the 256 vectors.

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::bits::gate::Gate;
use crate::entry::{self, TrapFrame, stub};

/// Number of vectors.
const VECTORS: usize = 256;

/// Exceptions by vector (Intel SDM vol. 3, 6.3.1).
pub mod exception {
    /// Debug exception.
    pub const DEBUG: u64 = 1;
    /// Non-maskable interrupt.
    pub const NON_MASKABLE: u64 = 2;
    /// Double fault.
    pub const DOUBLE_FAULT: u64 = 8;
    /// Page fault.
    pub const PAGE_FAULT: u64 = 14;
    /// Machine check.
    pub const MACHINE_CHECK: u64 = 18;
    /// Number of vectors reserved for exceptions.
    pub const COUNT: u64 = 32;

    const NAMES: [&str; 22] = [
        "divide error",
        "debug exception",
        "non-maskable interrupt",
        "breakpoint",
        "overflow",
        "bound range exceeded",
        "invalid opcode",
        "no coprocessor",
        "double fault",
        "coprocessor segment overrun",
        "invalid TSS",
        "segment not present",
        "stack-segment fault",
        "general protection fault",
        "page fault",
        "reserved exception",
        "x87 floating-point error",
        "alignment check",
        "machine check",
        "SIMD floating-point exception",
        "virtualization exception",
        "control protection exception",
    ];

    /// The manual's name for an exception.
    #[must_use]
    pub fn name(vector: u64) -> &'static str {
        usize::try_from(vector).ok().and_then(|vector| NAMES.get(vector)).copied().unwrap_or("unknown exception")
    }
}

struct Table(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: written once by `init` before any CPU loads it, read only by CPUs afterwards.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([Gate::EMPTY; VECTORS]));

/// Fills the table; every trap from now on goes to `handler`, which runs with interrupts masked.
///
/// # Safety
/// Call once, on the boot CPU, before [`load`]. `handler` must return only with a frame that can be resumed.
pub unsafe fn init(handler: fn(&mut TrapFrame)) {
    entry::set_handler(handler);
    // SAFETY: no CPU has loaded the table and no one else writes it.
    let table = unsafe { &mut *TABLE.0.get() };
    for (vector, gate) in table.iter_mut().enumerate() {
        *gate = Gate::new(vector as u64, stub(vector));
    }
}

/// Makes the running CPU use the table.
///
/// # Safety
/// [`init`] must have run, and this CPU must have its segments and trap stacks.
pub unsafe fn load() {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: usize,
    }
    let pointer = Pointer { limit: (VECTORS * size_of::<Gate>() - 1) as u16, base: TABLE.0.get().addr() };
    // SAFETY: the table is a static full of gates to the entry stubs.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) }
}
