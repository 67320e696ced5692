//! Paging modes: how many levels, how wide, and what an entry is made of.
//!
//! Rule: nothing in `mm` assumes a number of entries at any level; it asks the mode. Levels a mode folds away do not
//! appear in `below`, so a walk never meets them.

use super::entry::{Entry, EntrySlot, Slot64};
use super::slot_pae::SlotPae;
use crate::address::VirtAddr;

/// A level of the page table, by Linux's names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Entries map pages.
    Pte,
    /// Entries point to PTE tables.
    Pmd,
    /// Entries point to PMD tables.
    Pud,
    /// Entries point to PUD tables; folded except with five levels.
    P4d,
    /// The top table of the deeper modes.
    Pgd,
}

/// A format of page tables.
pub trait PagingMode: 'static {
    /// The memory location of an entry.
    type Slot: EntrySlot;
    /// The mode's name in logs.
    const NAME: &'static str;
    /// The level of the top table; at least [`Level::Pmd`].
    const TOP: Level;
    /// First address beyond the user half.
    const USER_END: VirtAddr;
    /// Entries of the top table that have their tables from its creation on.
    const PREALLOCATED: usize = 0;
    /// CPUs copy the top table's entries when they load it, so a changed one counts only after it is loaded again.
    const LATCHED_TOP: bool = false;

    /// Number of entries of a table of `level`.
    fn entries(level: Level) -> usize;
    /// log2 of the bytes one entry of a table of `level` covers.
    fn shift(level: Level) -> u32;
    /// The level of the tables that entries of `level` point to; `None` below the PTE level.
    fn below(level: Level) -> Option<Level>;

    /// What hardware wants of `entry` in a table of `level`.
    fn to_hardware(_level: Level, entry: Entry) -> Entry {
        entry
    }

    /// The inverse of [`to_hardware`](Self::to_hardware); what that cannot have made is neither none nor well formed.
    fn from_hardware(_level: Level, entry: Entry) -> Entry {
        entry
    }

    /// Bytes one entry of a table of `level` covers.
    fn entry_span(level: Level) -> u64 {
        1 << Self::shift(level)
    }

    /// Index of the entry for `address` in a table of `level`.
    fn index(level: Level, address: VirtAddr) -> usize {
        (address.0 >> Self::shift(level)) as usize & (Self::entries(level) - 1)
    }
}

/// All of a paging mode but its entries, as another mode has it.
#[cfg(all(any(test, feature = "sim"), not(loom)))]
macro_rules! shaped_as {
    ($mode:ident) => {
        const NAME: &'static str = $mode::NAME;
        const TOP: $crate::pgtable::Level = $mode::TOP;
        const USER_END: $crate::address::VirtAddr = $mode::USER_END;
        const PREALLOCATED: usize = $mode::PREALLOCATED;
        const LATCHED_TOP: bool = $mode::LATCHED_TOP;

        fn entries(level: $crate::pgtable::Level) -> usize {
            $mode::entries(level)
        }

        fn shift(level: $crate::pgtable::Level) -> u32 {
            $mode::shift(level)
        }

        fn below(level: $crate::pgtable::Level) -> Option<$crate::pgtable::Level> {
            $mode::below(level)
        }

        fn to_hardware(level: $crate::pgtable::Level, entry: $crate::pgtable::Entry) -> $crate::pgtable::Entry {
            $mode::to_hardware(level, entry)
        }

        fn from_hardware(level: $crate::pgtable::Level, entry: $crate::pgtable::Entry) -> $crate::pgtable::Entry {
            $mode::from_hardware(level, entry)
        }
    };
}

#[cfg(all(any(test, feature = "sim"), not(loom)))]
pub(crate) use shaped_as;

/// x86_64 with 48-bit addresses: PGD, PUD, PMD, PTE of 512 entries each; the P4D is folded (SDM 3A, 4.5.4).
pub struct FourLevel;

impl PagingMode for FourLevel {
    type Slot = Slot64;
    const NAME: &'static str = "4-level";
    const TOP: Level = Level::Pgd;
    const USER_END: VirtAddr = VirtAddr(1 << 47);

    fn entries(_level: Level) -> usize {
        512
    }

    fn shift(level: Level) -> u32 {
        match level {
            Level::Pte => 12,
            Level::Pmd => 21,
            Level::Pud => 30,
            Level::P4d | Level::Pgd => 39,
        }
    }

    fn below(level: Level) -> Option<Level> {
        match level {
            Level::Pte => None,
            Level::Pmd => Some(Level::Pte),
            Level::Pud => Some(Level::Pmd),
            Level::P4d | Level::Pgd => Some(Level::Pud),
        }
    }
}

/// 32-bit x86 with PAE: a PGD (the PDPT) of four entries, 32 bytes; PMD and PTE tables of 512. P4D and PUD are folded (SDM
/// 3A, 4.4). The kernel's quarter is the last entry, whose table all address spaces share.
pub struct Pae;

/// What is ignored in a present entry of the PDPT, or is no concern of ours: A, which emulators set (spec 6.3), PWT, PCD, bits
/// 9 to 11.
const PDPTE_IGNORED: u64 = Entry::ACCESSED | 0b11 << 3 | 0b111 << 9;

impl PagingMode for Pae {
    type Slot = SlotPae;
    const NAME: &'static str = "PAE";
    const TOP: Level = Level::Pgd;
    const USER_END: VirtAddr = VirtAddr(3 << 30);
    const PREALLOCATED: usize = 3;
    const LATCHED_TOP: bool = true;

    fn entries(level: Level) -> usize {
        if level > Level::Pmd { 4 } else { 512 }
    }

    fn shift(level: Level) -> u32 {
        FourLevel::shift(level.min(Level::Pud))
    }

    fn below(level: Level) -> Option<Level> {
        match level {
            Level::Pte => None,
            Level::Pmd => Some(Level::Pte),
            Level::Pud | Level::P4d | Level::Pgd => Some(Level::Pmd),
        }
    }

    fn to_hardware(level: Level, entry: Entry) -> Entry {
        // Rights, A and D are reserved bits there (I39).
        let is_pointer = level > Level::Pmd && entry.is_table() && !sabotaged!("pdpte-bits");
        if is_pointer { Entry(entry.pfn().address() | Entry::PRESENT) } else { entry }
    }

    fn from_hardware(level: Level, entry: Entry) -> Entry {
        if level <= Level::Pmd || !entry.is_present() {
            return entry;
        }
        let is_table = entry.0 & !PDPTE_IGNORED == entry.pfn().address() | Entry::PRESENT;
        // No pointer to a table has this bit, so an entry with a reserved one is bad whatever else it looks like.
        if is_table { Entry::table(entry.pfn()) } else { Entry(entry.0 | Entry::NO_EXECUTE) }
    }
}

/// x86_64 with 57-bit addresses: PGD, P4D, PUD, PMD, PTE of 512 entries each (SDM 3A, 4.5.4).
pub struct FiveLevel;

impl PagingMode for FiveLevel {
    type Slot = Slot64;
    const NAME: &'static str = "5-level";
    const TOP: Level = Level::Pgd;
    const USER_END: VirtAddr = VirtAddr(1 << 56);

    fn entries(_level: Level) -> usize {
        512
    }

    fn shift(level: Level) -> u32 {
        match level {
            Level::Pgd => 48,
            lower => FourLevel::shift(lower),
        }
    }

    fn below(level: Level) -> Option<Level> {
        match level {
            Level::Pgd => Some(Level::P4d),
            lower => FourLevel::below(lower),
        }
    }
}

/// Two levels of four entries: the smallest mode in which everything above the PTE table still happens. For model
/// checking; the top table is a PMD table.
pub struct Tiny;

impl PagingMode for Tiny {
    type Slot = Slot64;
    const NAME: &'static str = "tiny";
    const TOP: Level = Level::Pmd;
    const USER_END: VirtAddr = VirtAddr(1 << 16);

    fn entries(_level: Level) -> usize {
        4
    }

    fn shift(level: Level) -> u32 {
        match level {
            Level::Pte => 12,
            _ => 14,
        }
    }

    fn below(level: Level) -> Option<Level> {
        match level {
            Level::Pte => None,
            _ => Some(Level::Pte),
        }
    }
}
