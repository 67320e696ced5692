//! `mremap`: a mapping grows, shrinks, or moves to other addresses with its pages (`move_vma`, `move_page_tables`).
//!
//! Rules kept:
//! - the old region is detached before any slot is visited, and the new one published when the pages are there: a fault on
//!   either side waits for `mmap_lock`, or finds nothing mapped there yet;
//! - what may fail comes before any entry is touched. Tables for the new place are made for each table of the old, which a
//!   detached region gets no more of; if that fails the new tables go, and the old region, whose slots are as they were, is
//!   attached again;
//! - entries move table by table under both PTE locks, the old one first and the new one if it is another (spec 2.2, I23).
//!   An entry is taken out by an exchange, so that A and D bits set until then move too (I35, R19), and the old place is
//!   flushed before either lock drops (R15). A page's references and mappings do not change: it has one entry all the time
//!   but for the moment between.

use super::map::{after, before};
use super::{MapError, Mm, MmapWrite};
use crate::address::{VirtAddr, VirtRange};
use crate::config::PAGE_SIZE;
use crate::deferred::Garbage;
use crate::gather::MmuGather;
use crate::machine::Machine;
use crate::pgtable::{
    Level, Regions, Table, entry_end, free_pgtables, pmd_alloc, pmd_offset, pmd_table_of, pte_alloc,
    pte_offset_map_lock, pte_offset_map_lock_second, split_huge_pmd, unmap_page_range,
};
use crate::sync::rcu::{self, RcuRead};
use crate::tlb;
use crate::vma::{Backing, Removed, Vma, VmaChain};

/// Pages to move: where they are, and where the first goes.
#[derive(Clone, Copy)]
struct Move {
    from: VirtRange,
    to: VirtAddr,
}

impl Move {
    /// Where what is at `address` goes.
    fn target(&self, address: VirtAddr) -> VirtAddr {
        VirtAddr(self.to.0 + (address.0 - self.from.start.0))
    }
}

impl<M: Machine> Mm<M> {
    /// Turns the mapping of `old`, which lies in one region, into one of `new`: its pages move along, as far as `new` is long
    /// enough, and what is longer shows what a mapping of that length would. `new` begins where `old` does, and grows into
    /// free space or shrinks, or it is free. Takes `mmap_lock`.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; nothing has changed then.
    pub fn mremap(&self, old: VirtRange, new: VirtRange) -> Result<(), MapError> {
        self.check_range(new)?;
        self.remap(old, |_| Ok(new)).map(|_| ())
    }

    /// As [`mremap`](Self::mremap), to the lowest free range of `length` bytes at or above `lowest`; says where that is.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; nothing has changed then.
    pub fn mremap_anywhere(&self, old: VirtRange, length: u64, lowest: VirtAddr) -> Result<VirtRange, MapError> {
        self.remap(old, |write| self.find_free(write, lowest, length, PAGE_SIZE as u64))
    }

    fn remap(
        &self,
        old: VirtRange,
        place: impl Fn(&MmapWrite<'_, M>) -> Result<VirtRange, MapError>,
    ) -> Result<VirtRange, MapError> {
        self.check_range(old)?;
        self.memory().with_reclaim(MapError::OutOfMemory, || {
            let mut garbage = Garbage::new();
            let done = {
                let write = self.mmap_lock().write(self.machine());
                place(&write).and_then(|new| self.remap_to(&write, old, new, &mut garbage).map(|()| new))
            };
            self.memory().defer(garbage);
            done
        })
    }

    fn remap_to(
        &self,
        write: &MmapWrite<'_, M>,
        old: VirtRange,
        new: VirtRange,
        garbage: &mut Garbage<M>,
    ) -> Result<(), MapError> {
        let first = self.vmas().first_ending_above(write, old.start);
        let vma = first
            .filter(|vma| vma.range().start <= old.start && old.end <= vma.range().end)
            .ok_or(MapError::NotMapped)?;
        if let Backing::Object { object, first_page } = vma.backing()
            && first_page + vma.page_of(old.start) + new.pages() > object.pages()
        {
            return Err(MapError::BeyondObject);
        }
        if matches!(vma.backing(), Backing::Huge(_)) && !(new.start == old.start && new.end <= old.end) {
            return Err(MapError::CutsHugePage);
        }
        if new.start != old.start {
            if new.intersection(&old).is_some() {
                return Err(MapError::BadRange);
            }
            return self.move_region(write, vma, old, new, garbage);
        }
        if let Some(tail) = VirtRange::new(new.end.0, old.end.0) {
            *garbage = self.remove(write, tail)?;
            return Ok(());
        }
        match VirtRange::new(old.end.0, new.end.0) {
            Some(more) => self.extend(write, vma, more, garbage),
            None => Ok(()),
        }
    }

    /// Has `vma` reach to the end of `more`, which must be free. No entry changes.
    fn extend(
        &self,
        write: &MmapWrite<'_, M>,
        vma: &Vma<M>,
        more: VirtRange,
        garbage: &mut Garbage<M>,
    ) -> Result<(), MapError> {
        if self.vmas().overlapping(write, more).next().is_some() {
            return Err(MapError::Overlap);
        }
        let whole = VirtRange { start: vma.range().start, end: more.end };
        let mut new = VmaChain::new();
        new.push_new(self.memory(), vma.moved_to(whole, 0))?;
        self.splice(write, whole, new, &mut garbage.removed)
    }

    /// Moves `old`, a part of `vma`, to `new`.
    fn move_region(
        &self,
        write: &MmapWrite<'_, M>,
        vma: &Vma<M>,
        old: VirtRange,
        new: VirtRange,
        garbage: &mut Garbage<M>,
    ) -> Result<(), MapError> {
        if self.vmas().overlapping(write, new).next().is_some() {
            return Err(MapError::Overlap);
        }
        let mut chain = self.moved(vma, old, new)?;
        let span = vma.range();
        let hull = VirtRange { start: span.start.min(new.start), end: span.end.max(new.end) };
        let splice = self
            .vmas()
            .prepare(self.memory(), write, span, hull, &chain)
            .inspect_err(|_| chain.dispose(self.memory()))?;
        let length = (old.end.0 - old.start.0).min(new.end.0 - new.start.0);
        let pages = Move { from: VirtRange { start: old.start, end: VirtAddr(old.start.0 + length) }, to: new.start };

        vma.detach();
        let mut gather = MmuGather::new(self);
        let outcome = match chain.find(new.start).map_or(Ok(()), |target| self.make_tables(write, pages, target)) {
            Ok(()) => {
                self.move_page_tables(write, pages);
                let mut removed = Removed::new();
                self.vmas().publish(write, splice, &mut chain, &mut removed);
                unmap_page_range(
                    self,
                    write,
                    VirtRange { start: pages.from.end, end: old.end },
                    Regions::Detached,
                    &mut gather,
                );
                free_pgtables(self, write, old, self.free_space_around(write, old), &mut gather);
                garbage.removed.append(&mut removed);
                Ok(())
            }
            Err(error) => {
                if !sabotaged!("move-tables") {
                    free_pgtables(self, write, new, self.free_space_around(write, new), &mut gather);
                }
                if !sabotaged!("move-undone") {
                    vma.attach_again();
                }
                splice.dispose(self.memory());
                chain.dispose(self.memory());
                Err(error)
            }
        };
        garbage.append(self.memory(), &mut gather.finish());
        outcome
    }

    /// What `vma` becomes when `old` of it moves to `new`, in order of address.
    fn moved(&self, vma: &Vma<M>, old: VirtRange, new: VirtRange) -> Result<VmaChain<M>, MapError> {
        let stays = |part| Some(vma.part(part?, vma.protection()));
        let there = vma.moved_to(new, vma.page_of(old.start));
        let (below, above) = (stays(before(vma, old)), stays(after(vma, old)));
        let parts = if new.start < old.start { [Some(there), below, above] } else { [below, above, Some(there)] };
        let mut chain = VmaChain::new();
        for part in parts.into_iter().flatten() {
            if let Err(error) = chain.push_new(self.memory(), part) {
                chain.dispose(self.memory());
                return Err(error.into());
            }
        }
        Ok(chain)
    }

    /// Sees that each table of the old place has one at the new, in the region `target`, which nobody knows yet.
    fn make_tables(&self, write: &MmapWrite<'_, M>, pages: Move, target: &Vma<M>) -> Result<(), MapError> {
        self.for_each_extent(write, pages, |rcu, _, part| {
            let to = pages.target(part.start);
            let table = pmd_alloc(self, rcu, target, to)?;
            Ok(pte_alloc(self, table.slot(to), target)?)
        })
    }

    /// Moves every entry. The tables are there.
    fn move_page_tables(&self, write: &MmapWrite<'_, M>, pages: Move) {
        let moved = self.for_each_extent(write, pages, |rcu, from, part| {
            if let Some(to) = pmd_offset(self, rcu, pages.target(part.start)) {
                self.move_ptes(from, &to, part, pages);
            }
            Ok(())
        });
        debug_assert!(moved.is_ok());
    }

    /// Calls `visit` for each part of the old place that one table translates and that goes into one table, with the PMD
    /// table that names the old one.
    fn for_each_extent(
        &self,
        _write: &MmapWrite<'_, M>,
        pages: Move,
        mut visit: impl FnMut(&RcuRead<M>, &Table<'_, M>, VirtRange) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let limit = pages.from.end;
        let mut address = pages.from.start;
        while address < limit {
            self.machine().cond_resched();
            let rcu = rcu::read_lock(self.machine());
            let hole = match pmd_table_of(self, &rcu, address, Regions::Detached) {
                Ok(table) if Regions::Detached.look(self, table.slot(address)).is_none() => Level::Pmd,
                // Its small pages are moved; the next round finds them.
                Ok(table) if split_huge_pmd(self, table.slot(address), address) => continue,
                Ok(table) => {
                    let to = pages.target(address);
                    let room = entry_end::<M>(Level::Pmd, to, pages.target(limit)).0 - to.0;
                    let end = entry_end::<M>(Level::Pmd, address, VirtAddr(address.0 + room).min(limit));
                    visit(&rcu, &table, VirtRange { start: address, end })?;
                    address = end;
                    continue;
                }
                Err(level) => level,
            };
            address = entry_end::<M>(hole, address, limit);
        }
        Ok(())
    }

    /// Moves the entries of `part` (`move_ptes`).
    fn move_ptes(&self, old: &Table<'_, M>, new: &Table<'_, M>, part: VirtRange, pages: Move) {
        let to = pages.target(part.start);
        let Some(mut old) = pte_offset_map_lock(self, old.slot(part.start), part.start) else { return };
        let Some(mut new) = pte_offset_map_lock_second(&old, self, new.slot(to), to) else { return };
        let mut moved = false;
        let mut address = part.start;
        while address < part.end {
            old.move_to(address);
            if !old.load().is_none() {
                new.move_to(pages.target(address));
                new.set(old.clear());
                moved = true;
            }
            address = VirtAddr(address.0 + PAGE_SIZE as u64);
        }
        if moved && !sabotaged!("move-flush") {
            tlb::flush_range(self, part);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
