//! The frame allocator: buddy lists under one lock per zone, and in front of them a reserve per CPU.
//!
//! High memory is given out first, to whoever can do with it, so that low memory is left for those who cannot (see [`Zone`]).
//! Where all memory is low the other zone is empty and costs one look.
//!
//! Rules: an allocation that finds its CPU's reserve filled takes no lock of any kind (the fast path of a fault). The
//! allocator never sleeps. Every frame is on a buddy list, in a reserve, or owned by whoever allocated it; its type says
//! which, and a free that contradicts the type stops the machine there and then. A frame handed out is
//! [`PageType::Data`], has one reference and no mapping, and its page-table lock is not live (I9).

mod buddy;
mod injection;
mod percpu;
mod zone;

pub use buddy::MAX_ORDER;
pub use injection::{Injected, Injection, Site};
pub use percpu::CpuFrames;
pub use zone::Zone;

use crate::address::Pfn;
use crate::machine::{FrameUse, Machine};
use crate::page::{MemMap, PageType};
use zone::ZoneFrames;

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
    low: ZoneFrames<M>,
    high: ZoneFrames<M>,
    far: ZoneFrames<M>,
}

impl<M: Machine> FrameAllocator<M> {
    /// Owns no frame yet.
    pub fn new(memmap: MemMap<M::Lock>) -> Self {
        let zone = |zone| ZoneFrames::new(zone, memmap);
        Self { memmap, low: zone(Zone::Low), high: zone(Zone::High), far: zone(Zone::Far) }
    }

    /// Takes over the frames from `start` up to `end`, as the boot memory map has them. One call at a time. Takes the zone locks.
    ///
    /// # Errors
    ///
    /// [`RangeError`], with nothing changed: firmware's memory map cannot be trusted.
    pub fn add_free_range(&self, machine: M, start: Pfn, end: Pfn) -> Result<(), RangeError> {
        if start < self.memmap.first() || end > self.memmap.end() {
            return Err(RangeError::OutsideMemMap);
        }
        let frames = || (start.0..end.0).map(Pfn);
        if frames().any(|pfn| self.memmap.page(pfn).page_type() != PageType::Reserved) {
            return Err(RangeError::Overlap);
        }
        for pfn in frames() {
            self.memmap.page(pfn).set_state(PageType::Tail, 0, 0);
            machine.note_frame(pfn, FrameUse::Free);
        }
        let mut start = start;
        for zone in Zone::ALL {
            let end = (start.0..end.0).map(Pfn).find(|pfn| Zone::of(machine, *pfn) != zone).unwrap_or(end);
            if start < end {
                self.zone(zone).add(machine, start, end);
            }
            start = end;
        }
        Ok(())
    }

    /// Takes a frame, of high memory if there is one. Its contents are whatever was there. Takes a zone lock if the CPU's
    /// reserve is empty.
    ///
    /// # Errors
    ///
    /// [`OutOfFrames`] when neither the buddy lists nor any CPU's reserve has a frame.
    #[cfg_attr(test, track_caller)]
    pub fn alloc(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        self.alloc_from([&self.far, &self.high, &self.low], machine)
    }

    /// Takes a frame filled with zeroes that walkers find a table in, of high memory if there is one.
    ///
    /// # Errors
    ///
    /// As [`alloc`](Self::alloc), of such frames.
    #[cfg_attr(test, track_caller)]
    pub fn alloc_zeroed_table(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        let pfn = self.alloc_from([&self.high, &self.low], machine)?;
        machine.zero_frame(pfn);
        Ok(pfn)
    }

    /// Takes a frame filled with zeroes.
    ///
    /// # Errors
    ///
    /// As [`alloc`](Self::alloc).
    #[cfg_attr(test, track_caller)]
    pub fn alloc_zeroed(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        let pfn = self.alloc(machine)?;
        machine.zero_frame(pfn);
        Ok(pfn)
    }

    /// Takes a frame that [`Machine::frame_bytes`] reaches, as [`alloc`](Self::alloc) does.
    ///
    /// # Errors
    ///
    /// [`OutOfFrames`] when there is no such frame; there may be others.
    #[cfg_attr(test, track_caller)]
    pub fn alloc_low(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        self.alloc_from([&self.low], machine)
    }

    /// Takes such a frame filled with zeroes.
    ///
    /// # Errors
    ///
    /// As [`alloc_low`](Self::alloc_low).
    #[cfg_attr(test, track_caller)]
    pub fn alloc_zeroed_low(&self, machine: M) -> Result<Pfn, OutOfFrames> {
        let pfn = self.alloc_low(machine)?;
        machine.zero_frame(pfn);
        Ok(pfn)
    }

    /// Takes a block of 2^`order` frames, aligned to its size, of high memory if there is one. Takes a zone lock.
    ///
    /// # Errors
    ///
    /// [`OutOfFrames`] when there is no such block even after all reserves have been drained.
    #[cfg_attr(test, track_caller)]
    pub fn alloc_order(&self, machine: M, order: u32) -> Result<Pfn, OutOfFrames> {
        if order > MAX_ORDER || machine.local().injection.should_fail(Site::Frame) {
            return Err(OutOfFrames);
        }
        let zones = [&self.far, &self.high, &self.low];
        let taken = zones.iter().find_map(|zone| zone.take_block(machine, order));
        let pfn = taken.or_else(|| take_drained(zones, machine, order)).ok_or(OutOfFrames)?;
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
        self.zone(Zone::of(machine, pfn)).put(machine, pfn);
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
        self.zone(Zone::of(machine, pfn)).put_block(machine, pfn, order);
    }

    /// Moves all frames of all CPUs' reserves to the buddy lists. Takes the zone locks.
    pub fn drain(&self, machine: M) {
        Zone::ALL.iter().for_each(|zone| self.zone(*zone).drain(machine));
    }

    /// Frames nobody owns, those in reserves included. Exact while nobody allocates or frees. Takes the zone locks.
    pub fn free_frames(&self, machine: M) -> u64 {
        Zone::ALL.iter().map(|zone| self.free_frames_of(machine, *zone)).sum()
    }

    /// Those of them that are in `zone`.
    pub fn free_frames_of(&self, machine: M, zone: Zone) -> u64 {
        self.zone(zone).free_frames(machine)
    }

    /// Frames taken over since boot. Takes the zone locks.
    pub fn total_frames(&self, machine: M) -> u64 {
        Zone::ALL.iter().map(|zone| self.zone(*zone).total_frames(machine)).sum()
    }

    /// The first frame of `zone` taken over and the one after the last; `None` if it has none. Takes the zone lock.
    pub fn span(&self, machine: M, zone: Zone) -> Option<(Pfn, Pfn)> {
        self.zone(zone).span(machine)
    }

    /// The descriptors of all frames.
    pub fn memmap(&self) -> MemMap<M::Lock> {
        self.memmap
    }

    fn zone(&self, zone: Zone) -> &ZoneFrames<M> {
        match zone {
            Zone::Low => &self.low,
            Zone::High => &self.high,
            Zone::Far => &self.far,
        }
    }

    /// Takes a frame from the first of `zones` that has one. What other CPUs keep in reserve comes last.
    #[cfg_attr(test, track_caller)]
    fn alloc_from<const N: usize>(&self, zones: [&ZoneFrames<M>; N], machine: M) -> Result<Pfn, OutOfFrames> {
        if machine.local().injection.should_fail(Site::Frame) {
            return Err(OutOfFrames);
        }
        let taken = zones.iter().find_map(|zone| zone.take(machine));
        let pfn = taken.or_else(|| take_drained(zones, machine, 0)).ok_or(OutOfFrames)?;
        self.hand_out(machine, pfn, 0);
        Ok(pfn)
    }

    fn hand_out(&self, machine: M, pfn: Pfn, order: u32) {
        let page = self.memmap.page(pfn);
        debug_assert_eq!((page.refcount(), page.mapcount()), (0, 0), "free {pfn:?} has references or mappings");
        page.set_state(PageType::Data, order, 0);
        page.set_refcount(1);
        machine.note_block(pfn, order, FrameUse::Data);
    }

    fn take_back(&self, machine: M, pfn: Pfn, order: u32) {
        let page = self.memmap.page(pfn);
        let is_block = page.page_type() == PageType::Data && page.order() == order;
        if !is_block && !sabotaged!("free-table") {
            bad_free(pfn, page.page_type(), page.order(), order);
        }
        debug_assert!(page.refcount() <= 1 && page.mapcount() == 0, "{pfn:?} freed while in use");
        page.set_refcount(0);
        machine.note_block(pfn, order, FrameUse::Free);
    }
}

/// A frame freed twice, or as something it is not: the free lists would be corrupt from here on.
#[cold]
fn bad_free(pfn: Pfn, page_type: PageType, order: u32, freed_as: u32) -> ! {
    panic!("{pfn:?} freed as an allocated block of order {freed_as}, but it is {page_type:?} of order {order}");
}

/// The last resort: what CPUs keep in reserve of any of `zones`.
#[cold]
fn take_drained<M: Machine, const N: usize>(zones: [&ZoneFrames<M>; N], machine: M, order: u32) -> Option<Pfn> {
    zones.iter().find_map(|zone| zone.take_drained(machine, order))
}

#[cfg(all(test, not(loom)))]
mod tests;
