//! Where things lie in the kernel half of the address space.
//!
//! The numbers are the mode's (`64/layout.rs`, `32/layout.rs`); what follows from them is the same for both. Rule: every window has
//! its top-level entries from boot on, so a new address space copies them once and never again.

use mm::address::Pfn;
use mm::config::PAGE_SHIFT;

pub use crate::bits::layout::{
    BARE_TOP, DEVICES, DIRECT_MAP, IMAGE, KERNEL_HALF, LEVELS, Mode, SHARED, STACKS, STORM, TEST_BASE, WINDOWS,
    levels_in_use,
};

#[cfg(target_pointer_width = "32")]
pub use crate::bits::layout::KMAP;

/// A stretch of virtual addresses with one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub start: usize,
    /// Length in bytes.
    pub bytes: usize,
}

impl Window {
    /// Whether `address` lies in the window.
    #[must_use]
    pub const fn contains(self, address: usize) -> bool {
        address >= self.start && address - self.start < self.bytes
    }
}

/// First frame beyond the direct map.
pub const DIRECT_END: Pfn = Pfn(DIRECT_MAP.bytes as u64 >> PAGE_SHIFT);

/// The address at which the kernel sees the first byte of a frame of RAM below [`DIRECT_END`].
#[must_use]
pub const fn direct(frame: Pfn) -> usize {
    DIRECT_MAP.start + frame.address() as usize
}

/// Usable bytes of a kernel stack. Debug builds copy large values from frame to frame: with debug locks, 32 KiB do not hold what
/// makes the kernel's `Memory`.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 48 << 10 } else { 32 << 10 };

/// Distance from one stack slot to the next. The lower part of each slot is never mapped: it is the guard of the
/// stack above it.
const STACK_STRIDE: usize = 64 << 10;

const _: () = assert!(STACK_BYTES < STACK_STRIDE && STACKS.bytes.is_multiple_of(STACK_STRIDE));

/// Room for one kernel stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackSlot(u32);

impl StackSlot {
    /// How many there are.
    pub const COUNT: u32 = {
        let room = STACKS.bytes / STACK_STRIDE;
        if room < 1 << 16 { room as u32 } else { 1 << 16 }
    };

    /// Slot `number`, if there is one.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The slot whose guard `address` lies in: what a stack overflow hits.
    #[must_use]
    pub const fn guarding(address: usize) -> Option<Self> {
        if !STACKS.contains(address) {
            return None;
        }
        let offset = address - STACKS.start;
        if offset % STACK_STRIDE >= STACK_STRIDE - STACK_BYTES {
            return None;
        }
        Self::new((offset / STACK_STRIDE) as u32)
    }

    /// The slot's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// First address above the stack; a multiple of 16.
    #[must_use]
    pub const fn top(self) -> usize {
        STACKS.start + (self.0 as usize + 1) * STACK_STRIDE
    }

    /// Lowest usable address of the stack.
    #[must_use]
    pub const fn bottom(self) -> usize {
        self.top() - STACK_BYTES
    }
}
