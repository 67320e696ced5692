//! Physical memory: frames of entry slots, and what each frame is used for.
//!
//! Rule: a frame's use only changes while no CPU's TLB or paging-structure cache names the frame, as far as the CPU could
//! use what it has cached. `names` counts those cached entries, so that the check costs nothing when all is well; `lives`
//! tells an entry cached in an earlier use of the frame from one of this use, wherever it comes to light.

use super::host::lock;
use super::slot::SimSlot;
use crate::address::Pfn;
use crate::machine::FrameUse;
use crate::pgtable::{Entry, EntrySlot};
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Eight-byte slots in a frame, whatever the mode makes of them.
pub(super) const SLOTS: usize = 512;

/// What a free frame is filled with: present, writable entries that point nowhere good. Whoever walks a freed table or
/// trusts a fresh frame to be zero shall notice.
const GARBAGE: Entry = Entry(0x0000_dead_beef_d067);

#[repr(C, align(4096))]
struct Frame<S>([SimSlot<S>; SLOTS]);

/// The memory of one machine.
pub(super) struct PhysicalMemory<S: 'static> {
    first: Pfn,
    frames: &'static [Frame<S>],
    uses: Box<[AtomicU8]>,
    names: Box<[AtomicU32]>,
    lives: Box<[AtomicU32]>,
    tables: Mutex<BTreeSet<Pfn>>,
}

impl<S: EntrySlot> PhysicalMemory<S> {
    pub(super) fn new(first: Pfn, count: usize) -> Self {
        const { assert!(size_of::<Frame<S>>() == 4096, "a frame is 512 slots of 8 bytes") };
        Self {
            first,
            frames: frames(count),
            uses: (0..count).map(|_| AtomicU8::new(encode(None))).collect(),
            names: (0..count).map(|_| AtomicU32::new(0)).collect(),
            lives: (0..count).map(|_| AtomicU32::new(0)).collect(),
            tables: Mutex::new(BTreeSet::new()),
        }
    }

    fn index(&self, pfn: Pfn) -> Option<usize> {
        let index = usize::try_from(pfn.0.checked_sub(self.first.0)?).ok()?;
        (index < self.frames.len()).then_some(index)
    }

    /// The slots of a frame; `None` outside memory.
    pub(super) fn slots(&self, pfn: Pfn) -> Option<&[SimSlot<S>; SLOTS]> {
        Some(&self.frames[self.index(pfn)?].0)
    }

    /// The slots of a frame that the caller was given by this memory.
    pub(super) fn slots_of(&self, pfn: Pfn) -> &[SimSlot<S>; SLOTS] {
        match self.slots(pfn) {
            Some(slots) => slots,
            None => panic!("simulated machine: no memory at {pfn:?}"),
        }
    }

    /// The bytes of a frame. They may be written, since every slot is an atomic.
    pub(super) fn bytes(&self, pfn: Pfn) -> NonNull<u8> {
        NonNull::from(self.slots_of(pfn)).cast()
    }

    pub(super) fn fill(&self, pfn: Pfn, word: u64) {
        self.slots_of(pfn).iter().for_each(|slot| slot.word().store(word, Ordering::Release));
    }

    pub(super) fn copy(&self, from: Pfn, to: Pfn) {
        for (from, to) in self.slots_of(from).iter().zip(self.slots_of(to)) {
            to.word().store(from.word().load(Ordering::Acquire), Ordering::Release);
        }
    }

    pub(super) fn fill_with_garbage(&self, pfn: Pfn) {
        self.fill(pfn, GARBAGE.0);
    }

    /// What the frame is used for; `None` when it was never given to the allocator, or is no memory at all.
    pub(super) fn frame_use(&self, pfn: Pfn) -> Option<FrameUse> {
        // Acquire: pairs with `set_use`, so that a check sees what the one who changed the use had done before.
        self.index(pfn).and_then(|index| decode(self.uses[index].load(Ordering::Acquire)))
    }

    /// Changes the use.
    pub(super) fn set_use(&self, pfn: Pfn, to: FrameUse) {
        let Some(index) = self.index(pfn) else { return };
        let from = decode(self.uses[index].swap(encode(Some(to)), Ordering::AcqRel));
        if to == FrameUse::Table {
            lock(&self.tables).insert(pfn);
        } else if from == Some(FrameUse::Table) {
            lock(&self.tables).remove(&pfn);
        }
    }

    /// The use the frame has had so far ends.
    pub(super) fn end_life(&self, pfn: Pfn) {
        if let Some(index) = self.index(pfn) {
            // SeqCst, with the count of names: whoever ends a life sees who names the frame, or that one sees the end.
            self.lives[index].fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How often the frame's use has ended.
    pub(super) fn lives(&self, pfn: Pfn) -> u64 {
        self.index(pfn).map_or(0, |index| u64::from(self.lives[index].load(Ordering::SeqCst)))
    }

    /// A CPU has begun to cache an entry that names the frame.
    pub(super) fn name(&self, pfn: Pfn) {
        if let Some(index) = self.index(pfn) {
            self.names[index].fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A CPU has dropped such an entry.
    pub(super) fn unname(&self, pfn: Pfn) {
        if let Some(index) = self.index(pfn) {
            self.names[index].fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether any CPU caches an entry that names the frame.
    pub(super) fn is_named(&self, pfn: Pfn) -> bool {
        self.index(pfn).is_some_and(|index| self.names[index].load(Ordering::SeqCst) != 0)
    }

    /// Looks at every frame in use as a table. Whoever takes one out of use waits until the look is over, before anything but the
    /// garbage of a free frame, which names no frame, is written there.
    pub(super) fn for_each_table(&self, mut look: impl FnMut(Pfn, &[SimSlot<S>; SLOTS])) {
        lock(&self.tables).iter().for_each(|table| look(*table, self.slots_of(*table)));
    }
}

/// So many frames of garbage. They are never freed, as no handle of a machine expires.
fn frames<S: EntrySlot>(count: usize) -> &'static [Frame<S>] {
    #[cfg(shuttle)]
    if let Some(frames) = spare::take(count) {
        return frames;
    }
    (0..count).map(|_| Frame(std::array::from_fn(|_| SimSlot::new(GARBAGE)))).collect::<Vec<_>>().leak()
}

/// Frames of machines that are gone. A model makes thousands of machines, one after another.
#[cfg(shuttle)]
mod spare {
    use super::{EntrySlot, Frame, GARBAGE, PhysicalMemory};
    use std::any::Any;
    use std::cell::RefCell;
    use std::sync::atomic::Ordering;

    thread_local! {
        static SPARE: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take<S: EntrySlot>(count: usize) -> Option<&'static [Frame<S>]> {
        let frames: &'static [Frame<S>] = SPARE
            .with_borrow_mut(|spare| {
                let fits = |frames: &Box<dyn Any>| {
                    frames.downcast_ref::<&'static [Frame<S>]>().is_some_and(|frames| frames.len() == count)
                };
                let index = spare.iter().position(fits)?;
                spare.swap_remove(index).downcast().ok()
            })
            .map(|frames| *frames)?;
        let slots = frames.iter().flat_map(|frame| &frame.0);
        slots.for_each(|slot| slot.word().store(GARBAGE.0, Ordering::Relaxed));
        Some(frames)
    }

    impl<S: EntrySlot> PhysicalMemory<S> {
        /// Leaves the frames to the next machine of this thread that has as many.
        pub(in super::super) fn hand_on(&self) {
            SPARE.with_borrow_mut(|spare| spare.push(Box::new(self.frames)));
        }
    }
}

const fn encode(frame_use: Option<FrameUse>) -> u8 {
    match frame_use {
        None => 0,
        Some(FrameUse::Free) => 1,
        Some(FrameUse::Table) => 2,
        Some(FrameUse::Data) => 3,
    }
}

const fn decode(word: u8) -> Option<FrameUse> {
    match word {
        1 => Some(FrameUse::Free),
        2 => Some(FrameUse::Table),
        3 => Some(FrameUse::Data),
        _ => None,
    }
}
