//! What a simulated machine catches: uses of memory that real hardware would have carried out, silently.

use crate::address::{Pfn, VirtAddr};
use crate::cpu::CpuId;
use crate::machine::FrameUse;
use crate::pgtable::Level;
use std::fmt;

/// A broken rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SimViolation {
    /// A user access went through a cached translation to a frame that no longer holds data, or other data (I29).
    StaleTranslation {
        /// Who accessed.
        cpu: CpuId,
        /// Which address.
        address: VirtAddr,
        /// Where it led.
        pfn: Pfn,
    },
    /// A CPU caches a large and a small translation of one address (I34).
    MixedSizes {
        /// Which CPU.
        cpu: CpuId,
        /// The address being translated.
        address: VirtAddr,
        /// The level of the leaf that was cached already.
        cached: Level,
        /// The level of the leaf just found.
        found: Level,
    },
    /// A load of a top table kept what was cached of a frame that has had another use since (I31).
    KeptStale {
        /// Who loaded.
        cpu: CpuId,
        /// Which address the cached entry is about.
        address: VirtAddr,
        /// Where it leads.
        pfn: Pfn,
    },
    /// A walk went through a frame that is not a table, or not any more (spec 8.1).
    WalkThroughNonTable {
        /// Whose walker.
        cpu: CpuId,
        /// The address being translated.
        address: VirtAddr,
        /// The frame taken for a table.
        pfn: Pfn,
    },
    /// A frame got another use while a CPU could still translate through it or to it (I30, I36).
    RetiredWhileCached {
        /// The frame.
        pfn: Pfn,
        /// What it was to become.
        becomes: FrameUse,
        /// Who has it cached.
        cpu: CpuId,
        /// As what.
        cached: Cached,
    },
    /// A frame got free while an entry of a live table names it.
    FreedWhileMapped {
        /// The frame.
        pfn: Pfn,
        /// The table that names it.
        table: Pfn,
        /// The entry's index there.
        index: usize,
    },
    /// A frame was freed twice, handed out while in use, or made a table without having been allocated.
    WrongTransition {
        /// The frame.
        pfn: Pfn,
        /// What it was; `None` if it was never given to the allocator.
        from: Option<FrameUse>,
        /// What it was to become.
        to: FrameUse,
    },
    /// A frame that is not a table was mapped or loaded as one.
    NotATable {
        /// The frame.
        pfn: Pfn,
    },
    /// A table or a free frame was zeroed or copied as data.
    NotData {
        /// The frame.
        pfn: Pfn,
    },
    /// A CPU can still translate an address that it must not know any more (I29).
    TranslationLeft {
        /// Which CPU.
        cpu: CpuId,
        /// The address.
        address: VirtAddr,
        /// Where it leads.
        pfn: Pfn,
    },
    /// A CPU was to latch a top table's entry with reserved bits set (I39).
    ReservedBits {
        /// Which CPU.
        cpu: CpuId,
        /// The entry's index.
        index: usize,
    },
    /// A CPU has latched a top table's entry that is another in memory, though all is quiet (I38).
    LatchedStale {
        /// Which CPU.
        cpu: CpuId,
        /// The entry's index.
        index: usize,
    },
    /// A CPU's cached translation allows more than the tables do, or leads elsewhere, though all is quiet.
    Incoherent {
        /// Which CPU.
        cpu: CpuId,
        /// The address.
        address: VirtAddr,
        /// Where it leads.
        pfn: Pfn,
    },
    /// The bytes of a frame of high memory were asked for, which only a mapping reaches.
    HighFrameAddressed {
        /// The frame.
        pfn: Pfn,
    },
    /// A table lies where walkers do not find it.
    TableOutOfReach {
        /// Its frame.
        pfn: Pfn,
    },
    /// A CPU has more mappings of PTE tables and high frames at once than it has places for.
    TooManyMappings {
        /// Which CPU.
        cpu: CpuId,
    },
    /// A mapping was ended that is not the last this CPU has made and not ended.
    UnmappedOutOfOrder {
        /// Which CPU.
        cpu: CpuId,
    },
    /// A CPU slept, or ended, with a mapping.
    MappingKept {
        /// Which CPU.
        cpu: CpuId,
    },
    /// `halt_until_kicked` with interrupts on: an interrupt before the halt would have been lost.
    HaltWithInterruptsOn {
        /// Which CPU.
        cpu: CpuId,
    },
    /// An interrupt for a CPU that nobody runs and that stopped with its interrupts off: it will never be taken.
    InterruptToDeafCpu {
        /// Which CPU.
        cpu: CpuId,
    },
    /// The fault handler says it has handled the fault, and the access still faults.
    EndlessFault {
        /// Which CPU.
        cpu: CpuId,
        /// The address.
        address: VirtAddr,
    },
}

/// What a CPU's caches hold of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cached {
    /// Its TLB translates an address to it.
    Translation(VirtAddr),
    /// Its paging-structure cache names it as the table below an entry of this level, for this address.
    Table(Level, VirtAddr),
    /// It is loaded as the top table.
    Top,
}

impl fmt::Display for SimViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated machine: {self:?}")
    }
}
