//! Gates of the interrupt descriptor table (Intel SDM vol. 3, 6.14.1).

use super::gdt::TrapStack;
use crate::idt::exception;

/// One gate.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Gate {
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
    pub(crate) const EMPTY: Self =
        Self { offset_low: 0, selector: 0, stack: 0, kind: 0, offset_middle: 0, offset_high: 0, reserved: 0 };

    /// The gate of `vector`, which leads to `stub`.
    pub(crate) fn new(vector: u64, stub: usize) -> Self {
        let stack = match vector {
            exception::DOUBLE_FAULT => Some(TrapStack::DoubleFault),
            exception::NON_MASKABLE => Some(TrapStack::NonMaskable),
            exception::DEBUG | exception::MACHINE_CHECK => Some(TrapStack::DebugOrMachineCheck),
            _ => None,
        };
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
