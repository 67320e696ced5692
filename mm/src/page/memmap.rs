//! The array of all frame descriptors, indexed by frame number.

use super::Page;
use crate::address::Pfn;

/// Descriptors of the frames from `first` on, holes included.
#[derive(Clone, Copy)]
pub struct MemMap {
    first: Pfn,
    pages: &'static [Page],
}

impl MemMap {
    /// A map whose element 0 describes `first`.
    pub fn new(first: Pfn, pages: &'static [Page]) -> Self {
        Self { first, pages }
    }

    /// The descriptor of `pfn`, or `None` outside the map.
    pub fn get(&self, pfn: Pfn) -> Option<&'static Page> {
        self.pages.get(pfn.0.checked_sub(self.first.0)? as usize)
    }

    /// The descriptor of a frame that `mm` itself got from this map.
    ///
    /// # Panics
    ///
    /// If the frame is outside, which means a corrupted table or list.
    pub fn page(&self, pfn: Pfn) -> &'static Page {
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
