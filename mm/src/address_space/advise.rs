//! `madvise`: what a process says about its memory without changing its regions.
//!
//! Rule: `mmap_lock` is held for reading only, so faults and other advice go on meanwhile. What one of them has just
//! taken out but not flushed, the other flushes too before it returns (R21, `gather::FlushPending`).

use super::{MapError, Mm};
use crate::address::VirtRange;
use crate::deferred::Garbage;
use crate::gather::MmuGather;
use crate::machine::Machine;
use crate::pgtable::{Regions, unmap_page_range};

impl<M: Machine> Mm<M> {
    /// Drops the pages of `range`, all of which must be mapped; the regions stay (`madvise(MADV_DONTNEED)`). Anonymous
    /// memory reads as zero afterwards, an object's page is found again. When it returns, no CPU translates an address of
    /// the range by what it was mapped to before (I29). PTE tables that lie wholly in the range go, if they stay empty
    /// (spec 9.1). Takes `mmap_lock` for reading.
    ///
    /// # Errors
    ///
    /// [`MapError::BadRange`], [`MapError::NotMapped`] and [`MapError::CutsHugePage`]; nothing has changed then.
    pub fn madvise_dontneed(&self, range: VirtRange) -> Result<(), MapError> {
        self.check_range(range)?;
        let garbage = self.discard(range)?;
        // Without `mmap_lock`, since it may wait for a grace period.
        self.memory().defer(garbage);
        Ok(())
    }

    fn discard(&self, range: VirtRange) -> Result<Garbage<M>, MapError> {
        let read = self.mmap_lock().read(self.machine());
        let mut reached = range.start;
        for vma in self.vmas().overlapping(&read, range) {
            if vma.range().start > reached {
                return Err(MapError::NotMapped);
            }
            reached = vma.range().end;
        }
        if reached < range.end {
            return Err(MapError::NotMapped);
        }
        self.check_huge_pages(&read, range)?;
        let mut gather = MmuGather::new(self);
        unmap_page_range(self, &read, range, Regions::Kept, &mut gather);
        Ok(gather.finish())
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
