//! From the start-up message to Rust on an application processor.
//!
//! The CPU begins in real mode in a page below 1 MiB, which holds code and, behind it, parameters; tables lie in the frames that
//! follow. What is in them is the mode's (`64/trampoline.rs`, `32/trampoline.rs`): the code ends with a call into the kernel, on the
//! stack and with the argument that it finds in the page. One CPU uses the page at a time.

use core::ptr;
use core::sync::atomic::{Ordering, fence};

pub use crate::bits::trampoline::FRAMES;
use crate::bits::trampoline::{CODE, Parameters, prepare};

pub(crate) const FRAME_SIZE: usize = 4096;

/// Where in the page the parameters lie; the code is as long as that.
pub(crate) const PARAMETERS: usize = 0xf00;

const _: () = assert!(PARAMETERS + size_of::<Parameters>() <= FRAME_SIZE);

/// Where a CPU goes from the page.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Destination {
    pub(crate) entry: usize,
    pub(crate) stack_top: usize,
    pub(crate) argument: usize,
}

/// A trampoline set up in low memory.
#[derive(Debug)]
pub struct Trampoline {
    page: u8,
    parameters: *mut Parameters,
}

// SAFETY: the pointer leads to memory that the trampoline owns.
unsafe impl Send for Trampoline {}

/// The frames cannot serve: not below 1 MiB, or not on a frame boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnusableFrames;

impl Trampoline {
    /// Sets the trampoline up in [`FRAMES`] frames from physical address `frames`, which the kernel sees at `window`.
    /// `root` is the kernel's root table as the kernel sees it; its kernel half must be complete.
    ///
    /// # Errors
    /// When the frames cannot serve.
    ///
    /// # Safety
    /// The frames must be RAM, visible at `window` and used by nothing else until every CPU started through them has
    /// loaded another root table.
    pub unsafe fn new(frames: u64, window: *mut u8, root: *const u64) -> Result<Self, UnusableFrames> {
        let page = u8::try_from(frames / FRAME_SIZE as u64).map_err(|_| UnusableFrames)?;
        if !frames.is_multiple_of(FRAME_SIZE as u64) || usize::from(page) + FRAMES > 0x100 {
            return Err(UnusableFrames);
        }
        let parameters = window.wrapping_add(PARAMETERS).cast::<Parameters>();
        // SAFETY: the caller hands over the frames and the root table; the code is `PARAMETERS` bytes long by its `.org`, and the
        // parameters lie behind it in the first frame.
        unsafe {
            ptr::write_bytes(window, 0, FRAMES * FRAME_SIZE);
            ptr::copy_nonoverlapping(&raw const CODE, window, PARAMETERS);
            // Below 1 MiB, as just checked.
            parameters.write(prepare(frames as u32, window, root));
        }
        Ok(Self { page, parameters })
    }

    /// The page number for the start-up message.
    #[must_use]
    pub fn page(&self) -> u8 {
        self.page
    }

    /// Sets where the next CPU goes: `entry(argument)` on the stack that ends at `stack_top`, interrupts off, in the kernel's
    /// mode, with GS, segments, gates and root table still to be loaded.
    ///
    /// # Safety
    /// The CPU started last must be through. The stack must be the new CPU's own.
    pub unsafe fn aim(&mut self, entry: extern "C" fn(usize) -> !, stack_top: usize, argument: usize) {
        // SAFETY: the parameters are ours, and no CPU reads them now.
        unsafe { (*self.parameters).destination = Destination { entry: entry as usize, stack_top, argument } };
        // The stores precede the start-up message.
        fence(Ordering::SeqCst);
    }
}
