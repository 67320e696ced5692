//! `mmu_gather`: collect what an unmapping takes out, flush the TLBs once, then free.
//!
//! Rule kept: unhook → invalidate → free, for pages and for tables (spec 8.1, I29, I30). Tables besides wait for the
//! readers that may still walk them (I10). The books of a gather are bounded: when its list is full it flushes early, and
//! no memory for a longer list means only smaller batches.

use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::address_space::Mm;
use crate::config::PAGE_SIZE;
use crate::deferred::Garbage;
use crate::machine::Machine;
use crate::tlb;

/// Pages collected between two flushes.
const BATCH: usize = 256;

/// What one unmapping has taken out of the tables so far.
pub(crate) struct MmuGather<'m, M: Machine> {
    mm: &'m Mm<M>,
    /// What must not be translated any more before anything is freed.
    range: Option<VirtRange>,
    pages: [Pfn; BATCH],
    count: usize,
    garbage: Garbage<M>,
}

impl<'m, M: Machine> MmuGather<'m, M> {
    /// An empty gather (`tlb_gather_mmu`).
    pub(crate) fn new(mm: &'m Mm<M>) -> Self {
        Self { mm, range: None, pages: [Pfn(0); BATCH], count: 0, garbage: Garbage::new() }
    }

    /// The translation of `address` has been cleared or has lost rights.
    pub(crate) fn widen(&mut self, address: VirtAddr) {
        let (start, end) = (address.page().0, address.page().0 + PAGE_SIZE as u64);
        self.range = match self.range {
            None => VirtRange::new(start, end),
            Some(range) => VirtRange::new(range.start.0.min(start), range.end.0.max(end)),
        };
    }

    /// `pfn` was mapped at `address`, and that mapping's reference now belongs to the gather. True when the list is full:
    /// drop the lock and call [`Self::flush`].
    #[must_use]
    pub(crate) fn remove_page(&mut self, pfn: Pfn, address: VirtAddr) -> bool {
        self.widen(address);
        self.pages[self.count] = pfn;
        self.count += 1;
        self.count == BATCH
    }

    /// The table in `pfn`, which translated from `address` on, has been unhooked.
    pub(crate) fn remove_table(&mut self, pfn: Pfn, address: VirtAddr) {
        // One page of the table's span is enough: its flush drops every paging-structure entry (spec 8.5).
        self.widen(address);
        self.garbage.push_table(self.mm.memory(), pfn);
    }

    /// Flushes what has been collected on every CPU that may hold it, then drops the pages' references. No page-table lock
    /// may be held: it is not needed, and the wait is long.
    pub(crate) fn flush(&mut self) {
        if let Some(range) = self.range.take() {
            tlb::flush_range(self.mm, range);
        }
        for pfn in &self.pages[..self.count] {
            self.mm.memory().put_page(*pfn);
        }
        self.count = 0;
    }

    /// Flushes and frees everything but the tables, which are handed on to wait for their readers (`tlb_finish_mmu`).
    pub(crate) fn finish(mut self) -> Garbage<M> {
        self.flush();
        self.garbage
    }
}
