//! `struct Page`: the descriptor of one frame, and the array of all of them.
//!
//! Rule: a field belongs to whoever owns the frame in its present type; only `refcount` may be touched by anyone who
//! holds a reference.

mod list;
mod memmap;

pub(crate) use list::{PageList, decode, encode};
pub use memmap::MemMap;

use crate::pgtable::PtlStorage;
use crate::sync::RawLock;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageType {
    /// Not memory, or memory that `mm` does not own.
    Reserved = 0,
    /// First frame of a block on a free list; `order` says how large.
    Free = 1,
    /// Not the first frame of its block, whether that is free or allocated. Only first frames have a story of their own.
    Tail = 2,
    /// Allocated, with no more particular type: anonymous memory, an object's page. First frame of a block of `order`.
    Data = 3,
    /// A page table whose constructor has run (I8).
    Table = 4,
    /// Belongs to a slab cache.
    Slab = 5,
    /// Free, in a CPU's reserve, and therefore not to be merged with its neighbours.
    Stocked = 6,
}

/// The descriptor of one frame; `L` is the machine's page-table lock, which lives right here.
#[repr(C, align(64))]
pub struct Page<L: RawLock> {
    /// Type in bits 0–7, order in 8–15, slab cache number in 16–23, "detached table" in bit 31.
    /// Written by the frame's owner; read by others only through a lock or grace period that orders it.
    state: AtomicU32,
    /// References: one per mapping, one per object that holds the page, one per table. At zero the frame is freed.
    refcount: AtomicU32,
    /// PTEs that map the frame. Changed under the page-table lock of the PTE.
    mapcount: AtomicU32,
    /// In-use objects of a slab frame.
    pub(crate) slab_used: AtomicU32,
    /// The page-table lock of the table in this frame (spec 4.1). Private to `pgtable::ptlock`.
    pub(crate) ptl: PtlStorage<L>,
    /// Links of the [`PageList`] the owner keeps the frame on: a buddy list or a slab list. Under that list's lock.
    next: AtomicUsize,
    /// As `next`.
    prev: AtomicUsize,
    /// Next table of a list of tables that wait for their readers, or of a list of deposited tables.
    pub(crate) rcu_next: AtomicUsize,
    /// First free object of a slab frame; in a PMD table's frame the first deposited PTE table (`pmd_huge_pte`).
    pub(crate) freelist: AtomicUsize,
}

/// One cache line, 1.6 % of memory, in every build: the lock or its address lives in the descriptor whether it is used or
/// not (design decision 1). No descriptor shares its line, and so its lock, with another.
#[cfg(not(loom))]
const _: () = assert!(
    size_of::<Page<crate::sync::Algorithm>>() == 64
        && size_of::<Page<crate::sync::debug::DebugLock<crate::sync::Algorithm>>>() == 64
);

const DETACHED: u32 = 1 << 31;

impl<L: RawLock> Page<L> {
    /// The descriptor of a frame that `mm` does not own yet.
    pub fn new() -> Self {
        Self {
            state: AtomicU32::new(PageType::Reserved as u32),
            refcount: AtomicU32::new(0),
            mapcount: AtomicU32::new(0),
            slab_used: AtomicU32::new(0),
            ptl: PtlStorage::new(),
            next: AtomicUsize::new(0),
            prev: AtomicUsize::new(0),
            rcu_next: AtomicUsize::new(0),
            freelist: AtomicUsize::new(0),
        }
    }

    /// What the frame is used for.
    pub fn page_type(&self) -> PageType {
        match self.state.load(Ordering::Relaxed) as u8 {
            1 => PageType::Free,
            2 => PageType::Tail,
            3 => PageType::Data,
            4 => PageType::Table,
            5 => PageType::Slab,
            6 => PageType::Stocked,
            _ => PageType::Reserved,
        }
    }

    /// log2 of the frames of the block that starts here.
    pub fn order(&self) -> u32 {
        self.state.load(Ordering::Relaxed) >> 8 & 0xff
    }

    /// Number of the slab cache a slab frame belongs to.
    pub(crate) fn slab_cache(&self) -> usize {
        (self.state.load(Ordering::Relaxed) >> 16 & 0xff) as usize
    }

    /// Retypes the frame; clears the detached mark.
    pub(crate) fn set_state(&self, page_type: PageType, order: u32, slab_cache: usize) {
        // Relaxed: only the owner retypes, and whoever reads it later got the frame through a lock or a grace period.
        let state = page_type as u32 | order << 8 | (slab_cache as u32) << 16;
        self.state.store(state, Ordering::Relaxed);
    }

    /// Marks a table as unhooked. The caller holds the parent's lock and the table's own.
    pub(crate) fn mark_detached(&self) {
        // Relaxed: read under the table's lock, or to explain a state in a report.
        self.state.fetch_or(DETACHED, Ordering::Relaxed);
    }

    /// Whether the table in this frame has been unhooked from its parent.
    pub fn is_detached(&self) -> bool {
        self.state.load(Ordering::Relaxed) & DETACHED != 0
    }

    /// References to the frame.
    pub fn refcount(&self) -> u32 {
        self.refcount.load(Ordering::Relaxed)
    }

    /// Whether the caller's reference is the only one.
    pub(crate) fn has_one_reference(&self) -> bool {
        // Acquire: pairs with the Release of `put`; what a former user read, it read before the caller writes.
        self.refcount.load(Ordering::Acquire) == 1
    }

    /// Gives a fresh frame its first reference, or takes a freed one's last away.
    pub(crate) fn set_refcount(&self, references: u32) {
        // Relaxed: nobody else can reach the frame.
        self.refcount.store(references, Ordering::Relaxed);
    }

    /// Adds a reference to a frame the caller already holds one to, directly or through its object.
    pub(crate) fn get(&self) {
        // Relaxed: an existing reference keeps the frame; nothing is published by a further one.
        let old = self.refcount.fetch_add(1, Ordering::Relaxed);
        debug_assert_ne!(old, 0, "reference to a free frame");
    }

    /// Drops a reference; true if it was the last and the caller must free the frame.
    #[must_use]
    pub(crate) fn put(&self) -> bool {
        // Release: uses before this drop happen before the free; pairs with the fence of the last dropper.
        let old = self.refcount.fetch_sub(1, Ordering::Release);
        debug_assert_ne!(old, 0, "reference dropped twice");
        if old == 1 {
            fence(Ordering::Acquire);
        }
        old == 1
    }

    /// PTEs that map the frame.
    pub fn mapcount(&self) -> u32 {
        self.mapcount.load(Ordering::Relaxed)
    }

    /// A PTE now maps the frame. Under that PTE's lock.
    pub(crate) fn map(&self) {
        self.mapcount.fetch_add(1, Ordering::Relaxed);
    }

    /// A PTE no longer maps the frame. Under that PTE's lock.
    pub(crate) fn unmap(&self) {
        let old = self.mapcount.fetch_sub(1, Ordering::Relaxed);
        debug_assert_ne!(old, 0, "unmapped more often than mapped");
    }
}

impl<L: RawLock> Default for Page<L> {
    fn default() -> Self {
        Self::new()
    }
}
