//! Taking the memory over from the boot: descriptors for all frames, and every free frame to the allocator.

use core::fmt;

use arch_x86::layout;
use arch_x86::machine::X86;
use handover::memory_map::{MemoryMapError, RegionKind};
use mm::address::Pfn;
use mm::config::PAGE_SIZE;
use mm::frame::{FrameAllocator, RangeError};
use mm::machine::Machine;
use mm::memory::OutOfMemory;
use mm::page::{MemMap, Page};

use super::{MEMORY, Memory};
use crate::boot::frames::{self, BootFrames};

type Lock = <X86 as Machine>::Lock;

/// Why `mm` cannot take the memory over.
#[derive(Clone, Copy, Debug)]
pub enum TakeOverError {
    /// It has done so already.
    Twice,
    /// There is no room for the descriptors of all frames.
    NoRoomForMemMap,
    /// The boot's map of what is free cannot be made.
    Map(MemoryMapError),
    /// The allocator refuses a range of that map.
    Range(RangeError),
    /// There is not even memory for `mm` itself.
    OutOfMemory,
}

impl fmt::Display for TakeOverError {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Twice => write!(out, "the memory has been taken over before"),
            Self::NoRoomForMemMap => write!(out, "there is no room for the descriptors of all frames"),
            Self::Map(error) => write!(out, "{error}"),
            Self::Range(error) => write!(out, "the map of free memory is wrong: {error:?}"),
            Self::OutOfMemory => write!(out, "there is not even memory for mm itself"),
        }
    }
}

impl From<MemoryMapError> for TakeOverError {
    fn from(error: MemoryMapError) -> Self {
        Self::Map(error)
    }
}

impl From<RangeError> for TakeOverError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<OutOfMemory> for TakeOverError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Gives all free memory to `mm`. Once, on a thread, when nothing more of the kernel's own is to be mapped.
///
/// # Errors
/// See [`TakeOverError`]; there is no memory then.
pub fn take_over() -> Result<(), TakeOverError> {
    let mut boot = frames::take_over().ok_or(TakeOverError::Twice)?;
    let memmap = describe_all(&mut boot)?;
    let frames = FrameAllocator::new(memmap);
    for region in boot.hand_over()?.regions().iter().filter(|region| region.kind == RegionKind::Usable) {
        let (start, end) = (Pfn::containing(region.start), Pfn::containing(region.end).min(memmap.end()));
        if start < end {
            frames.add_free_range(X86, start, end)?;
        }
    }
    let memory = Memory::new(X86, frames)?;
    let total = memory.frames().total_frames(X86);
    MEMORY.call_once(|| memory);
    log::info!("mm has {} MiB in {total} frames", (total * PAGE_SIZE as u64) >> 20);
    Ok(())
}

/// A descriptor for every frame up to the end of RAM, holes included, as far as there is room for them.
fn describe_all(boot: &mut BootFrames) -> Result<MemMap<Lock>, TakeOverError> {
    let (end, limit) = (boot.memory().end(), describable(boot.left()));
    if limit < end {
        let (from, end) = (limit.address(), end.address());
        log::warn!("memory from {from:#x} to {end:#x} stays unused: there is no room for its descriptors");
    }
    let count = end.min(limit).0 as usize;
    let bytes = count * size_of::<Page<Lock>>();
    let first = boot.take_block(bytes.div_ceil(PAGE_SIZE) as u64).ok_or(TakeOverError::NoRoomForMemMap)?;
    let pages = layout::direct(first) as *mut Page<Lock>;
    for index in 0..count {
        // SAFETY: the block was just taken for good, is mapped in the direct map, large enough and page-aligned.
        unsafe { pages.add(index).write(Page::new()) };
    }
    // SAFETY: all of them were just initialised, and nobody else knows the block.
    let pages = unsafe { core::slice::from_raw_parts(pages, count) };
    Ok(MemMap::new(Pfn(0), pages))
}

/// The end of the frames that have a descriptor if `low` frames are left in the direct map, where descriptors lie: half of them
/// are for what else has to lie there. That is always enough where all RAM is in the direct map.
fn describable(low: u64) -> Pfn {
    Pfn(low / 2 * (PAGE_SIZE / size_of::<Page<Lock>>()) as u64)
}

mod tests {
    use super::{Lock, PAGE_SIZE, Page, Pfn, describable, layout};
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};

    ktest! {
        /// However much memory there is, descriptors leave half of the direct map, and can be counted in bytes; and memory that
        /// is all in the direct map is all described.
        fn descriptors_leave_room_in_the_direct_map(_t: &TestContext) {
            for low in [0, 16 << 8, layout::DIRECT_END.0] {
                let end = describable(low);
                let bytes = end.0.checked_mul(size_of::<Page<Lock>>() as u64).ok_or("too many")?;
                ktest_assert!(bytes <= low / 2 * PAGE_SIZE as u64 && usize::try_from(bytes).is_ok(), "{bytes} for {end:?}");
                ktest_assert!(end >= Pfn(low), "{low} frames of low memory, {end:?}");
            }
            ktest_assert_eq!(describable(224 << 10), Pfn(7 << 20));
        }
    }
}
