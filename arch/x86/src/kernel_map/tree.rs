//! A tree of page tables: building it, adding to it, looking things up in it.
//!
//! The kernel's tree is built through the loader's mapping of physical memory and used through its own direct map; a
//! [`KernelMap`] knows which of the two it goes by. Rule: entries are only accessed as atomics.

use core::ops::Range;

use bitflags::bitflags;
use mm::address::Pfn;
use mm::config::{PAGE_SHIFT, PAGE_SIZE};
use mm::pgtable::{Entry, EntrySlot, Level, PagingMode};

use super::{FrameSource, MapError, Rights, Slot};
use crate::bits::memory;
use crate::cpu::{self, Features};
use crate::layout::{self, Mode, STACK_BYTES, StackSlot};
use crate::paging;

/// Pages of a stack.
const STACK_PAGES: usize = STACK_BYTES / PAGE_SIZE;

bitflags! {
    /// Bits of an entry (Intel SDM vol. 3, 4.4 and 4.5).
    #[derive(Clone, Copy)]
    struct Bits: u64 {
        const PRESENT = 1 << 0;
        const WRITABLE = 1 << 1;
        const USER = 1 << 2;
        const WRITE_THROUGH = 1 << 3;
        const NO_CACHE = 1 << 4;
        const ACCESSED = 1 << 5;
        const DIRTY = 1 << 6;
        const HUGE_PAGE = 1 << 7;
        const GLOBAL = 1 << 8;
        const NO_EXECUTE = 1 << 63;
    }
}

/// A leaf of the tree, with the rights of all the levels above it taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: usize,
    /// Length in bytes: 4 KiB, 2 MiB or 1 GiB.
    pub bytes: usize,
    /// First frame.
    pub frame: Pfn,
    /// The kernel may write.
    pub writable: bool,
    /// The kernel may execute.
    pub executable: bool,
    /// Reachable from ring 3.
    pub user: bool,
}

impl Mapping {
    /// The frame that holds `address`, which lies in the mapping.
    #[must_use]
    pub fn frame_of(&self, address: usize) -> Pfn {
        Pfn(self.frame.0 + ((address - self.start) >> PAGE_SHIFT) as u64)
    }
}

/// A tree of page tables, and how to reach its tables.
#[derive(Debug)]
pub struct KernelMap {
    top: Pfn,
    /// Where physical address 0 is mapped.
    access: usize,
}

impl KernelMap {
    /// The tree this CPU uses now, with physical memory mapped at `access`.
    ///
    /// # Safety
    /// All of the tree's tables must be reachable there for as long as the value is used, and be changed by nobody
    /// meanwhile, except through another `KernelMap`.
    #[must_use]
    pub unsafe fn loaded(access: usize) -> Self {
        Self { top: Pfn::containing(paging::root() as u64), access }
    }

    /// The tree of the top table `top`, with physical memory mapped at `access`.
    ///
    /// # Safety
    /// As [`KernelMap::loaded`].
    pub(super) unsafe fn of(top: Pfn, access: usize) -> Self {
        Self { top, access }
    }

    /// The top table.
    #[must_use]
    pub fn top(&self) -> Pfn {
        self.top
    }

    /// The entries of the top table.
    #[must_use]
    pub fn top_entries(&self) -> &[Slot] {
        self.table(self.top, Level::Pgd)
    }

    /// A new tree: nothing is mapped, but every window has its tables of [`layout::SHARED`]. The direct map needs them for its
    /// first `direct_bytes` bytes.
    ///
    /// # Errors
    /// Out of frames.
    ///
    /// # Safety
    /// All that `frames` gives must be mapped at `access` for as long as the tree is built.
    pub unsafe fn new(access: usize, direct_bytes: usize, frames: &mut dyn FrameSource) -> Result<Self, MapError> {
        let map = Self { top: frames.take().ok_or(MapError::OutOfFrames)?, access };
        map.clear(map.top, Level::Pgd);
        let span = Mode::entries(layout::SHARED) << Mode::shift(layout::SHARED);
        for window in layout::WINDOWS {
            let bytes = if window == layout::DIRECT_MAP { direct_bytes } else { window.bytes };
            for offset in (0..bytes).step_by(span) {
                map.slot(window.start + offset, layout::SHARED, frames)?;
            }
        }
        memory::prepare(&map, frames)?;
        Ok(map)
    }

    /// Maps consecutive frames from `start` on, with the largest pages that fit.
    ///
    /// # Errors
    /// Out of frames, or something is mapped there; what was mapped until then stays.
    pub fn map(
        &self,
        start: usize,
        range: Range<Pfn>,
        rights: Rights,
        frames: &mut dyn FrameSource,
    ) -> Result<(), MapError> {
        let (mut at, mut physical, end) = (start, range.start.address(), range.end.address());
        while physical < end {
            let level = largest_leaf(at, physical, end - physical);
            let slot = self.slot(at, level, frames)?;
            if !slot.load().is_none() {
                return Err(MapError::Occupied(at));
            }
            slot.store(leaf(Pfn::containing(physical), level, rights));
            at += 1 << Mode::shift(level);
            physical += 1 << Mode::shift(level);
        }
        Ok(())
    }

    /// Makes one frame of the direct map read-only, splitting the large page it may lie in. Only before activation:
    /// nobody's cached translation is flushed.
    ///
    /// # Errors
    /// Out of frames, or the frame is not in the direct map.
    pub fn seal_direct(&self, frame: Pfn, frames: &mut dyn FrameSource) -> Result<(), MapError> {
        let at = layout::direct(frame);
        let mut level = Level::Pgd;
        let mut table = self.table(self.top, Level::Pgd);
        loop {
            let slot = &table[index(level, at)];
            let entry = slot.load();
            if !entry.is_present() {
                return Err(MapError::Unmapped(at));
            }
            let Some(below) = Mode::below(level) else {
                slot.store(leaf(frame, level, Rights::ReadOnly));
                return Ok(());
            };
            if entry.is_huge() {
                let smaller = self.new_table(below, frames)?;
                let pages = 1 << (Mode::shift(below) - PAGE_SHIFT);
                for (number, part) in (0_u64..).zip(self.table(smaller, below)) {
                    part.store(leaf(Pfn(entry.pfn().0 + number * pages), below, Rights::Data));
                }
                slot.store(table_entry(smaller, level));
            }
            table = self.table(slot.load().pfn(), below);
            level = below;
        }
    }

    /// The mapping that `address` lies in.
    #[must_use]
    pub fn lookup(&self, address: usize) -> Option<Mapping> {
        let mut level = Level::Pgd;
        let mut table = self.top;
        let mut path = Path::TOP;
        loop {
            let entry = self.table(table, level)[index(level, address)].load();
            if !entry.is_present() {
                return None;
            }
            path = path.through(entry, level);
            match Mode::below(level).filter(|_| !entry.is_huge()) {
                Some(below) => (table, level) = (entry.pfn(), below),
                None => return Some(path.mapping(address, level, entry.pfn())),
            }
        }
    }

    /// Shows every mapping of the tree, in ascending order of addresses.
    pub fn for_each(&self, show: &mut dyn FnMut(Mapping)) {
        self.for_each_below(self.top, Level::Pgd, 0, Path::TOP, show);
    }

    fn for_each_below(&self, table: Pfn, level: Level, start: usize, path: Path, show: &mut dyn FnMut(Mapping)) {
        for (number, slot) in self.table(table, level).iter().enumerate() {
            let entry = slot.load();
            if !entry.is_present() {
                continue;
            }
            let start = canonical(start + (number << Mode::shift(level)));
            let path = path.through(entry, level);
            match Mode::below(level).filter(|_| !entry.is_huge()) {
                Some(below) => self.for_each_below(entry.pfn(), below, start, path, show),
                None => show(path.mapping(start, level, entry.pfn())),
            }
        }
    }

    /// Maps a stack and returns its top.
    ///
    /// # Errors
    /// Out of frames, or the slot has its stack already; no frame but that of a table is kept then.
    pub fn map_stack(&self, slot: StackSlot, frames: &mut dyn FrameSource) -> Result<usize, MapError> {
        // One PTE table holds the whole slot, so that nothing can fail once frames are put in.
        let first = self.slot(slot.bottom(), Level::Pte, frames)?;
        if !first.load().is_none() {
            return Err(MapError::Occupied(slot.bottom()));
        }
        let mut stack = [None; STACK_PAGES];
        for page in &mut stack {
            *page = frames.take();
        }
        if stack.contains(&None) {
            stack.into_iter().flatten().rev().for_each(|frame| frames.give_back(frame));
            return Err(MapError::OutOfFrames);
        }
        for (page, frame) in stack.into_iter().flatten().enumerate() {
            let at = slot.bottom() + page * PAGE_SIZE;
            self.slot(at, Level::Pte, frames)?.store(leaf(frame, Level::Pte, Rights::Data));
        }
        Ok(slot.top())
    }

    /// The slot of `level` for `address`; missing tables above it are made.
    pub(crate) fn slot(&self, address: usize, level: Level, frames: &mut dyn FrameSource) -> Result<&Slot, MapError> {
        let mut table = self.table(self.top, Level::Pgd);
        let mut here = Level::Pgd;
        while here != level {
            let slot = &table[index(here, address)];
            let mut entry = slot.load();
            if entry.is_huge() {
                return Err(MapError::Occupied(address));
            }
            let below = Mode::below(here).ok_or(MapError::Occupied(address))?;
            if entry.is_none() {
                entry = table_entry(self.new_table(below, frames)?, here);
                slot.store(entry);
            }
            (table, here) = (self.table(entry.pfn(), below), below);
        }
        Ok(&table[index(level, address)])
    }

    fn new_table(&self, level: Level, frames: &mut dyn FrameSource) -> Result<Pfn, MapError> {
        let frame = frames.take().ok_or(MapError::OutOfFrames)?;
        self.clear(frame, level);
        Ok(frame)
    }

    fn clear(&self, table: Pfn, level: Level) {
        for slot in self.table(table, level) {
            slot.store(Entry::NONE);
        }
    }

    fn table(&self, frame: Pfn, level: Level) -> &[Slot] {
        let address = self.access + frame.address() as usize;
        // SAFETY: the frame is a table of this tree, or comes from a `FrameSource` and is about to be one; `new`, `of` and
        // `loaded` demand that it is mapped here. Slots are atomics, so the CPU may write them too.
        unsafe { core::slice::from_raw_parts(address as *const Slot, Mode::entries(level)) }
    }
}

fn index(level: Level, address: usize) -> usize {
    address >> Mode::shift(level) & (Mode::entries(level) - 1)
}

/// The highest level at which a leaf for `at` is aligned on both sides and no longer than `bytes`.
fn largest_leaf(at: usize, physical: u64, bytes: u64) -> Level {
    let fits = |level: Level| {
        let span = Mode::entry_span(level);
        (at as u64 | physical).is_multiple_of(span) && bytes >= span
    };
    if cpu::features().contains(Features::GIGABYTE_PAGES) && fits(Level::Pud) {
        Level::Pud
    } else if fits(Level::Pmd) {
        Level::Pmd
    } else {
        Level::Pte
    }
}

/// A pointer to a table of the kernel half. What may be done is decided at the leaf.
fn table_entry(table: Pfn, level: Level) -> Entry {
    let rights = if is_bare(level) { Bits::empty() } else { Bits::WRITABLE | Bits::ACCESSED };
    Entry(table.address() | (Bits::PRESENT | rights).bits())
}

/// Whether bits for rights are reserved in entries of `level` (I39).
fn is_bare(level: Level) -> bool {
    layout::BARE_TOP && level == Level::Pgd
}

/// A global leaf, already accessed and dirty, so that the CPU never writes to it.
pub(super) fn leaf(frame: Pfn, level: Level, rights: Rights) -> Entry {
    let mut bits = Bits::PRESENT | Bits::ACCESSED | Bits::GLOBAL;
    if level != Level::Pte {
        bits |= Bits::HUGE_PAGE;
    }
    if matches!(rights, Rights::Data | Rights::Device) {
        bits |= Bits::WRITABLE | Bits::DIRTY;
    }
    if rights == Rights::Device {
        // Entry 3 of the page-attribute table as it is after reset: uncached, whatever the range registers say.
        bits |= Bits::NO_CACHE | Bits::WRITE_THROUGH;
    }
    if rights != Rights::Code && cpu::has_no_execute() {
        bits |= Bits::NO_EXECUTE;
    }
    Entry(frame.address() | bits.bits())
}

/// The entries from the top table down to a leaf, taken together.
#[derive(Clone, Copy)]
struct Path {
    /// Bits set at every level: what is allowed only if all levels allow it.
    every: u64,
    /// Bits set at some level: what is forbidden as soon as one level forbids it.
    some: u64,
}

impl Path {
    const TOP: Self = Self { every: u64::MAX, some: 0 };

    fn through(self, entry: Entry, level: Level) -> Self {
        if is_bare(level) {
            return self;
        }
        Self { every: self.every & entry.0, some: self.some | entry.0 }
    }

    /// The mapping that `address` lies in, where the path ends at `level` in a leaf for `frame`.
    fn mapping(self, address: usize, level: Level, frame: Pfn) -> Mapping {
        let bytes = 1 << Mode::shift(level);
        Mapping {
            start: address & !(bytes - 1),
            bytes,
            frame,
            writable: self.every & Bits::WRITABLE.bits() != 0,
            executable: self.some & Bits::NO_EXECUTE.bits() == 0,
            user: self.every & Bits::USER.bits() != 0,
        }
    }
}

/// Extends the highest bit that is translated upwards.
fn canonical(address: usize) -> usize {
    let unused = usize::BITS - Mode::shift(Level::Pgd) - Mode::entries(Level::Pgd).ilog2();
    ((address << unused) as isize >> unused) as usize
}
