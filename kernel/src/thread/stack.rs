//! Kernel stacks, each above an unmapped guard.
//!
//! All stacks are mapped at boot, before `mm` owns the memory, and given out again and again: starting a thread changes no
//! page table and takes no frame, so tests that count frames need not know about threads.
//!
//! Slots: the first `NR_CPUS` are the stacks CPUs start on and idle on; then each CPU's trap stacks; then the threads'.

use alloc::vec::Vec;

use arch_x86::gdt::TrapStack;
use arch_x86::kernel_map::{self, MapError};
use arch_x86::layout::StackSlot;
use mm::config::NR_CPUS;
use mm::cpu::CpuId;
use mm::sync::rwlock::MmapLock;

use crate::boot::frames;
use crate::sync::{LockName, Spin};

/// First slot of the trap stacks.
const FIRST_TRAP_SLOT: u32 = NR_CPUS as u32;
/// First slot of the threads' stacks.
const FIRST_THREAD_SLOT: u32 = FIRST_TRAP_SLOT * (1 + TrapStack::ALL.len() as u32);

/// Stacks for threads: some for the kernel, some for each CPU.
const THREADS: u32 = 16;
const THREADS_PER_CPU: u32 = 8;

const _: () = assert!(StackSlot::COUNT as usize <= MmapLock::MAX_THREADS);

/// Mapped stacks that no thread has. Its capacity is that of all of them, so giving one back allocates nothing.
static FREE: Spin<Vec<StackSlot>> = Spin::new(&LockName("free stacks"), Vec::new());

/// Every stack is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStack;

/// A thread's stack; given back when dropped, which must not be done on it.
pub struct Stack(StackSlot);

impl Stack {
    /// Takes a free stack.
    ///
    /// # Errors
    /// [`NoStack`] if there is none.
    pub fn new() -> Result<Self, NoStack> {
        FREE.lock().pop().map(Self).ok_or(NoStack)
    }

    /// First address above it.
    pub fn top(&self) -> usize {
        self.0.top()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        FREE.lock().push(self.0);
    }
}

/// Maps the stacks of threads for a machine of `cpus` CPUs. Call once, at boot.
///
/// # Errors
/// No memory, or not enough slots.
pub fn fill(cpus: u32) -> Result<(), MapError> {
    let count = THREADS + THREADS_PER_CPU * cpus;
    let mut stacks = Vec::with_capacity(count as usize);
    for number in 0..count {
        stacks.push(map(FIRST_THREAD_SLOT + number)?);
    }
    *FREE.lock() = stacks;
    Ok(())
}

/// Maps the stack that `cpu` starts on, and returns its top. The boot CPU's is there already.
///
/// # Errors
/// No memory.
pub fn map_boot_stack(cpu: CpuId) -> Result<usize, MapError> {
    map(cpu.0).map(StackSlot::top)
}

/// Maps the stack that `cpu` takes `trap` on, and returns its top.
///
/// # Errors
/// No memory.
pub fn map_trap_stack(cpu: CpuId, trap: TrapStack) -> Result<usize, MapError> {
    let number = FIRST_TRAP_SLOT + cpu.0 * TrapStack::ALL.len() as u32 + (trap as u32 - 1);
    map(number).map(StackSlot::top)
}

fn map(number: u32) -> Result<StackSlot, MapError> {
    let slot = StackSlot::new(number).ok_or(MapError::OutsideWindow(usize::MAX))?;
    frames::lend(|frames| kernel_map::stack(slot, frames)).ok_or(MapError::OutOfFrames)??;
    Ok(slot)
}

/// Whether `address` lies in the guard below some stack.
pub fn is_guard(address: usize) -> bool {
    StackSlot::guarding(address).is_some()
}
