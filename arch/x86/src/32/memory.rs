//! How frames are reached: low memory is in the direct map, a frame of high memory gets a slot of `kmap` for a moment.

use core::arch::asm;

use mm::address::Pfn;
use mm::config::PAGE_SIZE;

use super::kmap;
use crate::cpu::{self, Features};
use crate::kernel_map::{FrameSource, KernelMap, MapError};
use crate::layout;

/// The first frame whose address has more than 32 bits.
const ABOVE_4_GIB: Pfn = Pfn(1 << 20);

/// What the new tree `map` needs besides its windows: the slots of `kmap`.
///
/// # Errors
/// Out of frames.
pub(crate) fn prepare(map: &KernelMap, frames: &mut dyn FrameSource) -> Result<(), MapError> {
    kmap::prepare(map, frames)
}

/// Maps a frame for access and returns where.
pub(crate) fn map(frame: Pfn) -> usize {
    if is_high(frame) { kmap::map(frame) } else { layout::direct(frame) }
}

/// Ends a [`map`], of high memory the last that has not been ended.
pub(crate) fn unmap(address: usize) {
    if layout::KMAP.contains(address) {
        kmap::unmap(address);
    }
}

/// Whether a frame is not in the direct map.
pub(crate) fn is_high(frame: Pfn) -> bool {
    frame >= layout::DIRECT_END
}

/// Whether page walks find a table in a frame. QEMU (7.2, TCG) cuts the addresses of tables to 32 bits outside of long mode:
/// a walk through a table above 4 GiB reads another frame.
pub(crate) fn walks(frame: Pfn) -> bool {
    frame < ABOVE_4_GIB || !cpu::features().contains(Features::EMULATED)
}

/// Mappings of high memory that this CPU has not ended.
pub(crate) fn mapped() -> usize {
    kmap::depth()
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
            "mov [{at} + 4], {zero}",
            "mov [{at} + 8], {zero}",
            "mov [{at} + 12], {zero}",
            "mov [{at} + 16], {zero}",
            "mov [{at} + 20], {zero}",
            "mov [{at} + 24], {zero}",
            "mov [{at} + 28], {zero}",
            "add {at}, 32",
            "cmp {at}, {end}",
            "jne 2b",
            at = inout(reg) address => _,
            end = in(reg) address + PAGE_SIZE,
            zero = in(reg) 0_u32,
            options(nostack),
        );
    }
}
