//! `mmap`, `munmap`, `mprotect`: changing the set of regions and what the tables say about it.
//!
//! Each takes `mmap_lock` for writing and follows one order: allocate what may fail; publish the new regions, which marks
//! the old ones detached; visit every slot of the range under its lock; flush; free. Until the first publication nothing
//! has changed, so an error loses nothing.

use super::{Mm, MmapHeld, MmapWrite};
use crate::address::{VirtAddr, VirtRange};
use crate::config::PAGE_SIZE;
use crate::deferred::Garbage;
use crate::gather::MmuGather;
use crate::machine::Machine;
use crate::memory::OutOfMemory;
use crate::object::ObjectRef;
use crate::pgtable::{
    HugeSize, Leaf, Level, PagingMode, Protection, Regions, TableError, for_each_leaf, free_pgtables, unmap_page_range,
};
use crate::vma::{Backing, Removed, SpliceError, Vma, VmaChain};
use core::ops::ControlFlow;

/// Why the regions could not be changed. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The range is empty, unaligned, or leaves the user half.
    BadRange,
    /// Part of the range is taken.
    Overlap,
    /// Part of the range is not mapped.
    NotMapped,
    /// The object ends before the region does.
    BeyondObject,
    /// The range begins or ends inside an explicit huge page, which is never cut.
    CutsHugePage,
    /// The paging mode, or the machine, has no pages of that size.
    NoSuchPageSize,
    /// No free range is long enough.
    NoSpace,
    /// The address space holds as many regions as it can.
    TooManyRegions,
    /// No memory for the books.
    OutOfMemory,
}

impl From<SpliceError> for MapError {
    fn from(error: SpliceError) -> Self {
        match error {
            SpliceError::OutOfMemory => Self::OutOfMemory,
            SpliceError::TooManyRegions => Self::TooManyRegions,
        }
    }
}

impl From<OutOfMemory> for MapError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<TableError> for MapError {
    /// Under `mmap_lock` nobody else changes what tables hang from, so only memory can be missing.
    fn from(_: TableError) -> Self {
        Self::OutOfMemory
    }
}

/// What to map.
#[derive(Clone)]
pub enum Mapping<M: Machine> {
    /// Private memory that reads as zero until written.
    Anonymous,
    /// The same, in huge pages wherever a whole one fits and memory is there for it. Nobody notices but by the speed:
    /// what needs smaller pages splits them.
    AnonymousHuge,
    /// Private memory in huge pages of exactly this size, never split. Not handed on by fork.
    Huge(HugeSize),
    /// The pages of an object from `first_page` on, shared with every other mapping of it.
    Object {
        /// The object.
        object: ObjectRef<M>,
        /// Index of the first page.
        first_page: u64,
    },
}

impl<M: Machine> Mm<M> {
    /// Maps `mapping` at exactly `range`, which must be free. Takes `mmap_lock`.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn mmap(&self, range: VirtRange, protection: Protection, mapping: Mapping<M>) -> Result<(), MapError> {
        self.change(|| {
            let write = self.mmap_lock().write(self.machine());
            self.insert(&write, range, protection, mapping.clone())
        })
    }

    /// Maps `mapping` in the lowest free range of `length` bytes at or above `from`, and says where; explicit huge pages in
    /// the lowest that does not cut one. Takes `mmap_lock`.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn mmap_anywhere(
        &self,
        from: VirtAddr,
        length: u64,
        protection: Protection,
        mapping: Mapping<M>,
    ) -> Result<VirtRange, MapError> {
        let align = match &mapping {
            Mapping::Huge(size) if size.exists_in::<M::Mode>() => size.bytes::<M::Mode>(),
            _ => PAGE_SIZE as u64,
        };
        let mut found = None;
        self.change(|| {
            let write = self.mmap_lock().write(self.machine());
            let range = self.find_free(&write, from, length, align)?;
            found = Some(range);
            self.insert(&write, range, protection, mapping.clone())
        })?;
        found.ok_or(MapError::NoSpace)
    }

    /// The lowest free range of `length` bytes at or above `from` that begins at a multiple of `align`, a power of two.
    pub(super) fn find_free(
        &self,
        write: &MmapWrite<'_, M>,
        from: VirtAddr,
        length: u64,
        align: u64,
    ) -> Result<VirtRange, MapError> {
        let mut start = from.0;
        loop {
            start = start.checked_next_multiple_of(align).ok_or(MapError::NoSpace)?;
            let end = start.checked_add(length).ok_or(MapError::NoSpace)?;
            let range = VirtRange::new(start, end).ok_or(MapError::BadRange)?;
            if range.end > M::Mode::USER_END {
                return Err(MapError::NoSpace);
            }
            match self.vmas().overlapping(write, range).last() {
                Some(taken) => start = taken.range().end.0,
                None => return Ok(range),
            }
        }
    }

    /// Runs one change of the regions, again after a reclaim if there was no memory for its books, and lets what it
    /// replaced wait for its readers. `change` takes and drops `mmap_lock`: grace periods are waited for without it.
    fn change(&self, change: impl FnMut() -> Result<Garbage<M>, MapError>) -> Result<(), MapError> {
        let garbage = self.memory().with_reclaim(MapError::OutOfMemory, change)?;
        self.memory().defer(garbage);
        Ok(())
    }

    fn insert(
        &self,
        write: &MmapWrite<'_, M>,
        range: VirtRange,
        protection: Protection,
        mapping: Mapping<M>,
    ) -> Result<Garbage<M>, MapError> {
        self.check_range(range)?;
        let is_transparent = matches!(mapping, Mapping::AnonymousHuge);
        let backing = match mapping {
            Mapping::Anonymous | Mapping::AnonymousHuge => Backing::Anonymous,
            Mapping::Huge(size) if !(size.exists_in::<M::Mode>() && self.machine().has_huge_pages(size)) => {
                return Err(MapError::NoSuchPageSize);
            }
            Mapping::Huge(size) => Backing::Huge(size),
            Mapping::Object { object, first_page } => {
                if first_page.checked_add(range.pages()).is_none_or(|end| end > object.pages()) {
                    return Err(MapError::BeyondObject);
                }
                Backing::Object { object, first_page }
            }
        };
        if self.vmas().overlapping(write, range).next().is_some() {
            return Err(MapError::Overlap);
        }
        let mut garbage = Garbage::new();
        let mut new = VmaChain::new();
        let vma = Vma::new(range, protection, backing).transparent_huge(is_transparent);
        if vma.cuts_huge_page(range) {
            return Err(MapError::CutsHugePage);
        }
        new.push_new(self.memory(), vma)?;
        self.splice(write, range, new, &mut garbage.removed)?;
        Ok(garbage)
    }

    /// Unmaps `range`: every region in it goes, or the part of it that lies inside. When it returns, no CPU translates an
    /// address of the range (I29). Holes are no error. Takes `mmap_lock`.
    ///
    /// # Errors
    ///
    /// See [`MapError`]. Unless nothing stays mapped, the books of what stays need memory.
    pub fn munmap(&self, range: VirtRange) -> Result<(), MapError> {
        self.check_range(range)?;
        self.change(|| {
            let write = self.mmap_lock().write(self.machine());
            self.remove(&write, range)
        })
    }

    pub(super) fn remove(&self, write: &MmapWrite<'_, M>, range: VirtRange) -> Result<Garbage<M>, MapError> {
        let mut remnants = VmaChain::new();
        self.check_huge_pages(write, range)?;
        for vma in self.vmas().overlapping(write, range) {
            for part in [before(vma, range), after(vma, range)].into_iter().flatten() {
                self.push_part(&mut remnants, vma, part, vma.protection())?;
            }
        }
        if self.vmas().overlapping(write, range).next().is_none() {
            return Ok(Garbage::new());
        }
        let mut removed = Removed::new();
        self.splice(write, range, remnants, &mut removed)?;

        let bounds = self.free_space_around(write, range);
        let mut gather = MmuGather::new(self);
        unmap_page_range(self, write, range, Regions::Detached, &mut gather);
        free_pgtables(self, write, range, bounds, &mut gather);
        let mut garbage = gather.finish();
        garbage.removed = removed;
        Ok(garbage)
    }

    /// Changes what may be done to `range`, all of which must be mapped. When it returns, no CPU can use a right that was
    /// taken away. Takes `mmap_lock`.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn mprotect(&self, range: VirtRange, protection: Protection) -> Result<(), MapError> {
        self.check_range(range)?;
        self.change(|| self.protect(range, protection))
    }

    fn protect(&self, range: VirtRange, protection: Protection) -> Result<Garbage<M>, MapError> {
        let write = self.mmap_lock().write(self.machine());
        self.check_huge_pages(&write, range)?;
        let mut new = VmaChain::new();
        let mut reached = range.start;
        let built = self.vmas().overlapping(&write, range).try_for_each(|vma| {
            if vma.range().start > reached {
                return Err(MapError::NotMapped);
            }
            reached = vma.range().end;
            let inside = vma.range().intersection(&range).ok_or(MapError::BadRange)?;
            let parts = [
                before(vma, range).map(|part| (part, vma.protection())),
                Some((inside, protection)),
                after(vma, range).map(|part| (part, vma.protection())),
            ];
            parts.into_iter().flatten().try_for_each(|(part, protection)| {
                new.push_new(self.memory(), vma.part(part, protection)).map_err(MapError::from)
            })
        });
        let built = built.and(if reached < range.end { Err(MapError::NotMapped) } else { Ok(()) });
        if let Err(error) = built {
            new.dispose(self.memory());
            return Err(error);
        }
        let mut removed = Removed::new();
        self.splice(&write, range, new, &mut removed)?;

        let mut gather = MmuGather::new(self);
        for vma in self.vmas().overlapping(&write, range) {
            self.protect_pages(&write, vma, range, &mut gather);
        }
        let mut garbage = gather.finish();
        garbage.removed = removed;
        Ok(garbage)
    }

    /// Has the entries of `range` that lie in `vma` say what the region's protection says.
    fn protect_pages(&self, write: &MmapWrite<'_, M>, vma: &Vma<M>, range: VirtRange, gather: &mut MmuGather<'_, M>) {
        let Some(inside) = vma.range().intersection(&range) else { return };
        let rights = vma.protection();
        let shared = !matches!(vma.backing(), Backing::Anonymous);
        for_each_leaf(self, write, inside, |address, leaf| {
            let (level, (old, new)) = match leaf {
                Leaf::Pte(pte) if pte.load().is_present() => {
                    let changed = pte.update(|entry| {
                        // Whether an anonymous page may be written is for the next store's fault to decide: `fork` may
                        // have shared it.
                        let write = rights.write && (shared || entry.is_writable());
                        entry.with_protection(Protection { write, ..rights })
                    });
                    (Level::Pte, changed)
                }
                Leaf::Pte(_) => return ControlFlow::Continue(()),
                // Never shared: `fork` splits it first.
                Leaf::Huge(huge) => (huge.level(), huge.update(|entry| entry.with_protection(rights))),
            };
            // A right that is only added needs no flush: whoever misses it takes one spurious fault (spec 7.5).
            let loses_a_right =
                (old.is_writable() && !new.is_writable()) || (old.is_executable() && !new.is_executable());
            if loses_a_right && !sabotaged!("protect-flush") {
                gather.widen_level(address, level);
            }
            ControlFlow::Continue(())
        });
    }

    /// Refuses a range that ends inside an explicit huge page.
    pub(super) fn check_huge_pages(&self, held: &impl MmapHeld, range: VirtRange) -> Result<(), MapError> {
        let is_cut = self.vmas().overlapping(held, range).any(|vma| vma.cuts_huge_page(range));
        if is_cut { Err(MapError::CutsHugePage) } else { Ok(()) }
    }

    pub(super) fn check_range(&self, range: VirtRange) -> Result<(), MapError> {
        let valid = VirtRange::new(range.start.0, range.end.0).is_some_and(|range| range.end <= M::Mode::USER_END);
        if valid { Ok(()) } else { Err(MapError::BadRange) }
    }

    #[cfg_attr(test, track_caller)]
    pub(super) fn push_part(
        &self,
        chain: &mut VmaChain<M>,
        vma: &Vma<M>,
        part: VirtRange,
        protection: Protection,
    ) -> Result<(), MapError> {
        chain.push_new(self.memory(), vma.part(part, protection)).map_err(|error| {
            chain.dispose(self.memory());
            error.into()
        })
    }

    /// Publishes `new` in place of what overlaps `span`; without memory `new` is given back.
    #[cfg_attr(test, track_caller)]
    pub(super) fn splice(
        &self,
        write: &MmapWrite<'_, M>,
        span: VirtRange,
        mut new: VmaChain<M>,
        removed: &mut Removed<M>,
    ) -> Result<(), MapError> {
        self.vmas().splice(self.memory(), write, span, &mut new, removed).map_err(|error| {
            new.dispose(self.memory());
            error.into()
        })
    }

    /// The range between the nearest regions on both sides of `range`, which is free itself.
    pub(super) fn free_space_around(&self, write: &MmapWrite<'_, M>, range: VirtRange) -> VirtRange {
        let end = self.vmas().first_ending_above(write, range.start).map_or(M::Mode::USER_END, |vma| vma.range().start);
        VirtRange { start: self.vmas().floor(write, range.start), end }
    }
}

/// The part of `vma` below `range`.
pub(super) fn before<M: Machine>(vma: &Vma<M>, range: VirtRange) -> Option<VirtRange> {
    VirtRange::new(vma.range().start.0, range.start.0.min(vma.range().end.0))
}

/// The part of `vma` above `range`.
pub(super) fn after<M: Machine>(vma: &Vma<M>, range: VirtRange) -> Option<VirtRange> {
    VirtRange::new(range.end.0.max(vma.range().start.0), vma.range().end.0)
}

#[cfg(all(test, not(loom)))]
mod tests;
