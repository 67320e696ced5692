//! The pages of a gather: a few on the stack, then whole frames of them.
//!
//! Rules kept: a list is lengthened before a lock is taken, never under it, and by an allocation that does not wait; if
//! there is no frame the list is full sooner, and nothing else (spec 8.2).
#![allow(unsafe_code)]

use crate::address::Pfn;
use crate::config::PAGE_SIZE;
use crate::machine::Machine;
use crate::memory::Memory;
use core::ptr::NonNull;

/// Pages on the stack: enough for a small `munmap`.
const LOCAL: usize = 8;
/// Pages in a frame.
const PER_FRAME: usize = PAGE_SIZE / size_of::<u64>();
/// Most frames of one gather, so that at most about 10,000 pages wait for one flush.
const FRAMES: usize = 19;

/// Pages whose references wait for a flush.
pub(super) struct PageBatches<M: Machine> {
    memory: &'static Memory<M>,
    len: usize,
    local: [Pfn; LOCAL],
    frames: [Pfn; FRAMES],
    frame_count: usize,
}

impl<M: Machine> PageBatches<M> {
    pub(super) fn new(memory: &'static Memory<M>) -> Self {
        Self { memory, len: 0, local: [Pfn(0); LOCAL], frames: [Pfn(0); FRAMES], frame_count: 0 }
    }

    fn room(&self) -> usize {
        LOCAL + self.frame_count * PER_FRAME - self.len
    }

    /// Makes room for `pages` more, if there is memory for that.
    pub(super) fn reserve(&mut self, pages: u64) {
        while (self.room() as u64) < pages && self.frame_count < FRAMES {
            let Ok(frame) = self.memory.frames().alloc_low(self.memory.machine()) else { return };
            self.frames[self.frame_count] = frame;
            self.frame_count += 1;
        }
    }

    /// Adds a page; true when the next would not fit.
    pub(super) fn push(&mut self, pfn: Pfn) -> bool {
        debug_assert!(self.room() > 0, "a full gather is not flushed");
        let index = self.len;
        match self.local.get_mut(index) {
            Some(local) => *local = pfn,
            // SAFETY: the word is one of a frame that this list has allocated and nobody else knows.
            None => unsafe { self.word(index - LOCAL).write(pfn.0) },
        }
        self.len += 1;
        self.room() == 0
    }

    fn get(&self, index: usize) -> Pfn {
        match self.local.get(index) {
            Some(local) => *local,
            // SAFETY: as in `push`, which has written it.
            None => Pfn(unsafe { self.word(index - LOCAL).read() }),
        }
    }

    /// The `index`-th word of the frames, which has been reserved.
    fn word(&self, index: usize) -> NonNull<u64> {
        let frame = self.frames[..self.frame_count][index / PER_FRAME];
        let bytes = self.memory.machine_ref().frame_bytes(frame);
        // SAFETY: the word lies inside the frame; a frame is aligned for it.
        unsafe { bytes.cast::<u64>().add(index % PER_FRAME) }
    }

    /// Drops the references: nobody translates to the pages any more.
    pub(super) fn put_all(&mut self) {
        (0..self.len).for_each(|index| self.memory.put_page(self.get(index)));
        self.len = 0;
    }

    /// Gives the frames of the list back.
    pub(super) fn release(&mut self) {
        debug_assert_eq!(self.len, 0, "pages of a gather are never freed");
        for frame in &self.frames[..core::mem::take(&mut self.frame_count)] {
            self.memory.frames().free(self.memory.machine(), *frame);
        }
    }
}

impl<M: Machine> Drop for PageBatches<M> {
    fn drop(&mut self) {
        debug_assert!((self.len == 0 && self.frame_count == 0) || crate::is_unwinding(), "a gather is not finished");
    }
}
