//! One zone of memory: its buddy lists under one lock, and in front of them what each CPU keeps of it in reserve.
//!
//! Rules: a frame never changes its zone, so no list and no reserve holds frames of two. The locks of two zones are never held
//! together (spec 2.2: no leaf under a leaf).

use super::buddy::Buddy;
use super::percpu::{BATCH, CAPACITY, CpuFrames};
use crate::address::Pfn;
use crate::cpu::CpuLocal;
use crate::machine::Machine;
use crate::page::{MemMap, PageType};
use crate::sync::atomic::Ordering;
use crate::sync::atomic::plain::AtomicBool;
use crate::sync::spin::{SpinGuard, SpinLock};
use crate::sync::{LockClass, OwnLine};

/// Which part of memory a frame belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zone {
    /// What [`Machine::frame_bytes`] reaches; all there is on most machines.
    Low,
    /// What has to be mapped for each use ([`Machine::is_high`]).
    High,
    /// High memory that walkers do not find tables in ([`Machine::walks`]): for pages only.
    Far,
}

impl Zone {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Low, Self::High, Self::Far];

    /// The zone of `pfn`.
    pub fn of<M: Machine>(machine: M, pfn: Pfn) -> Self {
        match (machine.is_high(pfn), machine.walks(pfn)) {
            (false, _) => Self::Low,
            (true, true) => Self::High,
            (true, false) => Self::Far,
        }
    }

    /// What a CPU keeps of it in reserve.
    pub(super) fn reserve(self, local: &CpuLocal) -> &CpuFrames {
        match self {
            Self::Low => &local.frames,
            Self::High => &local.high_frames,
            Self::Far => &local.far_frames,
        }
    }
}

/// The free frames of a zone.
pub(super) struct ZoneFrames<M: Machine> {
    zone: Zone,
    /// Whether the zone has frames at all. Set at boot, and then only read, by every allocation.
    in_use: AtomicBool,
    /// Whether the lists are empty, so that who finds nothing in reserve need not take the lock to learn it. Only a hint.
    empty: AtomicBool,
    /// Apart from what every allocation reads.
    lists: OwnLine<SpinLock<Lists<M>, M::Lock>>,
}

struct Lists<M: Machine> {
    buddy: Buddy<M::Lock>,
    total: u64,
}

impl<M: Machine> ZoneFrames<M> {
    /// Without a single frame.
    pub(super) fn new(zone: Zone, memmap: MemMap<M::Lock>) -> Self {
        Self {
            zone,
            in_use: AtomicBool::new(false),
            empty: AtomicBool::new(true),
            lists: OwnLine(SpinLock::new(Lists { buddy: Buddy::new(memmap), total: 0 })),
        }
    }

    /// Takes over the frames from `start` up to `end`, which are on no list. Takes the zone lock.
    pub(super) fn add(&self, machine: M, start: Pfn, end: Pfn) {
        self.change(machine, |lists| {
            lists.buddy.add(start, end);
            lists.total += end.0 - start.0;
        });
        // Relaxed: boot adds memory before anyone else allocates; who does not see it finds less memory.
        self.in_use.store(true, Ordering::Relaxed);
    }

    /// Takes a frame. Takes the zone lock if the CPU's reserve is empty and the lists are not.
    pub(super) fn take(&self, machine: M) -> Option<Pfn> {
        if !self.is_in_use() {
            return None;
        }
        let reserve = self.zone.reserve(machine.local());
        reserve.take().or_else(|| if self.seems_empty() { None } else { self.refill(machine, reserve) })
    }

    /// Takes a block. Takes the zone lock unless the lists are empty.
    pub(super) fn take_block(&self, machine: M, order: u32) -> Option<Pfn> {
        if !self.is_in_use() || self.seems_empty() {
            return None;
        }
        self.change(machine, |lists| lists.buddy.take(order, PageType::Data))
    }

    /// The last resort: takes what CPUs keep in reserve. Takes the zone lock.
    #[cold]
    pub(super) fn take_drained(&self, machine: M, order: u32) -> Option<Pfn> {
        if !self.is_in_use() {
            return None;
        }
        // Under one lock, so that no other CPU's refill takes away what was drained for this one.
        self.change(machine, |lists| {
            self.drain_into(&mut lists.buddy, machine);
            lists.buddy.take(order, PageType::Data)
        })
    }

    /// Puts a frame, marked as stocked, into the CPU's reserve. Takes the zone lock if that is full.
    pub(super) fn put(&self, machine: M, pfn: Pfn) {
        let reserve = self.zone.reserve(machine.local());
        if reserve.put(pfn) {
            return;
        }
        self.change(machine, |lists| {
            for cold in core::iter::from_fn(|| reserve.take()).take(BATCH) {
                lists.buddy.put(cold, 0);
            }
            lists.buddy.put(pfn, 0);
        });
    }

    /// Puts a block back. Takes the zone lock.
    pub(super) fn put_block(&self, machine: M, pfn: Pfn, order: u32) {
        self.change(machine, |lists| lists.buddy.put(pfn, order));
    }

    /// Moves all frames of all CPUs' reserves to the lists. Takes the zone lock.
    pub(super) fn drain(&self, machine: M) {
        if self.is_in_use() {
            self.change(machine, |lists| self.drain_into(&mut lists.buddy, machine));
        }
    }

    /// Frames nobody owns, those in reserves included. Exact while nobody allocates or frees. Takes the zone lock.
    pub(super) fn free_frames(&self, machine: M) -> u64 {
        let lists = self.lock(machine);
        let reserves = machine.cpus().iter().map(|(_, local)| self.zone.reserve(local).count());
        lists.buddy.free_frames() + reserves.sum::<u64>()
    }

    /// Frames taken over since boot. Takes the zone lock.
    pub(super) fn total_frames(&self, machine: M) -> u64 {
        self.lock(machine).total
    }

    /// The first frame taken over and the one after the last; `None` before there is any. Takes the zone lock.
    pub(super) fn span(&self, machine: M) -> Option<(Pfn, Pfn)> {
        self.lock(machine).buddy.span()
    }

    /// Fills the reserve from the lists and takes one frame for the caller.
    fn refill(&self, machine: M, reserve: &CpuFrames) -> Option<Pfn> {
        self.change(machine, |lists| {
            let taken = lists.buddy.take(0, PageType::Stocked)?;
            for _ in 1..BATCH {
                let Some(pfn) = lists.buddy.take(0, PageType::Stocked) else { break };
                if !reserve.put(pfn) {
                    lists.buddy.put(pfn, 0);
                    break;
                }
            }
            Some(taken)
        })
    }

    /// Empties all CPUs' reserves. From each no more is taken than it has room for: its CPU may be filling it at the same time.
    fn drain_into(&self, buddy: &mut Buddy<M::Lock>, machine: M) {
        for (_, local) in machine.cpus().iter() {
            let reserve = self.zone.reserve(local);
            for pfn in core::iter::from_fn(|| reserve.take()).take(CAPACITY) {
                buddy.put(pfn, 0);
            }
        }
    }

    /// Changes the lists under their lock.
    fn change<R>(&self, machine: M, change: impl FnOnce(&mut Lists<M>) -> R) -> R {
        let mut lists = self.lock(machine);
        let result = change(&mut lists);
        let empty = lists.buddy.free_frames() == 0;
        // Relaxed, here and below: who is misled asks once more under the lock, in `take_drained`. Seldom stored to, since
        // every CPU keeps the line.
        if self.seems_empty() != empty {
            self.empty.store(empty, Ordering::Relaxed);
        }
        result
    }

    fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    fn seems_empty(&self) -> bool {
        self.empty.load(Ordering::Relaxed)
    }

    fn lock(&self, machine: M) -> SpinGuard<'_, Lists<M>, M::Lock, M> {
        self.lists.0.lock(machine, LockClass::Zone)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
