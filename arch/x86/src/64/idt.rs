//! The interrupt descriptor table: one for all CPUs, an interrupt gate for each of the 256 vectors.

use core::arch::asm;
use core::cell::UnsafeCell;

use super::entry::{self, TrapFrame};
use super::gdt::TrapStack;

/// Number of vectors.
const VECTORS: usize = 256;

/// Exceptions by vector (Intel SDM vol. 3, 6.3.1).
pub mod exception {
    /// Debug exception.
    pub const DEBUG: u64 = 1;
    /// Non-maskable interrupt.
    pub const NON_MASKABLE: u64 = 2;
    /// `INT3`.
    pub const BREAKPOINT: u64 = 3;
    /// Double fault.
    pub const DOUBLE_FAULT: u64 = 8;
    /// General protection.
    pub const GENERAL_PROTECTION: u64 = 13;
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

/// One gate of the table (Intel SDM vol. 3, 6.14.1).
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 16);

/// Present, ring 0, 64-bit interrupt gate: interrupts are masked on entry.
const INTERRUPT_GATE: u8 = 0x8e;
const KERNEL_CODE: u16 = 0x08;

impl Gate {
    const EMPTY: Self =
        Self { offset_low: 0, selector: 0, stack: 0, kind: 0, offset_middle: 0, offset_high: 0, reserved: 0 };

    fn new(stub: usize, stack: Option<TrapStack>) -> Self {
        Self {
            offset_low: stub as u16,
            selector: KERNEL_CODE,
            stack: stack.map_or(0, |stack| stack as u8),
            kind: INTERRUPT_GATE,
            offset_middle: (stub >> 16) as u16,
            offset_high: (stub >> 32) as u32,
            reserved: 0,
        }
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
        let stack = match vector as u64 {
            exception::DOUBLE_FAULT => Some(TrapStack::DoubleFault),
            exception::NON_MASKABLE => Some(TrapStack::NonMaskable),
            exception::DEBUG | exception::MACHINE_CHECK => Some(TrapStack::DebugOrMachineCheck),
            _ => None,
        };
        *gate = Gate::new(entry::stub(vector), stack);
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
        base: u64,
    }
    let pointer = Pointer { limit: (VECTORS * size_of::<Gate>() - 1) as u16, base: TABLE.0.get() as u64 };
    // SAFETY: the table is a static full of gates to the entry stubs.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) }
}
