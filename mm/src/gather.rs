//! `mmu_gather`: collect what an unmapping takes out, flush the TLBs once, then free.
//!
//! Rules kept:
//! - unhook → invalidate → free, for pages and for tables (spec 8.1, I29, I30); tables besides wait for the readers that
//!   may still walk them (I10);
//! - the books of a gather are bounded. Full lists are flushed early, and no memory for longer ones means only smaller
//!   batches (spec 8.2);
//! - who finds an entry gone that another gather of the same address space has not flushed yet, flushes everything
//!   himself (R21): [`FlushPending`].

mod pages;

use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::address_space::Mm;
use crate::config::PAGE_SIZE;
use crate::deferred::Garbage;
use crate::machine::Machine;
use crate::pgtable::{Level, PagingMode};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::tlb::{self, TlbFlush};
use pages::PageBatches;

/// Tables collected before they are flushed and handed on to wait for their readers.
const TABLES: usize = if cfg!(loom) { 2 } else { 128 };

/// Gathers of one address space that are under way: `mm->tlb_flush_pending`. Each has perhaps cleared entries that TLBs
/// still know.
///
/// Why nobody returns too early (R21): T1 counts itself, clears an entry and has not flushed. T2 finds none there, so it
/// has acquired T1's clearing and with it T1's count. It reads a count above its own and flushes everything; or T1's
/// end, which comes after T1's flush.
pub(crate) struct FlushPending(AtomicU32);

impl FlushPending {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether a gather is under way, which has perhaps taken out what the caller finds none, and not flushed it yet. If not,
    /// what the caller finds none is in no TLB: the reason is that of R21.
    pub(crate) fn is_any(&self) -> bool {
        // Acquire: pairs with the end of a gather; its flush is over.
        self.0.load(Ordering::Acquire) > 0
    }
}

/// One gather's share of the count, from before its first change to after its last flush.
struct Pending<'m>(&'m FlushPending);

impl<'m> Pending<'m> {
    fn begin(pending: &'m FlushPending) -> Self {
        // Relaxed: published with each cleared entry, by the release of that.
        pending.0.fetch_add(1, Ordering::Relaxed);
        Self(pending)
    }

    /// Whether another gather is under way (`mm_tlb_flush_nested`).
    fn is_nested(&self) -> bool {
        // Acquire: pairs with the end of a gather that this one does not count any more; its flush is over.
        self.0.0.load(Ordering::Acquire) > 1
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // Release: the flush comes before; pairs with `is_nested`. An RMW, so that a later one passes it on.
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

/// What TLBs may still hold of what a gather has taken out.
struct Stale {
    range: Option<VirtRange>,
    /// The lowest level an entry was cleared at: the distance of the addresses that a flush of the range has to name.
    stride: Level,
    /// Tables went too, so paging-structure caches hold pointers to them (spec 8.4).
    freed_tables: bool,
    /// Entries of a top table that CPUs latch went too (I38).
    top_changed: bool,
    /// Pointers to PTE tables went whose slots nobody can fill again before the flush: see [`tlb::flush_and_sync`].
    unhooked: bool,
}

impl Stale {
    fn nothing<M: Machine>() -> Self {
        Self { range: None, stride: M::Mode::TOP, freed_tables: false, top_changed: false, unhooked: false }
    }

    fn widen(&mut self, start: u64, end: u64, level: Level) {
        self.range = match self.range {
            None => VirtRange::new(start, end),
            Some(range) => VirtRange::new(range.start.0.min(start), range.end.0.max(end)),
        };
        self.stride = self.stride.min(level);
    }
}

/// What one unmapping has taken out of the tables so far.
pub(crate) struct MmuGather<'m, M: Machine> {
    mm: &'m Mm<M>,
    stale: Stale,
    pages: PageBatches<M>,
    garbage: Garbage<M>,
    pending: Pending<'m>,
}

impl<'m, M: Machine> MmuGather<'m, M> {
    /// An empty gather (`tlb_gather_mmu`). Before the first change and under no page-table lock.
    pub(crate) fn new(mm: &'m Mm<M>) -> Self {
        Self {
            mm,
            stale: Stale::nothing::<M>(),
            pages: PageBatches::new(mm.memory()),
            garbage: Garbage::new(),
            pending: Pending::begin(mm.flush_pending()),
        }
    }

    /// The translation of `address` has been cleared or has lost rights (`tlb_flush_pte_range`).
    pub(crate) fn widen(&mut self, address: VirtAddr) {
        self.widen_level(address, Level::Pte);
    }

    /// The same for an entry of `level` (`tlb_flush_pmd_range`, `tlb_flush_pud_range`).
    pub(crate) fn widen_level(&mut self, address: VirtAddr, level: Level) {
        let span = M::Mode::entry_span(level);
        let start = address.0 & !(span - 1);
        self.stale.widen(start, start + span, level);
    }

    /// Sees that `pages` more fit before a flush is due, if there is memory for that. Under no page-table lock.
    pub(crate) fn reserve(&mut self, pages: u64) {
        self.pages.reserve(pages);
    }

    /// `pfn` was mapped at `address`, and that mapping's reference now belongs to the gather. True when the list is full:
    /// drop the lock and call [`Self::flush`] (`tlb_remove_page`).
    #[must_use]
    pub(crate) fn remove_page(&mut self, pfn: Pfn, address: VirtAddr) -> bool {
        self.widen(address);
        self.pages.push(pfn)
    }

    /// As [`Self::remove_page`], of the block a huge entry of `level` mapped (`tlb_remove_page_size`). Lazy CPUs are told, as of
    /// a freed table: small pages may come in its place, and their walkers would cache those beside it (I34).
    #[must_use]
    pub(crate) fn remove_huge_page(&mut self, pfn: Pfn, address: VirtAddr, level: Level) -> bool {
        self.widen_level(address, level);
        self.stale.freed_tables = true;
        self.pages.push(pfn)
    }

    /// The PTE table in `pfn`, which translated from `address` on, has been unlinked. Under no page-table lock and in no
    /// read section, here and below: a long list is flushed at once and waits for its readers.
    pub(crate) fn pte_free_tlb(&mut self, pfn: Pfn, address: VirtAddr) {
        self.remove_table(Level::Pte, pfn, address);
    }

    /// As [`Self::pte_free_tlb`], of a PMD table. It has no deposit any more (I13).
    pub(crate) fn pmd_free_tlb(&mut self, pfn: Pfn, address: VirtAddr) {
        self.remove_table(Level::Pmd, pfn, address);
    }

    /// As [`Self::pte_free_tlb`], of a PUD table.
    pub(crate) fn pud_free_tlb(&mut self, pfn: Pfn, address: VirtAddr) {
        self.remove_table(Level::Pud, pfn, address);
    }

    /// As [`Self::pte_free_tlb`], of a table of any level below the top whose region is gone, so that nothing comes in its place
    /// before the gather ends.
    pub(crate) fn free_tlb(&mut self, level: Level, pfn: Pfn, address: VirtAddr) {
        match level {
            Level::Pte => {
                self.stale.unhooked = true;
                self.pte_free_tlb(pfn, address);
            }
            Level::Pmd => self.pmd_free_tlb(pfn, address),
            _ => self.pud_free_tlb(pfn, address),
        }
    }

    fn remove_table(&mut self, level: Level, pfn: Pfn, address: VirtAddr) {
        // One page of the table's span is enough: its flush drops every paging-structure entry (spec 8.5).
        let start = address.page().0;
        self.stale.widen(start, start + PAGE_SIZE as u64, Level::Pte);
        self.stale.freed_tables = true;
        self.stale.top_changed |= M::Mode::LATCHED_TOP && M::Mode::below(M::Mode::TOP) == Some(level);
        self.garbage.push_table(self.mm.memory(), pfn);
        if self.garbage.tables() >= TABLES {
            self.flush();
            self.mm.memory().defer(core::mem::replace(&mut self.garbage, Garbage::new()));
        }
    }

    /// Flushes what has been collected on every CPU that may hold it (`tlb_flush_mmu_tlbonly`). A page-table lock may be held.
    pub(crate) fn invalidate(&mut self) {
        let Stale { range, stride, freed_tables, top_changed, unhooked } =
            core::mem::replace(&mut self.stale, Stale::nothing::<M>());
        let Some(range) = range else { return };
        let what = TlbFlush { range, stride, freed_tables, top_changed };
        // Nobody looks anything up in an address space that ends.
        if unhooked && !self.mm.is_ending() {
            tlb::flush_and_sync(self.mm, what);
        } else {
            tlb::flush_mm_range(self.mm, what);
        }
    }

    /// Flushes what has been collected, then drops the pages' references (`tlb_flush_mmu`). No page-table lock may be
    /// held: it is not needed, and the wait is long.
    pub(crate) fn flush(&mut self) {
        if sabotaged!("free-before-flush") {
            self.pages.put_all();
        }
        self.invalidate();
        self.pages.put_all();
    }

    /// Flushes and frees everything but the tables, which are handed on to wait for their readers (`tlb_finish_mmu`).
    /// Under no page-table lock.
    pub(crate) fn finish(mut self) -> Garbage<M> {
        if self.pending.is_nested() && !sabotaged!("nested-flush") {
            // What was none here was perhaps taken out by another gather, PTE tables included, and is not flushed yet. No tables
            // above: those go under `mmap_lock` for writing, and the other has it for reading too.
            self.stale.widen(0, M::Mode::USER_END.0, Level::Pte);
            self.stale.freed_tables = true;
        }
        self.flush();
        self.pages.release();
        self.garbage
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
