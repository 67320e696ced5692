//! Gates of the interrupt descriptor table (Intel SDM vol. 3, 6.11).

use super::gdt::{DOUBLE_FAULT_TASK, KERNEL_CODE};
use crate::idt::exception;

/// One gate.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Gate(u64);

/// Present, ring 0, 32-bit interrupt gate: interrupts are masked on entry.
const INTERRUPT_GATE: u64 = 0x8e;
/// Present, ring 0, task gate: the CPU takes all its registers from another task-state segment.
const TASK_GATE: u64 = 0x85;

impl Gate {
    pub(crate) const EMPTY: Self = Self(0);

    /// The gate of `vector`, which leads to `stub`; of a double fault, whose stack is not usable, to a task with its own.
    pub(crate) fn new(vector: u64, stub: usize) -> Self {
        if vector == exception::DOUBLE_FAULT {
            return Self((DOUBLE_FAULT_TASK as u64) << 16 | TASK_GATE << 40);
        }
        let stub = stub as u64;
        Self(stub & 0xffff | (KERNEL_CODE as u64) << 16 | INTERRUPT_GATE << 40 | (stub >> 16) << 48)
    }
}
