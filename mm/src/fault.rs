//! `handle_mm_fault`: one page fault of the user half, from the address to the installed entry.
//!
//! The whole attempt is one RCU read section, so region, tables and tree nodes stay. Rules kept:
//! - before every store, under the lock of the slot stored to, the region's detached mark and the entry seen before are
//!   checked (R2, R3, and the rule of `vma`);
//! - memory is allocated and zeroed before the lock is taken (I25); a lost race gives it back and is a success, never out
//!   of memory (spec 1.4);
//! - a fault on a present table takes one lock of any kind, the PTE table's, if its page exists or the CPU's reserve holds
//!   a frame, and writes no line of the address space or the region.

mod cow;
mod huge;

use crate::address::{Pfn, VirtAddr};
use crate::address_space::Mm;
use crate::frame::OutOfFrames;
use crate::machine::Machine;
use crate::object::ObjectError;
use crate::pgtable::{Entry, Protection, Slot, TableError, pmd_alloc, pte_offset_map, pte_offset_map_lock};
use crate::stats::Counter;
use crate::sync::rcu::{self, RcuRead};
use crate::vma::{Access, Backing, Vma};

/// How a fault was resolved. The access is repeated in every case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The zero page now shows there.
    ZeroPage,
    /// A fresh frame now shows there.
    AnonymousPage,
    /// A fresh frame replaced the zero page.
    ZeroPageReplaced,
    /// A copy replaced a page that another address space has, too.
    PageCopied,
    /// A page that another address space had, too, is this one's alone by now and may be written.
    PageReused,
    /// A fresh huge page now shows there.
    HugePage,
    /// A page of the object now shows there.
    ObjectPage,
    /// The entry has got a right that its region grants.
    Upgraded,
    /// The entry allowed the access already: another CPU was faster, or this CPU's TLB was behind.
    Spurious,
    /// The entry or the region changed meanwhile; nothing was done.
    Raced,
}

/// Why the access cannot succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// No region there.
    NotMapped,
    /// The region forbids it.
    Forbidden,
    /// The object has no such page.
    BeyondObject,
    /// The tables on the way are corrupt.
    BadTable,
    /// No memory, even after all reserves were drained and all waiting memory freed.
    OutOfMemory,
}

/// Why one attempt came to nothing.
enum Setback {
    Final(FaultError),
    /// The region was replaced under the attempt.
    Raced,
    OutOfFrames,
}

impl From<FaultError> for Setback {
    fn from(error: FaultError) -> Self {
        Self::Final(error)
    }
}

impl From<TableError> for Setback {
    fn from(error: TableError) -> Self {
        match error {
            TableError::OutOfTables => Self::OutOfFrames,
            TableError::Raced => Self::Raced,
            TableError::Bad => Self::Final(FaultError::BadTable),
        }
    }
}

impl From<ObjectError> for Setback {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::OutOfMemory => Self::OutOfFrames,
            ObjectError::BeyondEnd => Self::Final(FaultError::BeyondObject),
        }
    }
}

impl From<OutOfFrames> for Setback {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

/// Attempts without `mmap_lock` before a fault that keeps losing its region takes it.
const LOCKLESS_ATTEMPTS: u32 = 2;

/// Resolves a fault at `address`, an address of the user half. Interrupts are on; no lock and no read section is held.
///
/// # Errors
///
/// See [`FaultError`].
pub fn handle_mm_fault<M: Machine>(mm: &Mm<M>, address: VirtAddr, access: Access) -> Result<Resolution, FaultError> {
    let machine = mm.machine();
    // Looked up each time: the CPU may be another after sleeping on `mmap_lock`.
    let count = |counter| machine.local().stats.bump(counter);
    let mut reclaimed = false;
    let mut raced = 0;
    loop {
        let attempt = if raced < LOCKLESS_ATTEMPTS {
            attempt(mm, address, access)
        } else {
            // No region is replaced under this lock. What is left to lose against is another fault's progress, and
            // advice that takes tables away.
            count(Counter::MmapLockFault);
            let _read = mm.mmap_lock().read(machine);
            attempt(mm, address, access)
        };
        match attempt {
            Ok(resolution) => {
                count(counter_of(resolution));
                return Ok(resolution);
            }
            Err(Setback::Final(error)) => {
                count(Counter::FailedFault);
                return Err(error);
            }
            Err(Setback::Raced) if raced < LOCKLESS_ATTEMPTS => raced += 1,
            Err(Setback::Raced) => {
                count(counter_of(Resolution::Raced));
                return Ok(Resolution::Raced);
            }
            Err(Setback::OutOfFrames) if !reclaimed => {
                mm.memory().reclaim();
                // An attempt is one read section: afterwards what others had taken is installed, perhaps just where it is
                // wanted here, or given back.
                rcu::synchronize_expedited(mm.memory().rcu(), machine);
                reclaimed = true;
            }
            Err(Setback::OutOfFrames) => {
                count(Counter::FailedFault);
                return Err(FaultError::OutOfMemory);
            }
        }
    }
}

fn counter_of(resolution: Resolution) -> Counter {
    match resolution {
        Resolution::ZeroPage => Counter::AnonymousRead,
        Resolution::AnonymousPage => Counter::AnonymousWrite,
        Resolution::ZeroPageReplaced => Counter::ZeroPageUpgrade,
        Resolution::PageCopied => Counter::PageCopied,
        Resolution::PageReused => Counter::PageReused,
        Resolution::HugePage => Counter::HugeFault,
        Resolution::ObjectPage => Counter::ObjectFault,
        Resolution::Upgraded | Resolution::Spurious => Counter::SpuriousFault,
        Resolution::Raced => Counter::RacedFault,
    }
}

/// One fault under way: what the leaves need.
struct Fault<'f, M: Machine> {
    mm: &'f Mm<M>,
    vma: &'f Vma<M>,
    pmd: Slot<'f, M>,
    address: VirtAddr,
    access: Access,
}

fn attempt<M: Machine>(mm: &Mm<M>, address: VirtAddr, access: Access) -> Result<Resolution, Setback> {
    let rcu: RcuRead<M> = rcu::read_lock(mm.machine());
    let vma = mm.vmas().lookup(&rcu, address).ok_or(FaultError::NotMapped)?;
    if !vma.allows(access) {
        // A region that has just been replaced may have been replaced by one that allows it.
        return Err(if vma.is_detached() { Setback::Raced } else { FaultError::Forbidden.into() });
    }
    if let Backing::Huge(size) = *vma.backing() {
        return huge::hugetlb_fault(mm, &rcu, vma, address, access, size);
    }
    let pmd_table = pmd_alloc(mm, &rcu, vma, address)?;
    let fault = Fault { mm, vma, pmd: pmd_table.slot(address), address: address.page(), access };
    let seen = match pte_offset_map(mm, fault.pmd, fault.address) {
        Some(pte) => pte.load(),
        None => match fault.without_table()? {
            Some(resolution) => return Ok(resolution),
            None => Entry::NONE,
        },
    };
    if seen.is_none() {
        fault.missing()
    } else if seen.allows(access == Access::Write, access == Access::Execute) {
        Ok(Resolution::Spurious)
    } else if access == Access::Write && matches!(vma.backing(), Backing::Anonymous) {
        fault.do_wp_page(seen)
    } else {
        fault.upgrade(seen)
    }
}

impl<M: Machine> Fault<'_, M> {
    /// Nothing is there yet (`do_anonymous_page`, `do_fault`).
    fn missing(&self) -> Result<Resolution, Setback> {
        let protection = self.vma.protection();
        match self.vma.backing() {
            Backing::Anonymous if self.access == Access::Write => {
                let fresh = FreshFrame::zeroed(self.mm)?;
                self.install(Entry::page(fresh.pfn(), protection), Resolution::AnonymousPage, || fresh.keep())
            }
            Backing::Anonymous => {
                let entry = Entry::zero_page(self.mm.memory().zero_page(), protection);
                self.install(entry, Resolution::ZeroPage, || ())
            }
            // `attempt` has sent those elsewhere; a PTE table is nothing they know.
            Backing::Huge(_) => Err(FaultError::BadTable.into()),
            Backing::Object { object, first_page } => {
                let pfn = object.page(first_page + self.vma.page_of(self.address))?;
                let page = self.mm.memory().memmap().page(pfn);
                self.install(Entry::page(pfn, protection), Resolution::ObjectPage, || {
                    page.get();
                    page.map();
                })
            }
        }
    }

    /// Stores `entry` where none was seen; `count` books it, under the lock.
    fn install(&self, entry: Entry, resolution: Resolution, count: impl FnOnce()) -> Result<Resolution, Setback> {
        let pte = pte_offset_map_lock(self.mm, self.pmd, self.address).ok_or(Setback::Raced)?;
        if self.vma.is_detached() && !sabotaged!("fault-region-recheck") {
            return Err(Setback::Raced);
        }
        if !pte.load().is_none() && !sabotaged!("pte-recheck") {
            return Ok(Resolution::Raced);
        }
        count();
        pte.set(entry);
        Ok(resolution)
    }

    /// The page may be used so, only its entry does not say so yet: the right that is missing is added. No flush: that needs
    /// none. Stores to anonymous memory do not come here, `do_wp_page` decides about them.
    fn upgrade(&self, seen: Entry) -> Result<Resolution, Setback> {
        let pte = pte_offset_map_lock(self.mm, self.pmd, self.address).ok_or(Setback::Raced)?;
        if self.vma.is_detached() && !sabotaged!("upgrade-region-recheck") {
            return Err(Setback::Raced);
        }
        let current = pte.load();
        if current.pfn() != seen.pfn() || !current.is_present() {
            return Ok(Resolution::Raced);
        }
        let write = self.access == Access::Write;
        pte.update(|entry| {
            let rights = Protection { write: entry.is_writable() || write, ..self.vma.protection() };
            entry.with_protection(rights).touched(write)
        });
        Ok(Resolution::Upgraded)
    }
}

/// A frame nobody else knows, or a block of them, ready to be shown; goes back unless it is kept.
pub(crate) struct FreshFrame<'f, M: Machine> {
    mm: &'f Mm<M>,
    pfn: Pfn,
    order: u32,
}

impl<'f, M: Machine> FreshFrame<'f, M> {
    #[cfg_attr(test, track_caller)]
    fn zeroed(mm: &'f Mm<M>) -> Result<Self, OutOfFrames> {
        let pfn = mm.memory().frames().alloc_zeroed(mm.machine())?;
        Ok(Self { mm, pfn, order: 0 })
    }

    /// With the contents of `page`, which the caller keeps.
    #[cfg_attr(test, track_caller)]
    fn copy_of(mm: &'f Mm<M>, page: Pfn) -> Result<Self, OutOfFrames> {
        let pfn = mm.memory().frames().alloc(mm.machine())?;
        mm.machine().copy_frame(page, pfn);
        Ok(Self { mm, pfn, order: 0 })
    }

    /// A block of 2^`order` zeroed frames.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn allocate_block(mm: &'f Mm<M>, order: u32) -> Result<Self, OutOfFrames> {
        let pfn = mm.memory().frames().alloc_order(mm.machine(), order)?;
        (pfn.0..pfn.0 + (1 << order)).for_each(|frame| mm.machine().zero_frame(Pfn(frame)));
        Ok(Self { mm, pfn, order })
    }

    /// The frame, or the first of the block.
    pub(crate) fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// The one reference goes to the entry about to map it.
    pub(crate) fn keep(self) {
        self.mm.memory().memmap().page(self.pfn).map();
        core::mem::forget(self);
    }
}

impl<M: Machine> Drop for FreshFrame<'_, M> {
    fn drop(&mut self) {
        if sabotaged!("frame-left") {
            return;
        }
        let frames = self.mm.memory().frames();
        match self.order {
            0 => frames.free(self.mm.machine(), self.pfn),
            order => frames.free_order(self.mm.machine(), self.pfn, order),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
