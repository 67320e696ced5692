//! The regions of an address space.
//!
//! A region is immutable: a change replaces it. Faults look it up without a lock and hold it only by their RCU read
//! section, so it may be replaced under them at any moment. What makes that sound is [`Vma::is_detached`]:
//!
//! - a remover or changer publishes the new set of regions, marks the old region detached, and only then visits each slot
//!   of the range, none slots included, under that slot's lock;
//! - a fault checks the mark under the lock of the slot it is about to store into, at every level, before every store.
//!
//! So for each slot, either the fault's critical section comes first and the remover sees what it stored, or the remover's
//! comes first and the fault sees the mark and gives up. (The design's per-region sequence is not needed: a region never
//! changes, so its identity is its sequence.)

mod chain;
mod tree;

pub(crate) use chain::VmaChain;
pub(crate) use tree::{Node, Removed, SpliceError, VmaTree};

use crate::address::{VirtAddr, VirtRange};
use crate::address_space::MmapWrite;
use crate::config::PAGE_SHIFT;
use crate::machine::Machine;
use crate::object::ObjectRef;
use crate::pgtable::{HugeSize, Level, Protection, span_of};
use crate::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// What a fault does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Loads.
    Read,
    /// Stores, or loads and stores.
    Write,
    /// Fetches an instruction.
    Execute,
}

/// What fills a region's pages.
pub enum Backing<M: Machine> {
    /// Private memory that reads as zero until written.
    Anonymous,
    /// Private memory that reads as zero until written, in huge pages of this size and no others.
    Huge(HugeSize),
    /// Pages of a shared memory object, from `first_page` on.
    Object {
        /// The object; the region holds a reference.
        object: ObjectRef<M>,
        /// Index of the object's page at the region's start.
        first_page: u64,
    },
}

impl<M: Machine> Backing<M> {
    /// The backing of a part that begins `pages` further on.
    pub(crate) fn advanced(&self, pages: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::Huge(size) => Self::Huge(*size),
            Self::Object { object, first_page } => {
                Self::Object { object: object.clone(), first_page: first_page + pages }
            }
        }
    }
}

/// A region: a range of addresses with one protection and one backing.
pub struct Vma<M: Machine> {
    range: VirtRange,
    protection: Protection,
    backing: Backing<M>,
    /// Anonymous memory that wants huge pages where they fit (`VM_HUGEPAGE`).
    transparent_huge: bool,
    detached: AtomicBool,
    /// Next in the private list of an operation on regions. Readers of the tree do not follow it.
    link: AtomicPtr<Vma<M>>,
}

impl<M: Machine> Vma<M> {
    /// A region that is in no address space yet.
    pub(crate) fn new(range: VirtRange, protection: Protection, backing: Backing<M>) -> Self {
        Self {
            range,
            protection,
            backing,
            transparent_huge: false,
            detached: AtomicBool::new(false),
            link: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// The part of this region inside `range`, with `protection`, as a new region.
    pub(crate) fn part(&self, range: VirtRange, protection: Protection) -> Self {
        debug_assert!(self.range.start <= range.start && range.end <= self.range.end);
        let skipped = (range.start.0 - self.range.start.0) >> PAGE_SHIFT;
        Self::new(range, protection, self.backing.advanced(skipped)).transparent_huge(self.transparent_huge)
    }

    /// A region of `range` with the same rights and wishes and what backs this one from `skipped` pages on, wherever it is.
    pub(crate) fn moved_to(&self, range: VirtRange, skipped: u64) -> Self {
        Self::new(range, self.protection, self.backing.advanced(skipped)).transparent_huge(self.transparent_huge)
    }

    /// The region, with or without the wish for huge pages where they fit.
    #[must_use]
    pub(crate) fn transparent_huge(self, wanted: bool) -> Self {
        Self { transparent_huge: wanted, ..self }
    }

    /// Whether the whole of what the PMD entry for `address` translates may be one transparent huge page.
    pub(crate) fn may_be_huge_at(&self, address: VirtAddr) -> bool {
        let span = span_of::<M::Mode>(Level::Pmd, address);
        self.transparent_huge && self.range.start <= span.start && span.end <= self.range.end
    }

    /// Whether `range` begins or ends inside an explicit huge page of the region.
    pub(crate) fn cuts_huge_page(&self, range: VirtRange) -> bool {
        match (&self.backing, self.range.intersection(&range)) {
            (Backing::Huge(size), Some(inside)) => (inside.start.0 | inside.end.0) & (size.bytes::<M::Mode>() - 1) != 0,
            _ => false,
        }
    }

    /// Its addresses.
    pub fn range(&self) -> VirtRange {
        self.range
    }

    /// Whether part of it lies in `range`.
    pub(crate) fn overlaps(&self, range: &VirtRange) -> bool {
        self.range.intersection(range).is_some()
    }

    /// What may be done to it.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// What fills it.
    pub fn backing(&self) -> &Backing<M> {
        &self.backing
    }

    /// Whether the region permits `access`.
    pub fn allows(&self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.protection.write,
            Access::Execute => self.protection.execute,
        }
    }

    /// Number of the page of `address` within the region.
    pub(crate) fn page_of(&self, address: VirtAddr) -> u64 {
        (address.page().0 - self.range.start.0) >> PAGE_SHIFT
    }

    /// Whether the region has been removed or replaced, or is frozen for now: in each case no fault may store. Meaningful for
    /// a store only under the lock of the slot.
    pub fn is_detached(&self) -> bool {
        // Acquire: pairs with `detach`; the slot's lock orders the two anyway.
        self.detached.load(Ordering::Acquire)
    }

    /// Keeps faults from storing anything until the returned value is dropped: each gives up and at last sleeps on
    /// `mmap_lock`. As after any mark, it holds for a slot once the slot's lock has been held.
    pub(crate) fn freeze(&self, _write: &MmapWrite<'_, M>) -> Frozen<'_, M> {
        self.detach();
        Frozen(self)
    }

    /// Marks the region as removed or replaced. The caller holds `mmap_lock` for writing and visits the range next.
    pub(crate) fn detach(&self) {
        // Release: pairs with `is_detached`.
        self.detached.store(true, Ordering::Release);
    }

    /// Takes [`detach`](Self::detach) back, of a region that is still in its tree and as good as it was. Whoever finds the mark
    /// gone finds what was done meanwhile.
    pub(crate) fn attach_again(&self) {
        // Release: pairs with `is_detached`.
        self.detached.store(false, Ordering::Release);
    }
}

/// A region that faults keep out of.
#[must_use = "dropping it lets faults in again"]
pub(crate) struct Frozen<'v, M: Machine>(&'v Vma<M>);

impl<M: Machine> Drop for Frozen<'_, M> {
    fn drop(&mut self) {
        self.0.attach_again();
    }
}
