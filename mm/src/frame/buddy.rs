//! The buddy system: free blocks of 2^order frames, each aligned to its size, on one list per order.
//!
//! Rules: two free buddies are one block of the next order, always; a block's first descriptor says its order, all others
//! are [`PageType::Tail`]. Its owner holds the zone lock.

use crate::address::Pfn;
use crate::page::{MemMap, PageList, PageType};
use crate::sync::RawLock;

/// Largest order: blocks of 1 GiB.
pub const MAX_ORDER: u32 = 18;

const ORDERS: usize = MAX_ORDER as usize + 1;

/// The free blocks of a zone.
pub(super) struct Buddy<L: RawLock> {
    memmap: MemMap<L>,
    lists: [PageList; ORDERS],
    /// From the first frame of the zone up to its last. Beyond may lie blocks that are free on another zone's lists.
    start: Pfn,
    end: Pfn,
    free: u64,
}

impl<L: RawLock> Buddy<L> {
    /// Without a single block.
    pub(super) fn new(memmap: MemMap<L>) -> Self {
        Self { memmap, lists: [const { PageList::new() }; ORDERS], start: memmap.end(), end: memmap.first(), free: 0 }
    }

    /// Adds the frames from `start` up to `end` to the zone, free.
    pub(super) fn add(&mut self, start: Pfn, end: Pfn) {
        self.start = self.start.min(start);
        self.end = self.end.max(end);
        let mut next = start.0;
        while next < end.0 {
            // The largest block that is aligned here and ends in the range.
            let order = next.trailing_zeros().min((end.0 - next).ilog2()).min(MAX_ORDER);
            self.put(Pfn(next), order);
            next += 1 << order;
        }
    }

    /// The first frame of the zone and the one after the last, unless there is none.
    pub(super) fn span(&self) -> Option<(Pfn, Pfn)> {
        (self.start < self.end).then_some((self.start, self.end))
    }

    /// Frames in all free blocks.
    pub(super) fn free_frames(&self) -> u64 {
        self.free
    }

    /// Takes a block of `order` out, splitting a larger one if need be. Its first frame gets type `as_type`.
    pub(super) fn take(&mut self, order: u32, as_type: PageType) -> Option<Pfn> {
        let (pfn, mut found) =
            (order..=MAX_ORDER).find_map(|order| Some((self.lists[order as usize].pop(&self.memmap)?, order)))?;
        while found > order {
            found -= 1;
            self.insert(Pfn(pfn.0 + (1 << found)), found);
        }
        self.memmap.page(pfn).set_state(as_type, order, 0);
        self.free -= 1 << order;
        Some(pfn)
    }

    /// Puts a block of `order` that is on no list back and merges it with its buddies.
    pub(super) fn put(&mut self, pfn: Pfn, order: u32) {
        debug_assert_eq!(pfn.0 & ((1 << order) - 1), 0, "block at {pfn:?} is not aligned to order {order}");
        let (mut pfn, mut merged) = (pfn, order);
        while merged < MAX_ORDER {
            let buddy = Pfn(pfn.0 ^ 1 << merged);
            if !self.is_free_block(buddy, merged) {
                break;
            }
            self.lists[merged as usize].remove(&self.memmap, buddy);
            let (low, high) = (pfn.min(buddy), pfn.max(buddy));
            self.memmap.page(high).set_state(PageType::Tail, 0, 0);
            pfn = low;
            merged += 1;
        }
        self.insert(pfn, merged);
        self.free += 1 << order;
    }

    fn insert(&mut self, pfn: Pfn, order: u32) {
        self.memmap.page(pfn).set_state(PageType::Free, order, 0);
        self.lists[order as usize].push(&self.memmap, pfn);
    }

    fn is_free_block(&self, pfn: Pfn, order: u32) -> bool {
        let in_zone = self.start <= pfn && pfn < self.end;
        in_zone && self.memmap.get(pfn).is_some_and(|page| page.page_type() == PageType::Free && page.order() == order)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
