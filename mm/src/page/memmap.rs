//! The array of all frame descriptors, indexed by frame number.

use super::Page;
use crate::address::Pfn;
use crate::sync::RawLock;

/// Descriptors of the frames from `first` on, holes included.
pub struct MemMap<L: RawLock> {
    first: Pfn,
    pages: &'static [Page<L>],
}

impl<L: RawLock> Clone for MemMap<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: RawLock> Copy for MemMap<L> {}

impl<L: RawLock> MemMap<L> {
    /// A map whose element 0 describes `first`.
    pub fn new(first: Pfn, pages: &'static [Page<L>]) -> Self {
        Self { first, pages }
    }

    /// The descriptor of `pfn`, or `None` outside the map.
    pub fn get(&self, pfn: Pfn) -> Option<&'static Page<L>> {
        self.pages.get(pfn.0.checked_sub(self.first.0)? as usize)
    }

    /// The descriptor of a frame that `mm` itself got from this map.
    ///
    /// # Panics
    ///
    /// If the frame is outside, which means a corrupted table or list.
    pub fn page(&self, pfn: Pfn) -> &'static Page<L> {
        match self.get(pfn) {
            Some(page) => page,
            None => panic!("{pfn:?} is outside the memory map"),
        }
    }

    /// First described frame.
    pub fn first(&self) -> Pfn {
        self.first
    }

    /// First frame beyond.
    pub fn end(&self) -> Pfn {
        Pfn(self.first.0 + self.pages.len() as u64)
    }
}
