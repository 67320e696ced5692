//! Page-table entries: the x86 bits as a value type, and the atomic cell that holds one.
//!
//! Rule: an entry of a table that hardware or another CPU can reach is only ever accessed through [`EntrySlot`]. A walker
//! sets A and D at any moment, so a possibly present entry is cleared by one atomic exchange (I35).

use crate::address::Pfn;
use crate::config::PAGE_SHIFT;
use crate::sync::atomic::{AtomicU64, Ordering};
use core::fmt;

/// What a mapping lets its user do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Protection {
    /// Stores are allowed. Loads always are.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
}

impl Protection {
    /// Loads only.
    pub const READ: Self = Self { write: false, execute: false };
    /// Loads and stores.
    pub const READ_WRITE: Self = Self { write: true, execute: false };
}

/// The value of an entry (SDM 3A, 4.5), at any level of any mode.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    pub(super) const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    const HUGE: u64 = 1 << 7;
    /// Software bit: the frame has no references to count (the shared zero page).
    const SPECIAL: u64 = 1 << 9;
    /// Software bit, above the PTE level: a leaf that is just being split. P is off, the entry is not none (I28).
    const INVALIDATED: u64 = 1 << 10;
    /// Software bit, above the PTE level: of an explicit huge mapping, which is never split and has no deposit.
    const EXPLICIT: u64 = 1 << 11;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Bits a table pointer carries besides its address. Access rights are decided at the leaf.
    const TABLE: u64 = Self::PRESENT | Self::WRITE | Self::USER | Self::ACCESSED | Self::DIRTY;

    /// The entry that maps nothing and points nowhere.
    pub const NONE: Self = Self(0);

    /// A pointer to the table in `pfn`.
    pub const fn table(pfn: Pfn) -> Self {
        Self(pfn.address() | Self::TABLE)
    }

    /// A user page that has been touched already: A is set, and D where stores are allowed, so that the walker need not
    /// write the entry again.
    pub const fn page(pfn: Pfn, protection: Protection) -> Self {
        let mut bits = pfn.address() | Self::PRESENT | Self::USER | Self::ACCESSED;
        if protection.write {
            bits |= Self::WRITE | Self::DIRTY;
        }
        if !protection.execute {
            bits |= Self::NO_EXECUTE;
        }
        Self(bits)
    }

    /// The same, for the shared zero page: read-only, and no reference is counted.
    pub const fn zero_page(pfn: Pfn, protection: Protection) -> Self {
        Self(Self::page(pfn, Protection { write: false, execute: protection.execute }).0 | Self::SPECIAL)
    }

    /// A leaf above the PTE level: a block of frames that begins at `pfn`.
    pub const fn huge_page(pfn: Pfn, protection: Protection) -> Self {
        Self(Self::page(pfn, protection).0 | Self::HUGE)
    }

    /// The same, of a mapping that asked for pages of this size (hugetlb).
    pub const fn explicit_huge_page(pfn: Pfn, protection: Protection) -> Self {
        Self(Self::huge_page(pfn, protection).0 | Self::EXPLICIT)
    }

    /// All zero.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Usable by the walker.
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// A leaf above the PTE level, an invalidated one included. Only meaningful there: in a PTE the bit is PAT.
    pub const fn is_huge(self) -> bool {
        self.0 & Self::HUGE != 0 && self.0 & (Self::PRESENT | Self::INVALIDATED) != 0
    }

    /// A huge leaf of a mapping that asked for pages of its size.
    pub const fn is_explicit(self) -> bool {
        self.is_huge() && self.0 & Self::EXPLICIT != 0
    }

    /// A huge leaf that the walker refuses while it is being split. Neither none nor present (I28).
    #[must_use]
    pub const fn invalidated(self) -> Self {
        Self((self.0 & !Self::PRESENT) | Self::INVALIDATED)
    }

    /// The entry of page `number` of this huge leaf in the PTE table that replaces it: the same rights, the same A and D.
    #[must_use]
    pub const fn small_page(self, number: u64) -> Self {
        let bits = self.0 & !(Self::ADDRESS | Self::HUGE | Self::INVALIDATED) | Self::PRESENT;
        Self(bits | Pfn(self.pfn().0 + number).address())
    }

    /// A well-formed pointer to a lower table.
    pub const fn is_table(self) -> bool {
        let must = Self::PRESENT | Self::WRITE | Self::USER;
        self.0 & (must | Self::HUGE | Self::NO_EXECUTE) == must
    }

    /// Stores are allowed.
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Instruction fetches are allowed.
    pub const fn is_executable(self) -> bool {
        self.0 & Self::NO_EXECUTE == 0
    }

    /// Maps the shared zero page.
    pub const fn is_special(self) -> bool {
        self.0 & Self::SPECIAL != 0
    }

    /// A walker has stored through the entry.
    pub const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    /// The frame it names: a table or a page.
    pub const fn pfn(self) -> Pfn {
        Pfn((self.0 & Self::ADDRESS) >> PAGE_SHIFT)
    }

    /// Whether the page may be accessed so by user code.
    pub const fn allows(self, write: bool, execute: bool) -> bool {
        self.is_present() && (!write || self.is_writable()) && (!execute || self.is_executable())
    }

    /// With instruction fetches allowed; everything else stays.
    #[must_use]
    pub const fn executable(self) -> Self {
        Self(self.0 & !Self::NO_EXECUTE)
    }

    /// With A set, and D for a store: what a walker writes back.
    #[must_use]
    pub const fn touched(self, write: bool) -> Self {
        Self(self.0 | Self::ACCESSED | if write { Self::DIRTY } else { 0 })
    }

    /// With the rights of `protection`; everything else stays.
    #[must_use]
    pub const fn with_protection(self, protection: Protection) -> Self {
        let mut bits = self.0 & !(Self::WRITE | Self::NO_EXECUTE);
        if protection.write && !self.is_special() {
            bits |= Self::WRITE;
        }
        if !protection.execute {
            bits |= Self::NO_EXECUTE;
        }
        Self(bits)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {:#x}", self.0)
    }
}

/// The memory location of an entry. A trait of the mode, because a PAE entry is two words with an order between them.
///
/// Only the holder of the table's lock, or who alone can reach the table, changes an entry; apart from A and D, which walkers
/// set, and from a bad entry, which whoever finds it takes out.
pub trait EntrySlot: Send + Sync + 'static {
    /// Whether a load is one access, and so always a value that the slot held.
    const ONE_ACCESS: bool;

    /// A slot that holds `entry`.
    fn new(entry: Entry) -> Self;
    /// The value at one instant, if that is [one access](Self::ONE_ACCESS). Acquire: what was written before a table or page
    /// was published is visible through it (pairs with `store`, spec 7.4).
    fn load(&self) -> Entry;
    /// Replaces a none entry, or any entry of a table nobody can reach. Release: pairs with `load`.
    fn store(&self, entry: Entry);
    /// Replaces any entry and returns what was there, A and D bits set meanwhile included (I35).
    fn swap(&self, entry: Entry) -> Entry;
    /// Replaces `current` by `new`, or says what is there instead. Others may see the entry not present for a moment, but
    /// never a huge one none.
    fn compare_exchange(&self, current: Entry, new: Entry) -> Result<(), Entry>;
}

/// An entry of the 64-bit modes: one atomic word.
#[repr(transparent)]
pub struct Slot64(AtomicU64);

impl EntrySlot for Slot64 {
    const ONE_ACCESS: bool = true;

    fn new(entry: Entry) -> Self {
        Self(AtomicU64::new(entry.0))
    }

    fn load(&self) -> Entry {
        Entry(self.0.load(Ordering::Acquire))
    }

    fn store(&self, entry: Entry) {
        let order = if sabotaged!("publish-order") { Ordering::Relaxed } else { Ordering::Release };
        self.0.store(entry.0, order);
    }

    fn swap(&self, entry: Entry) -> Entry {
        Entry(self.0.swap(entry.0, Ordering::AcqRel))
    }

    fn compare_exchange(&self, current: Entry, new: Entry) -> Result<(), Entry> {
        self.0.compare_exchange(current.0, new.0, Ordering::AcqRel, Ordering::Acquire).map(|_| ()).map_err(Entry)
    }
}
