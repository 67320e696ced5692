//! What every part of physical memory is used for, as the firmware tells it and the kernel refines it.
//!
//! Rule: the map is checked once, here. Its regions are in ascending order; a region that is usable, or will be when the boot
//! loader is not needed any more, consists of whole frames and overlaps nothing; the CPU can reach all RAM. Everybody else may
//! rely on that.

use alloc::vec::Vec;
use core::fmt;

use mm::address::Pfn;
use mm::config::PAGE_SIZE;

/// Most regions there is room for, neighbours of one kind joined. Firmware of large machines names a few dozen.
pub const MAX_REGIONS: usize = 128;

/// Least usable memory, in bytes, with which the kernel comes up.
const MIN_USABLE: u64 = 16 << 20;

const PAGE: u64 = PAGE_SIZE as u64;

/// What a region is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Free for the kernel.
    Usable,
    /// The kernel image, and what the kernel has taken for good.
    Kernel,
    /// Used by the boot loader: free once its tables and hand-over structures are not needed any more.
    BootLoader,
    /// Tables and storage of the firmware, in RAM.
    Firmware,
    /// Not RAM, or not to be touched.
    Reserved,
}

impl RegionKind {
    /// Whether the region is RAM that the kernel may look at.
    fn is_ram(self) -> bool {
        self != Self::Reserved
    }

    /// Whether the kernel hands its frames out, now or later.
    fn becomes_usable(self) -> bool {
        matches!(self, Self::Usable | Self::BootLoader)
    }
}

/// A stretch of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address beyond.
    pub end: u64,
    /// What it is used for.
    pub kind: RegionKind,
}

impl Region {
    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The frames that lie completely inside.
    fn frames(&self) -> core::ops::Range<Pfn> {
        Pfn(self.start.div_ceil(PAGE))..Pfn(self.end / PAGE)
    }
}

/// What is wrong with a memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMapError {
    /// More regions than [`MAX_REGIONS`].
    TooManyRegions,
    /// Start and length of a region run over the end of the address space.
    Wraps {
        /// Its first address.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// RAM lies where this CPU cannot reach it.
    Unreachable(Region),
    /// A region that is or becomes usable overlaps another region.
    Overlap(Region, Region),
    /// There is only so much usable memory, in bytes.
    TooLittle(u64),
}

impl fmt::Display for MemoryMapError {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::TooManyRegions => write!(out, "the firmware's memory map has more than {MAX_REGIONS} regions"),
            Self::Wraps { start, bytes } => write!(out, "memory region at {start:#x} has an absurd length {bytes:#x}"),
            Self::Unreachable(region) => {
                write!(out, "memory up to {:#x} is more than this CPU can address", region.end)
            }
            Self::Overlap(one, other) => write!(
                out,
                "memory regions {:#x}..{:#x} ({:?}) and {:#x}..{:#x} ({:?}) overlap",
                one.start, one.end, one.kind, other.start, other.end, other.kind
            ),
            Self::TooLittle(bytes) => write!(out, "only {} KiB of memory are usable", bytes >> 10),
        }
    }
}

/// The physical memory of the machine: at most [`MAX_REGIONS`] regions, on the heap because kernel stacks are small.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    regions: Vec<Region>,
}

impl MemoryMap {
    /// Makes a map of what the firmware says: start, length in bytes and kind of each region, in any order. The CPU addresses
    /// memory up to `physical_end`.
    ///
    /// # Errors
    /// When the regions cannot be true, or leave too little memory.
    pub fn new(
        firmware: impl IntoIterator<Item = (u64, u64, RegionKind)>,
        physical_end: u64,
    ) -> Result<Self, MemoryMapError> {
        let mut map = Self { regions: Vec::with_capacity(MAX_REGIONS) };
        for (start, bytes, kind) in firmware.into_iter().filter(|(_, bytes, _)| *bytes > 0) {
            let end = start.checked_add(bytes).ok_or(MemoryMapError::Wraps { start, bytes })?;
            let region = whole_frames(Region { start, end, kind });
            if region.start >= region.end {
                continue;
            }
            if region.kind.is_ram() && region.end > physical_end {
                return Err(MemoryMapError::Unreachable(region));
            }
            map.append(region)?;
        }
        map.regions.sort_unstable_by_key(|region| (region.start, region.end));
        map.check_overlaps()?;
        let usable = map.usable_bytes();
        if usable < MIN_USABLE {
            return Err(MemoryMapError::TooLittle(usable));
        }
        Ok(map)
    }

    /// The regions in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// How much of the memory is usable, in bytes.
    pub fn usable_bytes(&self) -> u64 {
        let usable = self.regions().iter().filter(|region| region.kind == RegionKind::Usable);
        usable.map(|region| region.end - region.start).sum()
    }

    /// How much RAM there is, in bytes.
    pub fn ram_bytes(&self) -> u64 {
        self.ram().map(|frames| (frames.end.0 - frames.start.0) * PAGE).sum()
    }

    /// The frames of RAM, in ascending order, neighbours joined.
    pub fn ram(&self) -> impl Iterator<Item = core::ops::Range<Pfn>> {
        let mut regions = self.regions().iter().filter(|region| region.kind.is_ram()).peekable();
        core::iter::from_fn(move || {
            let mut frames = regions.next()?.frames();
            while let Some(next) = regions.next_if(|next| next.frames().start <= frames.end) {
                frames.end = frames.end.max(next.frames().end);
            }
            Some(frames)
        })
        .filter(|frames| frames.start < frames.end)
    }

    /// First frame above all RAM.
    pub fn end(&self) -> Pfn {
        self.ram().last().map_or(Pfn(0), |frames| frames.end)
    }

    /// Notes that the kernel has taken these frames for good: they are neither usable nor the boot loader's any more.
    ///
    /// # Errors
    /// Too many regions.
    pub fn claim(&mut self, frames: core::ops::Range<Pfn>) -> Result<(), MemoryMapError> {
        // An empty claim would split the region around it.
        if frames.is_empty() {
            return Ok(());
        }
        let claimed = Region { start: frames.start.address(), end: frames.end.address(), kind: RegionKind::Kernel };
        let mut index = 0;
        while let Some(&region) = self.regions().get(index) {
            if region.kind.becomes_usable() && region.overlaps(&claimed) {
                let start = region.start.max(claimed.start);
                let end = region.end.min(claimed.end);
                self.regions[index] = Region { start, end, ..claimed };
                if end < region.end {
                    self.insert(index + 1, Region { start: end, ..region })?;
                }
                if region.start < start {
                    self.insert(index, Region { end: start, ..region })?;
                    index += 1;
                }
            }
            index += 1;
        }
        Ok(())
    }

    /// Makes the boot loader's memory usable: its tables and structures are not needed any more.
    pub fn release_boot_loader(&mut self) {
        for region in &mut self.regions {
            if region.kind == RegionKind::BootLoader {
                region.kind = RegionKind::Usable;
            }
        }
    }

    /// Adds a region at the end, or to the last one if they make one.
    fn append(&mut self, region: Region) -> Result<(), MemoryMapError> {
        match self.regions.last_mut() {
            Some(last) if last.kind == region.kind && last.end == region.start => {
                last.end = region.end;
                Ok(())
            }
            _ => self.insert(self.regions.len(), region),
        }
    }

    fn insert(&mut self, index: usize, region: Region) -> Result<(), MemoryMapError> {
        if self.regions.len() == MAX_REGIONS {
            return Err(MemoryMapError::TooManyRegions);
        }
        self.regions.insert(index, region);
        Ok(())
    }

    fn check_overlaps(&self) -> Result<(), MemoryMapError> {
        for (index, one) in self.regions().iter().enumerate() {
            // Ascending by start: whatever overlaps comes before the first that starts beyond.
            for other in self.regions()[index + 1..].iter().take_while(|other| other.start < one.end) {
                if one.kind.becomes_usable() || other.kind.becomes_usable() {
                    return Err(MemoryMapError::Overlap(*one, *other));
                }
            }
        }
        Ok(())
    }
}

/// The region reduced to whole frames if the kernel will hand them out.
fn whole_frames(region: Region) -> Region {
    if !region.kind.becomes_usable() {
        return region;
    }
    let frames = region.frames();
    Region { start: frames.start.address(), end: frames.end.address(), ..region }
}

#[cfg(test)]
mod tests {
    use super::{MAX_REGIONS, MemoryMap, MemoryMapError, Region, RegionKind};
    use RegionKind::{BootLoader, Firmware, Kernel, Reserved, Usable};
    use mm::address::Pfn;

    const MIB: u64 = 1 << 20;
    const PHYSICAL_END: u64 = 1 << 40;

    fn map(regions: &[(u64, u64, RegionKind)]) -> Result<MemoryMap, MemoryMapError> {
        MemoryMap::new(regions.iter().copied(), PHYSICAL_END)
    }

    /// Regions come out in order, usable ones in whole frames, empty ones not at all.
    #[test]
    fn regions_are_put_in_order() {
        let map = map(&[(2 * MIB, 64 * MIB, Usable), (MIB, 0, Usable), (0x100, 0x2000, Usable), (0, 0x100, Firmware)])
            .unwrap();
        assert_eq!(
            map.regions(),
            &[
                Region { start: 0, end: 0x100, kind: Firmware },
                Region { start: 0x1000, end: 0x2000, kind: Usable },
                Region { start: 2 * MIB, end: 66 * MIB, kind: Usable },
            ]
        );
        assert_eq!(map.usable_bytes(), 64 * MIB + 0x1000);
    }

    /// Maps that cannot be true are refused, each with its own error.
    #[test]
    fn absurd_maps_are_refused() {
        assert_eq!(map(&[]).err(), Some(MemoryMapError::TooLittle(0)));
        assert_eq!(map(&[(MIB, MIB, Usable)]).err(), Some(MemoryMapError::TooLittle(MIB)));
        assert_eq!(map(&[(MIB, u64::MAX, Usable)]).err(), Some(MemoryMapError::Wraps { start: MIB, bytes: u64::MAX }));
        for end in [1 << 52, PHYSICAL_END] {
            assert!(matches!(map(&[(end, 64 * MIB, Usable)]), Err(MemoryMapError::Unreachable(_))));
        }
        assert!(matches!(map(&[(0, 64 * MIB, Usable), (63 * MIB, 2 * MIB, Usable)]), Err(MemoryMapError::Overlap(..))));
        assert!(matches!(
            map(&[(0, 64 * MIB, Usable), (MIB, 0x1000, Reserved), (2 * MIB, MIB, Reserved)]),
            Err(MemoryMapError::Overlap(..))
        ));
        // What the boot loader uses is usable later: the same holds for it.
        let usable = (0, 64 * MIB, Usable);
        for other in [Reserved, Firmware, BootLoader] {
            let overlapping = [usable, (64 * MIB, 2 * MIB, BootLoader), (65 * MIB, 2 * MIB, other)];
            assert!(matches!(map(&overlapping), Err(MemoryMapError::Overlap(..))), "{other:?}");
        }
        for kind in [BootLoader, Firmware] {
            assert!(matches!(map(&[usable, (PHYSICAL_END, MIB, kind)]), Err(MemoryMapError::Unreachable(_))));
        }
        assert!(map(&[usable, (PHYSICAL_END, MIB, Reserved)]).is_ok(), "what is no RAM may lie anywhere");
        let many = (0..=MAX_REGIONS as u64).map(|number| (number * MIB, MIB / 2, Usable));
        assert_eq!(MemoryMap::new(many, PHYSICAL_END).err(), Some(MemoryMapError::TooManyRegions));
    }

    /// Neighbours of one kind become one region: firmware splits memory finely.
    #[test]
    fn neighbours_are_joined() {
        let map = MemoryMap::new((0..4 * MAX_REGIONS as u64).map(|number| (number * MIB, MIB, Usable)), PHYSICAL_END)
            .unwrap();
        assert_eq!(map.regions(), &[Region { start: 0, end: 4 * MAX_REGIONS as u64 * MIB, kind: Usable }]);
    }

    /// Reserved regions may overlap each other, as they do on real machines.
    #[test]
    fn reserved_regions_may_overlap() {
        assert!(map(&[(0, 64 * MIB, Usable), (65 * MIB, 2 * MIB, Reserved), (66 * MIB, MIB, Firmware)]).is_ok());
    }

    /// Claiming takes exactly the claimed frames, across the borders of regions, and leaves the rest usable.
    #[test]
    fn a_claim_splits_regions() {
        let mut map =
            map(&[(0, 32 * MIB, Usable), (32 * MIB, MIB, Reserved), (33 * MIB, 32 * MIB, BootLoader)]).unwrap();
        map.claim(Pfn::containing(16 * MIB)..Pfn::containing(34 * MIB)).unwrap();
        let expected = [(0, 16, Usable), (16, 32, Kernel), (32, 33, Reserved), (33, 34, Kernel), (34, 65, BootLoader)];
        assert!(
            map.regions()
                .iter()
                .zip(expected)
                .all(|(region, (start, end, kind))| { *region == Region { start: start * MIB, end: end * MIB, kind } }),
            "{:?}",
            map.regions()
        );
        map.claim(Pfn::containing(MIB)..Pfn::containing(2 * MIB)).unwrap();
        assert_eq!(map.regions().len(), 7);
        map.claim(Pfn::containing(4 * MIB)..Pfn::containing(4 * MIB)).unwrap();
        assert_eq!(map.regions().len(), 7, "nothing is claimed, nothing is split");
        map.release_boot_loader();
        assert_eq!(map.usable_bytes(), (15 + 31) * MIB);
    }

    /// RAM is what may be looked at, with neighbours joined whatever they are used for.
    #[test]
    fn ram_joins_neighbours() {
        let map = map(&[
            (0, MIB / 2, Usable),
            (MIB, 32 * MIB, Usable),
            (33 * MIB, MIB, Kernel),
            (34 * MIB, MIB, Reserved),
            (35 * MIB, MIB, Firmware),
        ])
        .unwrap();
        let frame = |mib: u64| Pfn::containing(mib * MIB);
        let mut ram = map.ram();
        assert_eq!(ram.next(), Some(Pfn(0)..Pfn(128)));
        assert_eq!(ram.next(), Some(frame(1)..frame(34)));
        assert_eq!(ram.next(), Some(frame(35)..frame(36)));
        assert_eq!(ram.next(), None);
        assert_eq!(map.end(), frame(36));
    }
}
