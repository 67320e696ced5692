//! Collapse: the small pages of a PMD entry's span copied into one huge page, and back again by a split.
//!
//! Faults look regions up without `mmap_lock`, so holding it does not keep them out. What does, step by step:
//!
//! 1. `mmap_lock` for writing: no other operation changes regions or unhooks tables.
//! 2. The region is *frozen*: [`Vma::is_detached`] says true. A fault checks it under the lock of the slot it would store to,
//!    at every level, so from the moment a slot's lock has been held once after the mark, no fault stores there.
//! 3. Under the PMD lock and the table's own: the entries are judged, the PMD entry cleared, all CPUs flushed. A fault that
//!    held either lock before has stored already and is part of what was judged; one that comes later finds another PMD
//!    entry or the mark, gives up, and at its third attempt sleeps on `mmap_lock` until the collapse is over.
//! 4. A grace period, with no spinning lock held. Lockless walkers (`pte_offset_map`) that found the old table are gone
//!    afterwards, and so is every attempt of a fault that began before. Hence the table may be emptied, deposited, and later
//!    filled by a split or freed by a zap, at once: nobody else reads it. This is what the IPI of spec 9.2 is for.
//! 5. The pages are copied. No CPU can write to them: their translations are flushed, their table is private.
//! 6. Under the PMD lock: the old table becomes the deposit, the huge entry goes in. Then the region thaws.
//!
//! Whatever could make it fail is looked for before step 3 clears anything, so nothing has ever to be put back.

use super::Mm;
use crate::address::{Pfn, VirtAddr};
use crate::fault::FreshFrame;
use crate::machine::Machine;
use crate::pgtable::{
    Entry, HugeSize, Level, PagingMode, Unhooked, pmd_offset, span_of, split_huge_pmd, unhook_for_collapse,
};
use crate::stats::Counter;
use crate::sync::rcu;
use crate::vma::Backing;

/// Why a range was not collapsed. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CollapseError {
    /// The span of the PMD entry is not all in one anonymous region.
    NotAnonymous,
    /// No small page is there: nothing has been written yet, or it is a huge page already.
    NoSmallPages,
    /// A page is shared with another address space.
    Shared,
    /// No block of frames for the huge page.
    OutOfMemory,
}

impl<M: Machine> Mm<M> {
    /// Replaces the small pages around `address`, all that one PMD entry covers, by one huge page with the same contents
    /// (`collapse_huge_page`); what was not there reads as zero. Takes `mmap_lock` and waits for a grace period under it.
    ///
    /// # Errors
    ///
    /// See [`CollapseError`].
    pub fn collapse_huge_page(&self, address: VirtAddr) -> Result<(), CollapseError> {
        if address >= M::Mode::USER_END {
            return Err(CollapseError::NotAnonymous);
        }
        let block = self.memory().with_reclaim(CollapseError::OutOfMemory, || {
            FreshFrame::allocate_block(self, HugeSize::Pmd.order::<M::Mode>()).map_err(|_| CollapseError::OutOfMemory)
        })?;
        let span = span_of::<M::Mode>(Level::Pmd, address);
        let write = self.mmap_lock().write(self.machine());
        let vma = self.vmas().overlapping(&write, span).next().ok_or(CollapseError::NotAnonymous)?;
        if vma.range().intersection(&span) != Some(span) || !matches!(vma.backing(), Backing::Anonymous) {
            return Err(CollapseError::NotAnonymous);
        }
        let _frozen = vma.freeze(&write);
        let table = unhook_for_collapse(self, &write, span.start, |entries| self.judge(entries))?;
        let table = table.ok_or(CollapseError::NoSmallPages)?;
        if !sabotaged!("collapse-grace-period") {
            rcu::synchronize(self.memory().rcu(), self.machine());
        }
        self.copy_pages(&table, block.pfn());
        let huge = Entry::huge_page(block.pfn(), vma.protection());
        block.keep();
        table.replace(self, &write, span.start, huge);
        self.machine().local().stats.bump(Counter::HugeCollapses);
        Ok(())
    }

    /// Splits the transparent huge page at `address`, if there is one (`split_huge_page`); says whether there was. Faults
    /// and other operations may run meanwhile. Takes the PMD lock.
    pub fn split_huge_page(&self, address: VirtAddr) -> bool {
        let rcu = rcu::read_lock(self.machine());
        pmd_offset(self, &rcu, address).is_some_and(|pmds| split_huge_pmd(self, pmds.slot(address), address))
    }

    /// Whether small pages may become one huge page: there are some, and nothing but their entries refers to them. That
    /// stays so, as only who can reach a page could share it.
    fn judge(&self, entries: &mut dyn Iterator<Item = Entry>) -> Result<(), CollapseError> {
        let mut result = Err(CollapseError::NoSmallPages);
        for entry in entries.filter(|entry| is_own_page(*entry)) {
            let page = self.memory().memmap().page(entry.pfn());
            if page.refcount() != 1 || page.mapcount() != 1 {
                return Err(CollapseError::Shared);
            }
            result = Ok(());
        }
        result
    }

    /// Moves what `table` shows into the block that begins at `to`, which is all zero, and frees the small pages.
    fn copy_pages(&self, table: &Unhooked, to: Pfn) {
        table.empty(self, |number, entry| {
            if is_own_page(entry) {
                self.machine().copy_frame(entry.pfn(), Pfn(to.0 + number));
                self.memory().memmap().page(entry.pfn()).unmap();
                self.memory().put_page(entry.pfn());
            }
        });
    }
}

/// A page that was written, rather than nothing or the zero page.
const fn is_own_page(entry: Entry) -> bool {
    entry.is_present() && !entry.is_special()
}

#[cfg(all(test, not(loom)))]
mod tests;
