//! How frames are reached: all RAM is in the direct map.

use core::arch::asm;

use mm::address::Pfn;
use mm::config::PAGE_SIZE;

use crate::kernel_map::{FrameSource, KernelMap, MapError};
use crate::layout;

/// What the new tree `map` needs besides its windows: nothing.
pub(crate) fn prepare(_map: &KernelMap, _frames: &mut dyn FrameSource) -> Result<(), MapError> {
    Ok(())
}

/// Maps a frame for access and returns where.
#[inline(always)]
pub(crate) fn map(frame: Pfn) -> usize {
    layout::direct(frame)
}

/// Ends a [`map`].
#[inline(always)]
pub(crate) fn unmap(_address: usize) {}

/// Whether a frame is not in the direct map: none is.
#[inline(always)]
pub(crate) fn is_high(_frame: Pfn) -> bool {
    false
}

/// Whether page walks find a table in a frame: in any.
#[inline(always)]
pub(crate) fn walks(_frame: Pfn) -> bool {
    true
}

/// Mappings of this CPU that have not been ended: none is ever counted.
#[inline(always)]
pub(crate) fn mapped() -> usize {
    0
}

/// Fills a page with zeroes. Plain stores: an emulator runs string instructions element by element.
///
/// # Safety
/// The page at `address` must be memory that nothing else uses.
pub(crate) unsafe fn clear(address: usize) {
    // SAFETY: the caller vouches for the page; the loop ends at its end.
    unsafe {
        asm!(
            "2:",
            "mov [{at}], {zero}",
            "mov [{at} + 8], {zero}",
            "mov [{at} + 16], {zero}",
            "mov [{at} + 24], {zero}",
            "mov [{at} + 32], {zero}",
            "mov [{at} + 40], {zero}",
            "mov [{at} + 48], {zero}",
            "mov [{at} + 56], {zero}",
            "add {at}, 64",
            "cmp {at}, {end}",
            "jne 2b",
            at = inout(reg) address => _,
            end = in(reg) address + PAGE_SIZE,
            zero = in(reg) 0_u64,
            options(nostack),
        );
    }
}
