//! Addresses and frame numbers as types, so that none is taken for another. Physical quantities are 64 bits wide in
//! every mode: PAE reaches memory that a 32-bit pointer cannot.

use crate::config::{PAGE_SHIFT, PAGE_SIZE};
use core::fmt;

/// Number of a page frame: its physical address divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pfn(pub u64);

impl Pfn {
    /// Physical address of the frame's first byte.
    pub const fn address(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The frame that holds physical address `address`.
    pub const fn containing(address: u64) -> Self {
        Self(address >> PAGE_SHIFT)
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

/// A physical address: of a top table, which need not begin a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The frame it lies in.
    pub const fn pfn(self) -> Pfn {
        Pfn::containing(self.0)
    }

    /// Bytes from the frame's beginning.
    pub const fn offset(self) -> usize {
        self.0 as usize & (PAGE_SIZE - 1)
    }
}

impl From<Pfn> for PhysAddr {
    fn from(pfn: Pfn) -> Self {
        Self(pfn.address())
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phys {:#x}", self.0)
    }
}

/// A virtual address of the user half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The address of the page that holds this one.
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE as u64 - 1))
    }

    /// Whether the address is the first of a page.
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE as u64 - 1) == 0
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A half-open range of virtual addresses, both ends page-aligned and `start < end`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VirtRange {
    /// First address.
    pub start: VirtAddr,
    /// First address beyond.
    pub end: VirtAddr,
}

impl VirtRange {
    /// The range, or `None` when an end is unaligned or the range is empty.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        let (start, end) = (VirtAddr(start), VirtAddr(end));
        if start.is_page_aligned() && end.is_page_aligned() && start.0 < end.0 {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// Whether `address` lies inside.
    pub const fn contains(&self, address: VirtAddr) -> bool {
        self.start.0 <= address.0 && address.0 < self.end.0
    }

    /// Number of pages.
    pub const fn pages(&self) -> u64 {
        (self.end.0 - self.start.0) >> PAGE_SHIFT
    }

    /// What the two ranges share.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.start.0.max(other.start.0), self.end.0.min(other.end.0))
    }
}

impl fmt::Debug for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}..{:?}", self.start, self.end)
    }
}
