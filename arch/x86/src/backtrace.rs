//! Return addresses found by following frame pointers.
//!
//! The chain may be damaged, so each word is read with the exception table's help: a bad address ends the walk instead
//! of faulting for good.

use crate::bits::entry::frame_pointer;
use crate::entry::TrapFrame;
use crate::layout::KERNEL_HALF;
use crate::user_access::probe_kernel_word;

/// Frames a trace holds at most.
pub const DEPTH: usize = 32;

/// Return addresses, innermost first.
#[derive(Clone, Copy, Debug)]
pub struct Backtrace {
    addresses: [usize; DEPTH],
    length: usize,
}

impl Backtrace {
    /// A trace of nothing.
    pub const EMPTY: Self = Self { addresses: [0; DEPTH], length: 0 };

    /// The calls that led to the caller of this function.
    #[inline(never)]
    #[must_use]
    pub fn here() -> Self {
        let mut trace = Self::EMPTY;
        trace.follow(frame_pointer());
        trace
    }

    /// The calls that led to where a trap interrupted; its first address is the interrupted instruction.
    #[must_use]
    pub fn of_frame(frame: &TrapFrame) -> Self {
        let mut trace = Self::EMPTY;
        trace.push(frame.instruction());
        if !frame.from_user() {
            trace.follow(frame.frame_pointer());
        }
        trace
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> &[usize] {
        self.addresses.get(..self.length).unwrap_or(&[])
    }

    fn push(&mut self, address: usize) -> bool {
        match self.addresses.get_mut(self.length) {
            Some(slot) => {
                *slot = address;
                self.length += 1;
                true
            }
            None => false,
        }
    }

    /// Follows the chain of saved frame pointers; each lies just below its return address.
    fn follow(&mut self, mut frame_pointer: usize) {
        while frame_pointer != 0 && frame_pointer.is_multiple_of(size_of::<usize>()) {
            let next = probe_kernel_word(frame_pointer);
            let return_address = probe_kernel_word(frame_pointer.wrapping_add(size_of::<usize>()));
            let (Some(next), Some(return_address)) = (next, return_address) else { return };
            // The outermost function returns to nothing, or to the trampoline in low memory.
            if !KERNEL_HALF.contains(return_address) || !self.push(return_address) {
                return;
            }
            frame_pointer = next;
        }
    }
}
