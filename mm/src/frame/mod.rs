//! The frame allocator: buddy lists under one zone lock, and in front of them a reserve per CPU.
//!
//! Rules: an allocation that finds its CPU's reserve filled takes no lock of any kind (the fast path of a fault). The
//! allocator never sleeps. Every frame is on a buddy list, in a reserve, or owned by whoever allocated it; its type says
//! which, and a free that contradicts the type stops the machine there and then. A frame handed out is
//! [`PageType::Data`], has one reference and no mapping, and its page-table lock is not live (I9).

mod buddy;
mod injection;
mod percpu;

pub use buddy::MAX_ORDER;
pub use injection::{Injected, Injection, Site};
pub use percpu::CpuFrames;

use crate::address::Pfn;
use crate::machine::{FrameUse, Machine};
use crate::page::{MemMap, PageType};
use crate::sync::spin::{SpinGuard, SpinLock};
use crate::sync::{LockClass, OwnLine};
use buddy::Buddy;

/// No frame, or no block of the wanted order, is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames;

/// Why a range of memory was not taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeError {
    /// Part of it has no descriptor.
    OutsideMemMap,
    /// Part of it has been taken over before.
    Overlap,
}

/// All frames of one machine that `mm` may give out.
pub struct FrameAllocator<M: Machine> {
    memmap: MemMap<M::Lock>,
    /// Apart from `memmap`, which every fault reads.
    zone: OwnLine<SpinLock<Zone<M>, M::Lock>>,
}

struct Zone<M: Machine> {
    buddy: Buddy<M::Lock>,
    total: u64,
}

impl<M: Machine> FrameAllocator<M> {
    /// Owns no frame yet.
    pub fn new(memmap: MemMap<M::Lock>) -> Self {
        Self { memmap, zone: OwnLine(SpinLock::new(Zone { buddy: Buddy::new(memmap), total: 0 })) }
    }

    /// Takes over the frames from `start` up to `end`, as the boot memory map has them. Takes the zone lock.
    ///
    /// # Errors
    ///
    /// [`RangeError`], with nothing changed: firmware's memory map cannot be trusted.
    pub fn add_free_range(&self, machine: M, start: Pfn, end: Pfn) -> Result<(), RangeError> {
        if start < self.memmap.first() || end > self.memmap.end() {
            return Err(RangeError::OutsideMemMap);
        }
        let mut zone = self.lock(machine);
        let frames = || (start.0..end.0).map(Pfn);
        if frames().any(|pfn| self.memmap.page(pfn).page_type() != PageType::Reserved) {
            return Err(RangeError::Overlap);
        }
        for pfn in frames() {
            self.memmap.page(pfn).set_state(PageType::Tail, 0, 0);
            machine.note_frame(pfn, FrameUse::Free);
        }
        let mut next = start.0;
        while next < end.0 {
            // The largest block that is aligned here and ends in the range.
            let order = next.trailing_zeros().min((end.0 - next).ilog2()).min(MAX_ORDER);
            zone.buddy.put(Pfn(next), order);
            next += 1 << order;
        }
        zone.total += end.0.saturating_sub(start.0);
        Ok(())
    }

    /// Takes a frame. Its contents are whatever was there. Takes the zone lock if the CPU's reserve is empty.
    ///
    /// # Errors
    ///
    /// [`OutOfFrames`] when neither the buddy lists nor any CPU's reserve has a frame.
    pub fn alloc(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        let local = machine.local();
        if local.injection.should_fail(Site::Frame) {
            return Err(OutOfFrames);
        }
        let pfn = match local.frames.take() {
            Some(pfn) => pfn,
            None => self.refill(machine, &local.frames).or_else(|| self.take_drained(machine, 0)).ok_or(OutOfFrames)?,
        };
        self.hand_out(machine, pfn, 0);
        Ok(pfn)
    }

    /// Takes a frame filled with zeroes.
    ///
    /// # Errors
    ///
    /// As [`alloc`](Self::alloc).
    pub fn alloc_zeroed(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        let pfn = self.alloc(machine)?;
        machine.zero_frame(pfn);
        Ok(pfn)
    }

    /// Takes a frame that [`Machine::frame_bytes`] reaches, as [`alloc`](Self::alloc) does.
    ///
    /// # Errors
    ///
    /// [`OutOfFrames`] when there is none.
    pub fn alloc_low(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        self.alloc(machine)
    }

    /// Takes such a frame filled with zeroes.
    ///
    /// # Errors
    ///
    /// As [`alloc_low`](Self::alloc_low).
    pub fn alloc_zeroed_low(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        let pfn = self.alloc_low(machine)?;
        machine.zero_frame(pfn);
        Ok(pfn)
    }

    /// Takes a block of 2^`order` frames, aligned to its size. Takes the zone lock.
    ///
    /// # Errors
    ///
    /// [`OutOfFrames`] when there is no such block even after all reserves have been drained.
    pub fn alloc_order(&self, machine: M, order: u32) -> Result<Pfn, OutOfFrames> {
        if order > MAX_ORDER || machine.local().injection.should_fail(Site::Frame) {
            return Err(OutOfFrames);
        }
        let taken = self.lock(machine).buddy.take(order, PageType::Data);
        let pfn = taken.or_else(|| self.take_drained(machine, order)).ok_or(OutOfFrames)?;
        self.hand_out(machine, pfn, order);
        Ok(pfn)
    }

    /// Gives a frame back. The caller has its only reference, or has dropped the last. Takes the zone lock if the CPU's
    /// reserve is full.
    ///
    /// # Panics
    ///
    /// If the frame is not one that [`alloc`](Self::alloc) gave out and is still [`PageType::Data`].
    pub fn free(&self, machine: M, pfn: Pfn) {
        self.take_back(machine, pfn, 0);
        self.memmap.page(pfn).set_state(PageType::Stocked, 0, 0);
        let reserve = &machine.local().frames;
        if reserve.put(pfn) {
            return;
        }
        let mut zone = self.lock(machine);
        for cold in core::iter::from_fn(|| reserve.take()).take(percpu::BATCH) {
            zone.buddy.put(cold, 0);
        }
        zone.buddy.put(pfn, 0);
    }

    /// Makes the 2^`order` frames of a block single frames, each with one reference of its own. Takes no lock: the block's
    /// owner is the only one to use their descriptors.
    ///
    /// # Panics
    ///
    /// If the block is not one that [`alloc_order`](Self::alloc_order) gave out with this order, or is shared.
    pub fn split_block(&self, pfn: Pfn, order: u32) {
        let head = self.memmap.page(pfn);
        assert!(
            head.page_type() == PageType::Data && head.order() == order && head.refcount() == 1,
            "{pfn:?} is not an unshared block of order {order}"
        );
        for frame in pfn.0..pfn.0 + (1 << order) {
            let page = self.memmap.page(Pfn(frame));
            page.set_state(PageType::Data, 0, 0);
            page.set_refcount(1);
        }
    }

    /// Gives a block back. Takes the zone lock.
    ///
    /// # Panics
    ///
    /// If the block is not one that [`alloc_order`](Self::alloc_order) gave out with this order.
    pub fn free_order(&self, machine: M, pfn: Pfn, order: u32) {
        self.take_back(machine, pfn, order);
        self.lock(machine).buddy.put(pfn, order);
    }

    /// Moves all frames of all CPUs' reserves to the buddy lists. Takes the zone lock.
    pub fn drain(&self, machine: M) {
        drain_into(&mut self.lock(machine).buddy, machine);
    }

    /// Frames nobody owns, those in reserves included. Exact while nobody allocates or frees. Takes the zone lock.
    pub fn free_frames(&self, machine: M) -> u64 {
        let zone = self.lock(machine);
        zone.buddy.free_frames() + machine.cpus().iter().map(|(_, local)| local.frames.count()).sum::<u64>()
    }

    /// Frames taken over since boot. Takes the zone lock.
    pub fn total_frames(&self, machine: M) -> u64 {
        self.lock(machine).total
    }

    /// The descriptors of all frames.
    pub fn memmap(&self) -> MemMap<M::Lock> {
        self.memmap
    }

    fn lock(&self, machine: M) -> SpinGuard<'_, Zone<M>, M::Lock, M> {
        self.zone.0.lock(machine, LockClass::Zone)
    }

    /// Fills the reserve from the buddy lists and takes one frame for the caller.
    fn refill(&self, machine: M, reserve: &CpuFrames) -> Option<Pfn> {
        let mut zone = self.lock(machine);
        let taken = zone.buddy.take(0, PageType::Stocked)?;
        for _ in 1..percpu::BATCH {
            let Some(pfn) = zone.buddy.take(0, PageType::Stocked) else { break };
            if !reserve.put(pfn) {
                zone.buddy.put(pfn, 0);
                break;
            }
        }
        Some(taken)
    }

    /// The last resort: what other CPUs keep in reserve.
    #[cold]
    fn take_drained(&self, machine: M, order: u32) -> Option<Pfn> {
        // Under one lock, so that no other CPU's refill takes away what was drained for this one.
        let mut zone = self.lock(machine);
        drain_into(&mut zone.buddy, machine);
        zone.buddy.take(order, PageType::Data)
    }

    fn hand_out(&self, machine: M, pfn: Pfn, order: u32) {
        let page = self.memmap.page(pfn);
        debug_assert_eq!((page.refcount(), page.mapcount()), (0, 0), "free {pfn:?} has references or mappings");
        page.set_state(PageType::Data, order, 0);
        page.set_refcount(1);
        for frame in pfn.0..pfn.0 + (1 << order) {
            machine.note_frame(Pfn(frame), FrameUse::Data);
        }
    }

    fn take_back(&self, machine: M, pfn: Pfn, order: u32) {
        let page = self.memmap.page(pfn);
        if page.page_type() != PageType::Data || page.order() != order {
            bad_free(pfn, page.page_type(), page.order(), order);
        }
        debug_assert!(page.refcount() <= 1 && page.mapcount() == 0, "{pfn:?} freed while in use");
        page.set_refcount(0);
        for frame in pfn.0..pfn.0 + (1 << order) {
            machine.note_frame(Pfn(frame), FrameUse::Free);
        }
    }
}

/// A frame freed twice, or as something it is not: the free lists would be corrupt from here on.
#[cold]
fn bad_free(pfn: Pfn, page_type: PageType, order: u32, freed_as: u32) -> ! {
    panic!("{pfn:?} freed as an allocated block of order {freed_as}, but it is {page_type:?} of order {order}");
}

/// Empties all CPUs' reserves. From each no more is taken than it has room for: its CPU may be filling it at the same time.
fn drain_into<M: Machine>(buddy: &mut Buddy<M::Lock>, machine: M) {
    for (_, local) in machine.cpus().iter() {
        for pfn in core::iter::from_fn(|| local.frames.take()).take(percpu::CAPACITY) {
            buddy.put(pfn, 0);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
