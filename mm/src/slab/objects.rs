//! The objects inside one slab frame: where they lie, and the list of the free ones, threaded through them.
//!
//! Layout: the frame's number, then as many objects as fit. A free object starts with the position of the next free one. In
//! debug builds the rest of it is poison, so that a use after free shows when the object is next handed out.

use crate::address::Pfn;
use crate::config::PAGE_SIZE;
use core::alloc::Layout;
use core::ptr::NonNull;

/// A free list's end. Any other link is the object's index plus one.
pub(super) const END: u32 = 0;

const POISON: u8 = 0x6b;
const LINK: usize = size_of::<u32>();
const CACHE_LINE: usize = 64;

/// Where the objects of a cache lie in each of its frames.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    first: usize,
    size: usize,
    align: usize,
    count: u32,
}

impl Geometry {
    /// For objects of `layout`.
    pub(super) fn of(layout: Layout) -> Self {
        let natural = if layout.size().is_power_of_two() { layout.size().min(CACHE_LINE) } else { 1 };
        let align = layout.align().max(natural).max(align_of::<u32>());
        let size = layout.size().max(LINK).next_multiple_of(align);
        let first = size_of::<Pfn>().next_multiple_of(if sabotaged!("slab-align") { 1 } else { align });
        assert!(first + size <= PAGE_SIZE, "an object of {size} bytes does not fit in a slab frame");
        Self { first, size, align, count: ((PAGE_SIZE - first) / size) as u32 }
    }

    /// Whether an object can hold a value of `layout`.
    pub(super) fn fits(&self, layout: Layout) -> bool {
        layout.size() <= self.size && layout.align() <= self.align
    }

    fn offset(&self, index: u32) -> usize {
        debug_assert!(index < self.count, "object {index} of {}", self.count);
        self.first + index as usize * self.size
    }
}

/// The frame an object lies in.
///
/// # Safety
///
/// `object` lies in a frame that was formatted, and carries the provenance of the frame's bytes.
pub(super) unsafe fn frame_of(object: NonNull<u8>) -> Pfn {
    let offset = object.addr().get() % PAGE_SIZE;
    // SAFETY: frames are mapped at multiples of their size, so this is the frame's start, where `format` wrote its number.
    unsafe { object.sub(offset).cast::<Pfn>().read() }
}

/// Makes a frame ready for objects; all are free. Returns the first link of the list.
///
/// # Safety
///
/// `frame` points to the bytes of frame `pfn`, aligned to their number, and nobody else uses them.
pub(super) unsafe fn format(frame: NonNull<u8>, pfn: Pfn, geometry: Geometry) -> u32 {
    // SAFETY: by the contract; the header lies in front of the first object.
    let objects = unsafe {
        frame.cast::<Pfn>().write(pfn);
        Objects::in_frame(frame, geometry)
    };
    (0..geometry.count).rev().fold(END, |next, index| objects.make_free(index, next))
}

/// The objects of one frame.
pub(super) struct Objects {
    frame: NonNull<u8>,
    geometry: Geometry,
}

impl Objects {
    /// A view of the objects in `frame`.
    ///
    /// # Safety
    ///
    /// `frame` points to the bytes of a frame formatted with `geometry`, or about to be, and for as long as the view lives
    /// nobody else touches its free objects.
    pub(super) unsafe fn in_frame(frame: NonNull<u8>, geometry: Geometry) -> Self {
        Self { frame, geometry }
    }

    /// Takes the object that `link`, the head of the free list, names. Returns it and the new head.
    pub(super) fn pop(&self, link: u32) -> (NonNull<u8>, u32) {
        assert_ne!(link, END, "a slab frame on the partial list has a free object");
        let object = self.object(link - 1);
        if cfg!(debug_assertions) {
            assert!(self.is_poisoned(object), "slab object {object:p} was written to while free");
        }
        (object, self.next(object))
    }

    /// Puts `object` in front of the free list that starts with `head`. Returns the new head.
    pub(super) fn push(&self, object: NonNull<u8>, head: u32) -> u32 {
        let offset = object.addr().get() % PAGE_SIZE;
        let from_first = offset.checked_sub(self.geometry.first);
        let Some(from_first) = from_first.filter(|from_first| from_first % self.geometry.size == 0) else {
            panic!("{object:p} is not the start of a slab object");
        };
        if cfg!(debug_assertions) {
            assert!(!self.contains(head, object), "slab object {object:p} freed twice");
        }
        self.make_free((from_first / self.geometry.size) as u32, head)
    }

    fn make_free(&self, index: u32, next: u32) -> u32 {
        let object = self.object(index);
        // SAFETY: `object` starts `size` bytes of the frame, aligned for a link, that belong to nobody (see `in_frame`).
        unsafe {
            if cfg!(debug_assertions) {
                object.write_bytes(POISON, self.geometry.size);
            }
            object.cast::<u32>().write(next);
        }
        index + 1
    }

    fn contains(&self, head: u32, object: NonNull<u8>) -> bool {
        let mut link = head;
        while link != END {
            let free = self.object(link - 1);
            if free == object {
                return true;
            }
            link = self.next(free);
        }
        false
    }

    fn object(&self, index: u32) -> NonNull<u8> {
        // SAFETY: `offset` stays inside the frame.
        unsafe { self.frame.add(self.geometry.offset(index)) }
    }

    /// The link in a free object.
    fn next(&self, object: NonNull<u8>) -> u32 {
        // SAFETY: a free object starts with a link, and free objects are this view's alone.
        unsafe { object.cast::<u32>().read() }
    }

    fn is_poisoned(&self, object: NonNull<u8>) -> bool {
        // SAFETY: as for `next`; the bytes behind the link were written when the object became free.
        (LINK..self.geometry.size).all(|at| unsafe { object.add(at).read() } == POISON)
    }
}
