//! The fastest way to end a run badly.

use core::arch::asm;

/// Operand of `LIDT`, long enough for both modes: a table of no gates.
#[repr(C, align(2))]
struct NoGates([u8; 10]);

/// Raises an exception with no gate for it, none for the double fault and none for that: the CPU resets.
pub fn triple_fault() -> ! {
    static NO_GATES: NoGates = NoGates([0; 10]);
    // SAFETY: nothing runs on this CPU afterwards.
    unsafe { asm!("lidt [{}]", "int3", "ud2", in(reg) &raw const NO_GATES, options(noreturn)) }
}
