//! What a CPU has mapped for a moment: PTE tables, and whatever else lies in high memory.
//!
//! Rule checked: mappings are ended on the CPU that made them, last in, first out, and there are never more than a CPU of a
//! machine with high memory has places for. Every PTE table counts, so that each test of each machine checks it.

use super::host::lock;
use std::sync::Mutex;

/// Places of a CPU. The architecture's [`kmap`](crate::machine::Machine::map_table) has as many or more.
pub(super) const PLACES: usize = 8;

/// The addresses a CPU has mapped, the last one last.
pub(super) struct Mappings(Mutex<Vec<usize>>);

impl Mappings {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Notes a mapping; false if there was no place for it.
    pub(super) fn begin(&self, address: usize) -> bool {
        let mut mapped = lock(&self.0);
        mapped.push(address);
        mapped.len() <= PLACES
    }

    /// Ends a mapping if `address` is one. False if it is not the last; it is ended all the same.
    pub(super) fn end(&self, address: usize) -> bool {
        let mut mapped = lock(&self.0);
        let Some(index) = mapped.iter().rposition(|other| *other == address) else { return true };
        mapped.remove(index);
        index == mapped.len()
    }

    pub(super) fn count(&self) -> usize {
        lock(&self.0).len()
    }

    /// A CPU that ends in a panic has not unwound everything.
    pub(super) fn forget(&self) {
        lock(&self.0).clear();
    }
}
