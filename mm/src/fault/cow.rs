//! Stores to anonymous memory whose entry forbids them (`do_wp_page`): the page is the zero page, or was shared by `fork`.
//!
//! Rules kept:
//! - a page whose only reference is this entry's is written as it is. Under the PTE lock that one reference stays the only
//!   one: another could only come from a `fork` of this address space, which takes the same lock. A mapping that another
//!   address space is taking out keeps its reference until its flush is over, so reference counts decide, not map counts;
//! - a shared page is copied before the lock, pinned by a reference taken under it, and the copy is installed only if the
//!   entry is as it was (spec 7.2). The region rules out that the entry was writable meanwhile: only `fork` and `mprotect`
//!   take the right away again, and both detach the region;
//! - the old entry goes from every TLB before the new one shows, and the old page's reference goes after that, so no two
//!   CPUs see different pages and nobody else writes a page that is still read here (spec 7.3, R18).
//!
//! A copy takes the same lock twice, any other store once.

use super::{Fault, FreshFrame, Resolution, Setback};
use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::address_space::Mm;
use crate::config::PAGE_SIZE;
use crate::machine::Machine;
use crate::pgtable::{Entry, PteLocked, pte_offset_map_lock};
use crate::tlb;

/// What the first look under the lock has come to.
enum Look<'f, M: Machine> {
    Done(Resolution),
    Shared(Pinned<'f, M>),
}

impl<'f, M: Machine> Fault<'f, M> {
    /// A store where `seen` is present and forbids it.
    pub(super) fn do_wp_page(&self, seen: Entry) -> Result<Resolution, Setback> {
        if seen.is_special() {
            return self.replace(seen, FreshFrame::zeroed(self.mm)?, Resolution::ZeroPageReplaced);
        }
        match self.reuse_or_pin(seen)? {
            Look::Done(resolution) => Ok(resolution),
            Look::Shared(pinned) => {
                self.replace(seen, FreshFrame::copy_of(self.mm, pinned.pfn)?, Resolution::PageCopied)
            }
        }
    }

    /// Lets the page be written if nobody else has it (`wp_page_reuse`), or pins it to be copied. No flush: a right that is
    /// added needs none.
    fn reuse_or_pin(&self, seen: Entry) -> Result<Look<'f, M>, Setback> {
        let Some(pte) = self.lock_unless_changed(seen)? else { return Ok(Look::Done(Resolution::Raced)) };
        let page = self.mm.memory().memmap().page(seen.pfn());
        if page.has_one_reference() || sabotaged!("cow-references") {
            pte.update(|entry| entry.with_protection(self.vma.protection()).touched(true));
            return Ok(Look::Done(Resolution::PageReused));
        }
        page.get();
        Ok(Look::Shared(Pinned { mm: self.mm, pfn: seen.pfn() }))
    }

    /// Puts `fresh` where `seen` was (`wp_page_copy`).
    fn replace(&self, seen: Entry, fresh: FreshFrame<'f, M>, done: Resolution) -> Result<Resolution, Setback> {
        let Some(pte) = self.lock_unless_changed(seen)? else { return Ok(Resolution::Raced) };
        pte.clear();
        let page = VirtRange { start: self.address, end: VirtAddr(self.address.0 + PAGE_SIZE as u64) };
        if !sabotaged!("cow-flush") {
            tlb::flush_range(self.mm, page);
        }
        let entry = Entry::page(fresh.pfn(), self.vma.protection());
        fresh.keep();
        pte.set(entry);
        if seen.is_special() {
            return Ok(done);
        }
        let memory = self.mm.memory();
        memory.memmap().page(seen.pfn()).unmap();
        // Freed, if this was the last reference, outside the lock (I25).
        drop(pte);
        memory.put_page(seen.pfn());
        Ok(done)
    }

    /// The locked PTE if it still holds `seen`, `None` if somebody was faster.
    fn lock_unless_changed(&self, seen: Entry) -> Result<Option<PteLocked<'f, M>>, Setback> {
        let pte = pte_offset_map_lock(self.mm, self.pmd, self.address).ok_or(Setback::Raced)?;
        if self.vma.is_detached() {
            return Err(Setback::Raced);
        }
        Ok(Some(pte).filter(|pte| pte.load() == seen || sabotaged!("cow-recheck")))
    }
}

/// A reference that keeps a page while it is copied. Dropped under no lock: it may be the last.
struct Pinned<'f, M: Machine> {
    mm: &'f Mm<M>,
    pfn: Pfn,
}

impl<M: Machine> Drop for Pinned<'_, M> {
    fn drop(&mut self) {
        self.mm.memory().put_page(self.pfn);
    }
}
