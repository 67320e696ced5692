//! The page walker: translates as the SDM (3A, 4.5 to 4.10) lets hardware do it, and sets A and D.
//!
//! Rule: whatever is cached may be used, however old, since hardware may; a walk begins at any table that is cached.

use super::memory::{PhysicalMemory, SLOTS};
use super::mmu::{Mmu, frame_of};
use super::slot::Hardware;
use crate::address::{Pfn, PhysAddr, VirtAddr};
use crate::machine::FrameUse;
use crate::pgtable::{Entry, EntrySlot, Level, PagingMode};

/// The entry bits as hardware reads them, on purpose not by `mm`'s own names for them.
pub(super) mod hw {
    use crate::address::Pfn;
    use crate::pgtable::Entry;

    pub(in super::super) const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    pub(in super::super) const ACCESSED: u64 = 1 << 5;
    pub(in super::super) const DIRTY: u64 = 1 << 6;
    const LARGE: u64 = 1 << 7;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Of a present entry that CPUs latch, all bits but P, PWT, PCD, the ignored ones and the address (I39).
    const RESERVED_IN_LATCHED: u64 = !(PRESENT | 0b11 << 3 | 0b111 << 9 | ADDRESS);

    /// Whether a CPU refuses to latch `entry`.
    pub(in super::super) fn is_refused(entry: Entry) -> bool {
        is_present(entry) && entry.0 & RESERVED_IN_LATCHED != 0
    }

    pub(in super::super) fn pfn(entry: Entry) -> Pfn {
        Pfn((entry.0 & ADDRESS) >> 12)
    }

    pub(in super::super) fn is_present(entry: Entry) -> bool {
        entry.0 & PRESENT != 0
    }

    pub(super) fn is_large(entry: Entry) -> bool {
        entry.0 & LARGE != 0
    }

    pub(super) fn is_dirty(entry: Entry) -> bool {
        entry.0 & DIRTY != 0
    }

    /// Whether user code may so access the page, going by the rights of all levels folded into one entry.
    pub(super) fn allows(entry: Entry, write: bool) -> bool {
        entry.0 & USER != 0 && (!write || entry.0 & WRITE != 0)
    }

    /// `entry` with only those rights that `above`, the entry that led to its table, grants too.
    pub(super) fn fold(entry: Entry, above: Entry) -> Entry {
        Entry(entry.0 & (above.0 | !(WRITE | USER)) | above.0 & NO_EXECUTE)
    }

    /// Whether `cached` allows a store, or execution, that `current` does not.
    pub(in super::super) fn allows_more(cached: Entry, current: Entry) -> bool {
        allows(cached, true) && !allows(current, true) || current.0 & !cached.0 & NO_EXECUTE != 0
    }
}

/// Why an access did not reach memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WalkError {
    /// The CPU raises a page fault.
    PageFault,
    /// The walker read a frame that is no table.
    NotATable(Pfn),
    /// The walker found a leaf of another size than one that is cached for the address: (cached, found).
    MixedSizes(Level, Level),
}

/// Grants everything: what stands above the top table.
const NO_LEVEL_ABOVE: Entry = Entry(!hw::NO_EXECUTE);

/// What the architecture leaves to the walker.
pub(super) struct Whim<'p> {
    /// So many of the tables that the paging-structure cache holds for the address it passes over, from the nearest to the leaf
    /// on. With none left it begins at the top.
    pub(super) passed_over: usize,
    /// It caches the smallest translation for a leaf of whatever size.
    pub(super) fracture: bool,
    /// Called before it reads an entry.
    pub(super) pause: &'p dyn Fn(),
}

/// Translates `address` for an access, through the caches, and caches what it learns.
pub(super) fn translate<Mode: PagingMode>(
    memory: &PhysicalMemory<Mode::Slot>,
    mmu: &mut Mmu<Mode>,
    address: VirtAddr,
    write: bool,
    whim: &Whim<'_>,
) -> Result<Pfn, WalkError> {
    if let Some((level, leaf)) = mmu.translation(address) {
        if !hw::allows(leaf, write) {
            return Err(WalkError::PageFault);
        }
        if !write || hw::is_dirty(leaf) {
            return Ok(frame_of::<Mode>(level, leaf, address));
        }
        // The first store through this translation: D has to be set in the tables, so they are walked.
    }
    walk(memory, mmu, address, write, whim)
}

/// Walks the tables for `address` and caches what it learns, whether or not a translation is cached: hardware may, for it has
/// several TLBs and may walk ahead for each. A load leaves a translation that is there as it is.
pub(super) fn walk<Mode: PagingMode>(
    memory: &PhysicalMemory<Mode::Slot>,
    mmu: &mut Mmu<Mode>,
    address: VirtAddr,
    write: bool,
    whim: &Whim<'_>,
) -> Result<Pfn, WalkError> {
    if address >= Mode::USER_END {
        return Err(WalkError::PageFault);
    }
    let (mut level, mut table, mut above) = match mmu.tables(address).nth(whim.passed_over) {
        Some((level, entry)) => (below::<Mode>(level)?, hw::pfn(entry).into(), entry),
        None if Mode::LATCHED_TOP => {
            let entry = mmu.latched(Mode::index(Mode::TOP, address));
            let table = entry.filter(|entry| hw::is_present(*entry)).ok_or(WalkError::PageFault)?;
            (below::<Mode>(Mode::TOP)?, hw::pfn(table).into(), NO_LEVEL_ABOVE)
        }
        None => (Mode::TOP, mmu.top().ok_or(WalkError::PageFault)?, NO_LEVEL_ABOVE),
    };
    loop {
        if memory.frame_use(table.pfn()) != Some(use_of_table::<Mode>(level)) {
            return Err(WalkError::NotATable(table.pfn()));
        }
        (whim.pause)();
        let slot = memory.slots_of(table.pfn())[slot_index::<Mode>(table, level, address)].hardware();
        let (entry, is_leaf) = touch(slot, level, write, above)?;
        let folded = hw::fold(entry, above);
        if is_leaf {
            if let Some(cached) = mmu.other_size(level, address) {
                return Err(WalkError::MixedSizes(cached, level));
            }
            if write || mmu.translation(address).is_none() {
                let size = if whim.fracture { Level::Pte } else { level };
                mmu.cache_translation(memory, (level, size), address, folded);
            }
            return Ok(frame_of::<Mode>(level, folded, address));
        }
        // What is cached already stays, however old.
        if !mmu.has_table(level, address) {
            mmu.cache_table(memory, level, address, folded);
        }
        (level, table, above) = (below::<Mode>(level)?, hw::pfn(entry).into(), folded);
    }
}

/// What the tables say about `address` right now, without touching or caching anything.
pub(super) fn peek<Mode: PagingMode>(
    memory: &PhysicalMemory<Mode::Slot>,
    top: PhysAddr,
    address: VirtAddr,
) -> Option<(Level, Entry)> {
    let (mut level, mut table, mut above) = (Mode::TOP, top, NO_LEVEL_ABOVE);
    loop {
        let entry = memory.slots(table.pfn())?[slot_index::<Mode>(table, level, address)].hardware().load();
        if !hw::is_present(entry) {
            return None;
        }
        let folded = hw::fold(entry, above);
        if level == Level::Pte || hw::is_large(entry) {
            return Some((level, folded));
        }
        let rights = if Mode::LATCHED_TOP && level == Mode::TOP { NO_LEVEL_ABOVE } else { folded };
        (level, table, above) = (Mode::below(level)?, hw::pfn(entry).into(), rights);
    }
}

/// An address that the tables below `top` translate, or have a table for, by `roll`'s choice.
pub(super) fn mapped_address<Mode: PagingMode>(
    memory: &PhysicalMemory<Mode::Slot>,
    top: PhysAddr,
    mut roll: u64,
) -> Option<VirtAddr> {
    let (mut level, mut table, mut address) = (Mode::TOP, top, 0);
    loop {
        let count = Mode::entries(level);
        let slots = &memory.slots(table.pfn())?[slot_index::<Mode>(table, level, VirtAddr(0))..][..count];
        let first = roll as usize % count;
        roll = roll.rotate_right(9);
        let mut order = (first..count).chain(0..first).map(|index| (index, slots[index].hardware().load()));
        let Some((index, entry)) = order.find(|(_, entry)| hw::is_present(*entry)) else {
            return Some(VirtAddr(address)).filter(|_| level < Mode::TOP);
        };
        address |= (index as u64) << Mode::shift(level);
        if level == Level::Pte || hw::is_large(entry) {
            return Some(VirtAddr(address));
        }
        (level, table) = (Mode::below(level)?, hw::pfn(entry).into());
    }
}

/// The entries of the top table that the CPU keeps a copy of.
pub(super) fn to_latch<Mode: PagingMode>(memory: &PhysicalMemory<Mode::Slot>, top: PhysAddr) -> Vec<Entry> {
    let first = slot_index::<Mode>(top, Mode::TOP, VirtAddr(0));
    let slots = &memory.slots_of(top.pfn())[first..first + Mode::entries(Mode::TOP)];
    slots.iter().map(|slot| slot.hardware().load()).collect()
}

/// Which slot of its frame translates `address`: a small top table begins anywhere in its frame.
fn slot_index<Mode: PagingMode>(table: PhysAddr, level: Level, address: VirtAddr) -> usize {
    table.offset() / size_of::<u64>() + Mode::index(level, address)
}

/// What the frame of a table of `level` is used for.
fn use_of_table<Mode: PagingMode>(level: Level) -> FrameUse {
    let is_small = level == Mode::TOP && level > Level::Pmd && Mode::entries(level) < SLOTS;
    if is_small { FrameUse::Data } else { FrameUse::Table }
}

/// Reads an entry and sets its A bit, and D in a leaf for a store, atomically with the check that it is still the same.
fn touch<S: EntrySlot>(
    slot: Hardware<'_, S>,
    level: Level,
    write: bool,
    above: Entry,
) -> Result<(Entry, bool), WalkError> {
    let mut entry = slot.load();
    loop {
        if !hw::is_present(entry) {
            return Err(WalkError::PageFault);
        }
        let is_leaf = level == Level::Pte || hw::is_large(entry);
        if is_leaf && !hw::allows(hw::fold(entry, above), write) {
            return Err(WalkError::PageFault);
        }
        let touched = Entry(entry.0 | hw::ACCESSED | if is_leaf && write { hw::DIRTY } else { 0 });
        if touched == entry {
            return Ok((entry, is_leaf));
        }
        match slot.compare_exchange(entry, touched) {
            Ok(()) => return Ok((touched, is_leaf)),
            Err(current) => entry = current,
        }
    }
}

/// Below a PTE there is nothing: a table entry of a cache is never one.
fn below<Mode: PagingMode>(level: Level) -> Result<Level, WalkError> {
    Mode::below(level).ok_or(WalkError::PageFault)
}
