//! Frames until `mm` takes over: handed out one by one from the bottom, in blocks from the top.
//!
//! Rule: nothing comes from the first MiB, except for what must lie there (the start of application processors), and
//! nothing from beyond what the loader's tables map while they are in use, and the direct map afterwards.

use core::ops::Range;

use arch_x86::kernel_map::FrameSource;
use arch_x86::layout;
use mm::address::Pfn;
use spin::Mutex;

use handover::memory_map::{MemoryMap, MemoryMapError, Region, RegionKind};

/// End of the memory that real mode reaches.
const LOW_END: Pfn = Pfn::containing(1 << 20);

/// The allocator between boot and `mm`.
static FRAMES: Mutex<Option<BootFrames>> = Mutex::new(None);

/// Memory of which frames are taken one by one, in ascending order.
pub struct BootFrames {
    memory: MemoryMap,
    /// Usable frames below are taken.
    next: Pfn,
    /// Frames from here on are not mapped yet.
    reach: Pfn,
}

impl BootFrames {
    /// All usable memory above the first MiB, as far as `reach`, and no further than the direct map will show it.
    pub fn new(memory: MemoryMap, reach: Pfn) -> Self {
        Self { memory, next: LOW_END, reach: reach.min(layout::DIRECT_END) }
    }

    /// All of the direct map is mapped now.
    pub fn lift_reach(&mut self) {
        self.reach = layout::DIRECT_END;
    }

    /// The memory these frames come from.
    pub fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    /// How many frames are left that the direct map shows.
    pub fn left(&self) -> u64 {
        let regions = self.memory.regions().iter().filter(|region| is_usable(region));
        regions.map(|region| end(region).min(self.reach).0.saturating_sub(start(region).max(self.next).0)).sum()
    }

    /// Takes `count` consecutive frames for good, as far up as possible.
    pub fn take_block(&mut self, count: u64) -> Option<Pfn> {
        self.take_from(count, self.next..self.reach)
    }

    /// Takes `count` consecutive frames below 1 MiB for good. Never frame 0: the firmware keeps its vectors there.
    pub fn take_low(&mut self, count: u64) -> Option<Pfn> {
        self.take_from(count, Pfn(1)..LOW_END)
    }

    /// Ends the boot's allocations. What is usable in the map returned is exactly what is free.
    ///
    /// # Errors
    /// The map has become too fragmented.
    pub fn hand_over(self) -> Result<MemoryMap, MemoryMapError> {
        let mut memory = self.memory;
        while let Some(region) = memory.regions().iter().find(|region| is_usable(region) && start(region) < self.next) {
            memory.claim(start(region)..end(region).min(self.next))?;
        }
        memory.release_boot_loader();
        while let Some(region) = memory.regions().iter().find(|region| is_usable(region) && start(region) < LOW_END) {
            memory.claim(start(region)..end(region).min(LOW_END))?;
        }
        Ok(memory)
    }

    fn take_from(&mut self, count: u64, within: Range<Pfn>) -> Option<Pfn> {
        let block = self.memory.regions().iter().rev().filter(|region| is_usable(region)).find_map(|region| {
            let last = end(region).min(within.end).0.checked_sub(count)?;
            (last >= start(region).max(within.start).0).then_some(Pfn(last))
        })?;
        self.memory.claim(block..Pfn(block.0 + count)).ok()?;
        Some(block)
    }
}

// SAFETY: usable memory is RAM that the firmware and the loader have given up; `next` passes each frame once, and
// blocks are claimed. `reach` ends what the loader maps, and after that what the direct map shows.
unsafe impl FrameSource for BootFrames {
    fn take(&mut self) -> Option<Pfn> {
        let region = self.memory.regions().iter().find(|region| is_usable(region) && end(region) > self.next)?;
        let frame = start(region).max(self.next);
        if frame >= self.reach {
            return None;
        }
        self.next = Pfn(frame.0 + 1);
        Some(frame)
    }

    fn give_back(&mut self, frame: Pfn) {
        self.next = frame;
    }
}

/// Makes `frames` what [`lend`] lends.
pub fn install(frames: BootFrames) {
    *FRAMES.lock() = Some(frames);
}

/// Lends the allocator to `work`. `None` once `mm` has taken over.
pub fn lend<R>(work: impl FnOnce(&mut BootFrames) -> R) -> Option<R> {
    FRAMES.lock().as_mut().map(work)
}

/// Takes the allocator away for good: from now on `mm` gives out frames. `None` if that has happened before.
pub fn take_over() -> Option<BootFrames> {
    FRAMES.lock().take()
}

fn is_usable(region: &Region) -> bool {
    region.kind == RegionKind::Usable
}

fn start(region: &Region) -> Pfn {
    Pfn::containing(region.start)
}

fn end(region: &Region) -> Pfn {
    Pfn::containing(region.end)
}

mod tests {
    use super::{BootFrames, LOW_END, Pfn};
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
    use arch_x86::kernel_map::FrameSource;
    use arch_x86::layout;
    use handover::memory_map::{MemoryMap, RegionKind};
    use mm::config::PAGE_SIZE;

    const MIB: u64 = 1 << 20;
    const PHYSICAL_END: u64 = 1 << 40;

    /// 640 KiB, then 1..2 MiB, a hole, and 4..68 MiB of which the first MiB is the loader's.
    fn frames(reach: Pfn) -> Result<BootFrames, super::MemoryMapError> {
        let map = MemoryMap::new(
            [
                (0, 640 << 10, RegionKind::Usable),
                (MIB, MIB, RegionKind::Usable),
                (2 * MIB, 2 * MIB, RegionKind::Reserved),
                (4 * MIB, MIB, RegionKind::BootLoader),
                (5 * MIB, 63 * MIB, RegionKind::Usable),
            ],
            PHYSICAL_END,
        )?;
        Ok(BootFrames::new(map, reach))
    }

    fn at(mib: u64) -> Pfn {
        Pfn::containing(mib * MIB)
    }

    ktest! {
        /// Single frames come in ascending order, skip what is not usable, and end where the loader's map ends.
        fn frames_ascend_within_reach(_t: &TestContext) {
            let mut frames = frames(at(6))?;
            let mut expected = (at(1).0..at(2).0).chain(at(5).0..at(6).0).map(Pfn);
            while let Some(frame) = frames.take() {
                ktest_assert_eq!(Some(frame), expected.next());
            }
            ktest_assert_eq!(expected.next(), None);
            frames.lift_reach();
            ktest_assert_eq!(frames.take(), Some(at(6)));
        }

        /// What the loader maps and the direct map will not show is no place for the kernel's tables, not even while the loader's
        /// are in use.
        #[only("PAE")]
        fn frames_end_with_the_direct_map(_t: &TestContext) {
            let beyond = layout::DIRECT_END;
            let low = (MIB, MIB, RegionKind::Usable);
            let map = MemoryMap::new([low, (beyond.address(), 64 * MIB, RegionKind::Usable)], PHYSICAL_END)?;
            let mut frames = BootFrames::new(map, Pfn(beyond.0 + 256));
            ktest_assert_eq!(frames.left(), 256);
            while let Some(frame) = frames.take() {
                ktest_assert!(frame < beyond, "{frame:?} is not in the direct map");
            }
            ktest_assert_eq!((frames.left(), frames.take_block(1)), (0, None));
        }

        /// A frame given back is given out again, also across a hole in the map.
        fn a_frame_given_back_is_reused(_t: &TestContext) {
            let mut frames = frames(at(68))?;
            let last_before_hole = (at(1).0..at(2).0).filter_map(|_| frames.take()).last();
            let first_after = frames.take();
            ktest_assert_eq!((last_before_hole, first_after), (Some(Pfn(at(2).0 - 1)), Some(at(5))));
            for frame in [first_after, last_before_hole].into_iter().flatten() {
                frames.give_back(frame);
            }
            ktest_assert_eq!(frames.take(), last_before_hole);
            ktest_assert_eq!(frames.take(), first_after);
        }

        /// Blocks come from the top, low blocks from below 640 KiB, and neither is handed on.
        fn blocks_are_claimed(_t: &TestContext) {
            let mut frames = frames(at(68))?;
            ktest_assert_eq!(frames.take_block(256), Some(at(67)));
            ktest_assert_eq!(frames.take_block(1 << 20), None);
            ktest_assert_eq!(frames.take_low(4), Some(Pfn(156)));
            ktest_assert_eq!(frames.take_low(200), None);
            ktest_assert_eq!(frames.hand_over()?.usable_bytes(), (1 + 62 + 1) * MIB);
        }

        /// What is handed over is every frame above 1 MiB that nobody took, the loader's included.
        fn the_rest_is_handed_over(_t: &TestContext) {
            let mut frames = frames(at(68))?;
            let taken = (0..300).filter(|_| frames.take().is_some()).count() as u64;
            let memory = frames.hand_over()?;
            ktest_assert_eq!(memory.usable_bytes(), 65 * MIB - taken * PAGE_SIZE as u64);
            let low = memory.regions().iter().filter(|region| super::is_usable(region));
            ktest_assert!(low.clone().all(|region| super::start(region) >= LOW_END));
        }
    }
}
