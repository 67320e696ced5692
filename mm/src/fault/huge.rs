//! Faults that a huge page resolves, or that find one.
//!
//! Rules kept: block and deposit are allocated, zeroed and constructed before the lock (I25); under the lock of the slot the
//! region's mark and the entry are looked at again before the store; the loser gives back both (R13). An explicit huge
//! mapping takes the lock that [`huge_pte_lock`] names for its size, a transparent one the PMD lock. No memory for a
//! transparent huge page is no failure: small pages do.

use super::{Fault, FaultError, FreshFrame, Resolution, Setback};
use crate::address::VirtAddr;
use crate::address_space::Mm;
use crate::config::PAGE_SIZE;
use crate::machine::Machine;
use crate::pgtable::{
    Entry, HugeLocked, HugeSize, Level, Slot, UnpublishedTable, deposit, huge_pte_lock, pmd_lock, pte_alloc, span_of,
    table_alloc,
};
use crate::sync::atomic::Ordering;
use crate::sync::rcu::RcuRead;
use crate::tlb::{self, TlbFlush};
use crate::vma::{Access, Vma};

impl<M: Machine> Fault<'_, M> {
    /// There is no PTE table: finds or makes a huge page (`create_huge_pmd`), or else makes the table and returns `None`.
    pub(super) fn without_table(&self) -> Result<Option<Resolution>, Setback> {
        let seen = self.pmd.load();
        if seen.is_huge() {
            return upgrade_huge(self.mm, self.vma, self.pmd, self.address, self.access, seen).map(Some);
        }
        if seen.is_none()
            && self.access == Access::Write
            && self.vma.may_be_huge_at(self.address)
            && let Some(resolution) = self.huge_anonymous()?
        {
            return Ok(Some(resolution));
        }
        pte_alloc(self.mm, self.pmd, self.vma)?;
        Ok(None)
    }

    /// Maps a fresh huge page (`do_huge_pmd_anonymous_page`); `None` where there is no memory for one.
    fn huge_anonymous(&self) -> Result<Option<Resolution>, Setback> {
        let mm = self.mm;
        let order = HugeSize::Pmd.order::<M::Mode>();
        let Ok(block) = FreshFrame::allocate_block(mm, order) else { return Ok(None) };
        let Ok(table) = UnpublishedTable::allocate(mm.memory(), Level::Pte) else { return Ok(None) };
        // Taken last, dropped first: what a lost race leaves is freed without the lock.
        let guard = pmd_lock(mm, self.pmd);
        if self.vma.is_detached() {
            return Err(Setback::Raced);
        }
        if !self.pmd.load().is_none() && !sabotaged!("huge-recheck") {
            return Ok(Some(Resolution::Raced));
        }
        if mm.flush_pending().is_any() {
            // Advice has perhaps just taken out a table here whose small pages are still in TLBs, lazy CPUs' included: those go
            // before a large translation can come beside them (I34).
            let range = span_of::<M::Mode>(Level::Pmd, self.address);
            tlb::flush_mm_range(mm, TlbFlush { range, stride: Level::Pte, freed_tables: true, top_changed: false });
        }
        deposit(mm, self.pmd, &guard, table);
        // Relaxed: a count, checked when nobody changes it any more (I6, I7).
        mm.pgtables_bytes().fetch_add(PAGE_SIZE, Ordering::Relaxed);
        let entry = Entry::huge_page(block.pfn(), self.vma.protection());
        block.keep();
        self.pmd.fill(&guard, entry);
        Ok(Some(Resolution::HugePage))
    }
}

/// A fault in a region of explicit huge pages (`hugetlb_fault`).
pub(super) fn hugetlb_fault<M: Machine>(
    mm: &Mm<M>,
    rcu: &RcuRead<M>,
    vma: &Vma<M>,
    address: VirtAddr,
    access: Access,
    size: HugeSize,
) -> Result<Resolution, Setback> {
    let table = table_alloc(mm, rcu, vma, address, size.level())?;
    let slot = table.slot(address);
    let seen = slot.load();
    if seen.is_huge() {
        return upgrade_huge(mm, vma, slot, address, access, seen);
    }
    if !seen.is_none() {
        // What is left of the region that was here before is on its way out, or the tables are corrupt.
        return Err(if vma.is_detached() { Setback::Raced } else { FaultError::BadTable.into() });
    }
    let block = FreshFrame::allocate_block(mm, size.order::<M::Mode>())?;
    let guard = huge_pte_lock(mm, size, slot);
    if vma.is_detached() {
        return Err(Setback::Raced);
    }
    if !slot.load().is_none() {
        return Ok(Resolution::Raced);
    }
    let entry = Entry::explicit_huge_page(block.pfn(), vma.protection());
    block.keep();
    slot.fill(&guard, entry);
    Ok(Resolution::HugePage)
}

/// The huge page may be used so, only its entry does not say so yet, or did not a moment ago (`huge_pmd_set_accessed`).
fn upgrade_huge<M: Machine>(
    mm: &Mm<M>,
    vma: &Vma<M>,
    slot: Slot<'_, M>,
    address: VirtAddr,
    access: Access,
    seen: Entry,
) -> Result<Resolution, Setback> {
    let write = access == Access::Write;
    if seen.allows(write, access == Access::Execute) {
        return Ok(Resolution::Spurious);
    }
    // Whoever is splitting it holds the lock: waiting for it is waiting for the split.
    let Some(huge) = HugeLocked::lock(mm, slot, address) else { return Ok(Resolution::Raced) };
    if vma.is_detached() {
        return Err(Setback::Raced);
    }
    if huge.load().pfn() != seen.pfn() {
        return Ok(Resolution::Raced);
    }
    huge.update(|entry| entry.with_protection(vma.protection()).touched(write));
    Ok(Resolution::Upgraded)
}

#[cfg(all(test, not(loom)))]
mod tests;
