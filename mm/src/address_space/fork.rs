//! `fork`: an address space with the same contents (`dup_mmap`, `copy_page_range`). Anonymous pages are shared until one side
//! stores to them; pages of objects stay shared for good and are left to the child's faults.
//!
//! Rules kept:
//! - both PTE locks are held over an entry, the child's first and the parent's second (spec 2.2, I23); both are dropped
//!   after every 32 units of progress (spec 2.3), so that neither a flush nor another CPU waits long;
//! - an entry of the parent loses the right to store by an atomic update, which keeps the A and D bits a walker sets
//!   meanwhile (I35), and under the lock that covers it, as does the child's new reference: a write fault that finds one
//!   reference under that lock may store to the page;
//! - the parent is flushed once, at the end, before its faults go on.
//!
//! # Faults of the parent meanwhile
//!
//! Between the loss of the right and the flush a CPU may go on storing through its TLB. Alone that is harmless: the child
//! does not run yet and gets the store, as if it had been made before the fork. But a fault that resolved in that time would
//! break it:
//!
//! ```text
//!   CPU 1: fault on the entry, shared by now: copies the page
//!                                             CPU 2: stores through its TLB, to the old page
//!   CPU 1: replaces the page by its copy; flush
//!                                             CPU 2: loads from the copy: its own store is gone
//! ```
//!
//! So no fault of the parent may store an entry from the first visit of a slot until the flush is over, and none may use
//! afterwards what it copied before. Faults take no lock that `fork` holds; they check that their region is attached. Hence
//! each region is replaced by its like, and in this order: mark the old ones detached, share the pages, flush, and only
//! then publish the new ones. A fault that looks its region up meanwhile finds the old one, gives up under the slot's
//! lock, and then waits for `mmap_lock`. One that began before finds its region detached whenever it comes to store.
//!
//! This also makes the child a snapshot: no thread of the parent can do a store that faults, and so is not in the child, and
//! then one that is.

use super::{MapError, Mm, MmRef, MmapWrite};
use crate::address::{VirtAddr, VirtRange};
use crate::config::PAGE_SIZE;
use crate::deferred::Garbage;
use crate::gather::MmuGather;
use crate::machine::Machine;
use crate::pgtable::{
    Level, PagingMode, Protection, PteLocked, PteSecond, Regions, Slot, entry_end, pmd_alloc, pmd_table_of, pte_alloc,
    pte_offset_map_lock, pte_offset_map_lock_second, split_huge_pmd,
};
use crate::sync::rcu;
use crate::vma::{Backing, Vma, VmaChain};

/// Both locks are dropped after this much progress.
const BREAK_AFTER: usize = 32;
/// Progress that a none entry makes, and one that is copied.
const PASSED: usize = 1;
const COPIED: usize = 8;

impl<M: Machine> Mm<M> {
    /// A new address space with the same regions and contents, but for explicit huge mappings. Takes `mmap_lock`.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfMemory`]; nothing is left of the new address space, and this one has lost nothing.
    pub fn fork(&self) -> Result<MmRef<M>, MapError> {
        self.memory().with_reclaim(MapError::OutOfMemory, || self.try_fork())
    }

    fn try_fork(&self) -> Result<MmRef<M>, MapError> {
        let child = Self::try_create(self.memory())?;
        let mut garbage = Garbage::new();
        let shared = {
            let write = self.mmap_lock().write(self.machine());
            self.share_with(&child, &write, &mut garbage)
        };
        self.memory().defer(garbage);
        // A child that got less than everything goes here, under no lock.
        shared.map(|()| child)
    }

    /// Fills `child`, which nobody else knows, from this address space.
    fn share_with(&self, child: &Self, write: &MmapWrite<'_, M>, garbage: &mut Garbage<M>) -> Result<(), MapError> {
        let all = VirtRange { start: VirtAddr(0), end: M::Mode::USER_END };
        let theirs = child.mmap_lock().write(self.machine());
        let is_inherited = |vma: &Vma<M>| !matches!(vma.backing(), Backing::Huge(_));
        let inherited = self.copies_of_regions(write, is_inherited)?;
        child.splice(&theirs, all, inherited, &mut garbage.removed)?;
        let mut ours = self.copies_of_regions(write, |_| true)?;
        let splice =
            self.vmas().prepare(self.memory(), write, all, all, &ours).inspect_err(|_| ours.dispose(self.memory()))?;

        self.vmas().overlapping(write, all).filter(|_| !sabotaged!("fork-detach")).for_each(Vma::detach);
        let mut gather = MmuGather::new(self);
        let shared = child
            .vmas()
            .overlapping(&theirs, all)
            .filter(|vma| matches!(vma.backing(), Backing::Anonymous))
            .try_for_each(|vma| self.share_pages(write, child, vma, &mut gather));
        let mut flushed = gather.finish();
        self.vmas().publish(write, splice, &mut ours, &mut flushed.removed);
        garbage.append(self.memory(), &mut flushed);
        shared
    }

    #[cfg_attr(test, track_caller)]
    fn copies_of_regions(
        &self,
        write: &MmapWrite<'_, M>,
        which: impl Fn(&Vma<M>) -> bool,
    ) -> Result<VmaChain<M>, MapError> {
        let all = VirtRange { start: VirtAddr(0), end: M::Mode::USER_END };
        let mut copies = VmaChain::new();
        for vma in self.vmas().overlapping(write, all).filter(|vma| which(vma)) {
            self.push_part(&mut copies, vma, vma.range(), vma.protection())?;
        }
        Ok(copies)
    }

    /// Shares the pages of the child's region `vma`, which is anonymous (`copy_page_range`).
    fn share_pages(
        &self,
        _write: &MmapWrite<'_, M>,
        child: &Self,
        vma: &Vma<M>,
        gather: &mut MmuGather<'_, M>,
    ) -> Result<(), MapError> {
        let range = vma.range();
        let mut address = range.start;
        while address < range.end {
            self.machine().cond_resched();
            let rcu = rcu::read_lock(self.machine());
            let from = match pmd_table_of(self, &rcu, address, Regions::Detached) {
                Ok(table) => table,
                Err(hole) => {
                    address = entry_end::<M>(hole, address, range.end);
                    continue;
                }
            };
            let end = entry_end::<M>(Level::Pmd, address, range.end);
            if Regions::Detached.look(self, from.slot(address)).is_none() {
                address = end;
                continue;
            }
            // A huge page is one address space's: what is shared are its small pages.
            split_huge_pmd(self, from.slot(address), address);
            let to = pmd_alloc(child, &rcu, vma, address)?;
            pte_alloc(child, to.slot(address), vma)?;
            let part = VirtRange { start: address, end };
            address = self.share_some(from.slot(address), child, to.slot(address), part, gather)?;
        }
        Ok(())
    }

    /// Shares pages of `part`, which one table translates, and returns where to go on (`copy_pte_range`).
    fn share_some(
        &self,
        from: Slot<'_, M>,
        child: &Self,
        to: Slot<'_, M>,
        part: VirtRange,
        gather: &mut MmuGather<'_, M>,
    ) -> Result<VirtAddr, MapError> {
        let mut address = part.start;
        let mut theirs = pte_offset_map_lock(child, to, address).ok_or(MapError::OutOfMemory)?;
        // None is an entry that is no table pointer: there is nothing below it to share.
        let Some(mut ours) = pte_offset_map_lock_second(&theirs, self, from, address) else { return Ok(part.end) };
        let mut progress = 0;
        while address < part.end && progress < BREAK_AFTER {
            ours.move_to(address);
            theirs.move_to(address);
            progress += if self.share_page(&ours, &theirs, address, gather) { COPIED } else { PASSED };
            address = VirtAddr(address.0 + PAGE_SIZE as u64);
        }
        Ok(address)
    }

    /// Has `theirs` show what `ours` shows, and nobody store to it (`copy_present_pte`). False if that is nothing.
    fn share_page(
        &self,
        ours: &PteSecond<'_, M>,
        theirs: &PteLocked<'_, M>,
        address: VirtAddr,
        gather: &mut MmuGather<'_, M>,
    ) -> bool {
        let entry = ours.load();
        if entry.is_none() {
            return false;
        }
        if entry.is_special() {
            theirs.set(entry);
            return true;
        }
        let page = self.memory().memmap().page(entry.pfn());
        if !sabotaged!("fork-reference") {
            page.get();
        }
        page.map();
        let (old, new) =
            ours.update(|entry| entry.with_protection(Protection { write: false, execute: entry.is_executable() }));
        if old.is_writable() && !sabotaged!("fork-flush") {
            gather.widen(address);
        }
        theirs.set(new);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
