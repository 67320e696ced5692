//! Traps: the interrupted program's registers, and the way from the entry stubs to the kernel's handler.
//!
//! The stubs are the mode's (`64/entry.rs`, `32/entry.rs`): they build a [`TrapFrame`] and call [`dispatch`].

use core::sync::atomic::{AtomicPtr, Ordering};

pub use crate::bits::entry::TrapFrame;
use crate::interrupts;

/// Vectors whose error code the CPU pushes: 8, 10 to 14, 17, 21, 29, 30.
pub(crate) const ERROR_CODES: u32 = 0x6022_7d00;

/// Bytes of a stub.
const STUB_SIZE: usize = 16;

unsafe extern "C" {
    /// The mode's stubs, one for each vector.
    #[link_name = "latchwork_trap_stubs"]
    static STUBS: [u8; 256 * STUB_SIZE];
}

/// Address of the stub for `vector`.
pub(crate) fn stub(vector: usize) -> usize {
    (&raw const STUBS).addr() + vector * STUB_SIZE
}

/// The kernel's handler, a `fn(&mut TrapFrame)`. Written by [`set_handler`] before the table of gates is loaded
/// anywhere, read relaxed by every trap after.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

pub(crate) fn set_handler(handler: fn(&mut TrapFrame)) {
    HANDLER.store(handler as *mut (), Ordering::Relaxed);
}

/// Called by the stubs.
///
/// # Safety
/// `frame` must be the frame the stub built, which nothing else refers to.
pub(crate) unsafe extern "C" fn dispatch(frame: *mut TrapFrame) {
    let handler = HANDLER.load(Ordering::Relaxed);
    // SAFETY: gates are loaded only after `set_handler`, which stores a pointer of this very type.
    let handler: fn(&mut TrapFrame) = unsafe { core::mem::transmute(handler) };
    // SAFETY: the caller vouches for the frame.
    handler(unsafe { &mut *frame });
}

impl TrapFrame {
    /// Whether the trap came from ring 3.
    #[must_use]
    pub fn from_user(&self) -> bool {
        self.code_segment() & 0b11 != 0
    }

    /// Whether the interrupted program had interrupts enabled.
    #[must_use]
    pub fn interrupts_enabled(&self) -> bool {
        self.flags() & interrupts::FLAG_INTERRUPT != 0
    }

    /// Whether the interrupted program had supervisor access to user pages switched on.
    #[must_use]
    pub fn user_access_open(&self) -> bool {
        self.flags() & interrupts::FLAG_ALIGNMENT_CHECK != 0
    }
}
