//! A list of frames, linked through their descriptors, so that it needs no memory of its own.
//!
//! Rule: a frame is on at most one list, and the list's owner excludes everybody else (`&mut self` under the owner's
//! lock), so plain relaxed accesses to the links suffice.

use super::{MemMap, Page};
use crate::address::Pfn;
use crate::sync::RawLock;
use crate::sync::atomic::Ordering;

/// A doubly linked list through `Page.next` and `Page.prev`.
pub(crate) struct PageList {
    head: Option<Pfn>,
}

impl PageList {
    /// The empty list.
    pub(crate) const fn new() -> Self {
        Self { head: None }
    }

    /// The frame pushed last.
    pub(crate) fn first(&self) -> Option<Pfn> {
        self.head
    }

    /// Puts `pfn`, which is on no list, in front.
    pub(crate) fn push<L: RawLock>(&mut self, memmap: &MemMap<L>, pfn: Pfn) {
        let page = memmap.page(pfn);
        page.set_next(self.head);
        page.set_prev(None);
        if let Some(next) = self.head {
            memmap.page(next).set_prev(Some(pfn));
        }
        self.head = Some(pfn);
    }

    /// Takes the first frame off.
    pub(crate) fn pop<L: RawLock>(&mut self, memmap: &MemMap<L>) -> Option<Pfn> {
        let pfn = self.head?;
        self.remove(memmap, pfn);
        Some(pfn)
    }

    /// Takes `pfn`, which is on this list, off.
    pub(crate) fn remove<L: RawLock>(&mut self, memmap: &MemMap<L>, pfn: Pfn) {
        let page = memmap.page(pfn);
        let (next, prev) = (page.next(), page.prev());
        match prev {
            Some(prev) => memmap.page(prev).set_next(next),
            None => {
                debug_assert_eq!(self.head, Some(pfn), "frame taken off a list it is not on");
                self.head = next;
            }
        }
        if let Some(next) = next {
            memmap.page(next).set_prev(prev);
        }
        page.set_next(None);
        page.set_prev(None);
    }
}

/// An optional frame number in one word: 0 is none, so that a zeroed descriptor is on no list. The frame has a descriptor, so
/// its number fits in a `usize` wherever the array of them fits in memory.
pub(crate) const fn encode(pfn: Option<Pfn>) -> usize {
    match pfn {
        Some(pfn) => pfn.0 as usize + 1,
        None => 0,
    }
}

/// The inverse of [`encode`].
pub(crate) const fn decode(word: usize) -> Option<Pfn> {
    match word {
        0 => None,
        word => Some(Pfn(word as u64 - 1)),
    }
}

impl<L: RawLock> Page<L> {
    fn next(&self) -> Option<Pfn> {
        decode(self.next.load(Ordering::Relaxed))
    }

    fn prev(&self) -> Option<Pfn> {
        decode(self.prev.load(Ordering::Relaxed))
    }

    fn set_next(&self, pfn: Option<Pfn>) {
        self.next.store(encode(pfn), Ordering::Relaxed);
    }

    fn set_prev(&self, pfn: Option<Pfn>) {
        self.prev.store(encode(pfn), Ordering::Relaxed);
    }
}
