//! Small-object caches for `mm`'s own types: regions, address spaces, objects.
//!
//! Rules: an object lives in a frame of type [`PageType::Slab`] that holds nothing but objects of one cache; a cache's
//! lists, and the free objects in its frames, belong to whoever holds its lock. No other lock is taken under it. A frame
//! whose last object goes is given back; each cache keeps at most one empty frame.

#![allow(unsafe_code)]

mod objects;
mod pgd;

use crate::address::Pfn;
use crate::config::PAGE_SIZE;
use crate::frame::{FrameAllocator, OutOfFrames, Site};
use crate::machine::Machine;
use crate::page::{MemMap, PageList, PageType};
use crate::sync::atomic::Ordering;
use crate::sync::spin::SpinLock;
use crate::sync::{LockClass, RawLock};
use core::alloc::Layout;
use core::ptr::NonNull;
use objects::{Geometry, Objects};

/// Which cache an object comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SlabKind {
    /// A region of an address space.
    Vma = 0,
    /// A node of the tree the regions are looked up in.
    VmaNode = 1,
    /// An address space.
    AddressSpace = 2,
    /// A memory object.
    Object = 3,
    /// A node of the tree of an object's pages.
    ObjectNode = 4,
    /// `page->ptl`, where a lock is larger than a word.
    PtlLock = 5,
    /// A top table that is smaller than a frame.
    Pgd = 6,
}

impl SlabKind {
    /// All of them, each at its own number.
    pub const ALL: [Self; 7] =
        [Self::Vma, Self::VmaNode, Self::AddressSpace, Self::Object, Self::ObjectNode, Self::PtlLock, Self::Pgd];
}

const KINDS: usize = SlabKind::ALL.len();

/// Neither a free object nor a frame to make more of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

impl From<OutOfFrames> for OutOfMemory {
    fn from(_: OutOfFrames) -> Self {
        Self
    }
}

/// The caches of one machine. Each call is given the frame allocator the frames come from, always the same.
pub struct Slab<M: Machine> {
    caches: [Cache<M>; KINDS],
}

struct Cache<M: Machine> {
    /// `None` until a type is registered.
    geometry: Option<Geometry>,
    lists: SpinLock<Lists, M::Lock>,
}

struct Lists {
    /// Frames that have both free objects and objects in use.
    partial: PageList,
    /// The empty frame kept, so that an object allocated and freed in turn does not move a frame each time.
    spare: Option<Pfn>,
    in_use: u64,
}

impl Lists {
    /// A frame with a free object, on the partial list.
    fn with_room<L: RawLock>(&mut self, memmap: &MemMap<L>) -> Option<Pfn> {
        if let Some(spare) = self.partial.first().is_none().then(|| self.spare.take()).flatten() {
            self.partial.push(memmap, spare);
        }
        self.partial.first()
    }
}

impl<M: Machine> Slab<M> {
    /// Caches no type is registered for yet.
    pub fn new() -> Self {
        let lists = || SpinLock::new(Lists { partial: PageList::new(), spare: None, in_use: 0 });
        Self { caches: core::array::from_fn(|_| Cache { geometry: None, lists: lists() }) }
    }

    /// Has cache `kind` hold objects of the size and alignment of `T`. An object whose size is a power of two is aligned to
    /// it, up to a cache line.
    ///
    /// # Panics
    ///
    /// If an object does not fit in a frame.
    #[must_use]
    pub fn register<T>(self, kind: SlabKind) -> Self {
        self.register_layout(kind, Layout::new::<T>())
    }

    /// As [`register`](Self::register), for objects of `layout`.
    ///
    /// # Panics
    ///
    /// If an object does not fit in a frame.
    #[must_use]
    pub fn register_layout(mut self, kind: SlabKind, layout: Layout) -> Self {
        self.caches[kind as usize].geometry = Some(Geometry::of(layout));
        self
    }

    /// Gives cache `kind` an empty frame in advance, unless it has one. Takes the zone lock and the cache's lock.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], with nothing changed.
    ///
    /// # Panics
    ///
    /// If no type is registered for `kind`.
    pub fn stock(&self, machine: M, frames: &FrameAllocator<M>, kind: SlabKind) -> Result<(), OutOfMemory> {
        let (cache, geometry) = self.cache(kind);
        let fresh = new_frame(machine, frames, kind, geometry)?;
        let before = cache.lists.lock(machine, LockClass::Slab).spare.replace(fresh);
        if let Some(pfn) = before {
            free_frame(machine, frames, pfn);
        }
        Ok(())
    }

    /// Takes an object; its contents are undefined. Takes the cache's lock, and the zone lock if the cache must grow.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], with nothing changed.
    ///
    /// # Panics
    ///
    /// If no type is registered for `kind`.
    #[cfg_attr(test, track_caller)]
    pub fn alloc(&self, machine: M, frames: &FrameAllocator<M>, kind: SlabKind) -> Result<NonNull<u8>, OutOfMemory> {
        let site = if kind == SlabKind::PtlLock { Site::PtlLock } else { Site::Slab };
        if machine.local().injection.should_fail(site) {
            return Err(OutOfMemory);
        }
        let memmap = frames.memmap();
        let (cache, geometry) = self.cache(kind);
        let mut lists = cache.lists.lock(machine, LockClass::Slab);
        let pfn = match lists.with_room(&memmap) {
            Some(pfn) => pfn,
            None => {
                drop(lists);
                let fresh = new_frame(machine, frames, kind, geometry);
                lists = cache.lists.lock(machine, LockClass::Slab);
                match fresh {
                    Ok(pfn) => {
                        lists.partial.push(&memmap, pfn);
                        pfn
                    }
                    // Meanwhile another CPU may have freed an object.
                    Err(error) => lists.with_room(&memmap).ok_or(error)?,
                }
            }
        };
        lists.in_use += 1;
        let page = memmap.page(pfn);
        // SAFETY: a frame on the cache's lists is formatted with its geometry, and its lock is held.
        let objects = unsafe { Objects::in_frame(machine.frame_bytes(pfn), geometry) };
        let (object, rest) = objects.pop(page.freelist.load(Ordering::Relaxed) as u32);
        page.freelist.store(rest as usize, Ordering::Relaxed);
        page.slab_used.fetch_add(1, Ordering::Relaxed);
        if rest == objects::END {
            lists.partial.remove(&memmap, pfn);
        }
        Ok(object)
    }

    /// Gives an object back. Takes the cache's lock, and the zone lock if a frame goes back with it.
    ///
    /// # Safety
    ///
    /// `object` came from [`alloc`](Self::alloc) of this `kind` and nothing refers to it any more.
    pub unsafe fn free(&self, machine: M, frames: &FrameAllocator<M>, kind: SlabKind, object: NonNull<u8>) {
        let memmap = frames.memmap();
        let (cache, geometry) = self.cache(kind);
        // SAFETY: the object lies in a formatted frame, whose header does not change while an object is in use.
        let pfn = unsafe { objects::frame_of(object) };
        let page = memmap.page(pfn);
        if page.page_type() != PageType::Slab || page.slab_cache() != kind as usize {
            panic!(
                "{object:p} freed as {kind:?}, but {pfn:?} is {:?} of cache {}",
                page.page_type(),
                page.slab_cache()
            );
        }
        let mut lists = cache.lists.lock(machine, LockClass::Slab);
        // SAFETY: checked just now, and the lock is held.
        let objects = unsafe { Objects::in_frame(machine.frame_bytes(pfn), geometry) };
        let old = page.freelist.load(Ordering::Relaxed) as u32;
        page.freelist.store(objects.push(object, old) as usize, Ordering::Relaxed);
        lists.in_use -= 1;
        let was_last = page.slab_used.fetch_sub(1, Ordering::Relaxed) == 1;
        let was_full = old == objects::END;
        if was_last {
            if !was_full {
                lists.partial.remove(&memmap, pfn);
            }
            if lists.spare.is_none() {
                lists.spare = Some(pfn);
            } else {
                drop(lists);
                free_frame(machine, frames, pfn);
            }
        } else if was_full {
            lists.partial.push(&memmap, pfn);
        }
    }

    /// [`alloc`](Self::alloc), with `value` moved in.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], and the value back.
    ///
    /// # Panics
    ///
    /// If a `T` does not fit the type registered for `kind`.
    #[cfg_attr(test, track_caller)]
    pub fn alloc_value<T>(
        &self,
        machine: M,
        frames: &FrameAllocator<M>,
        kind: SlabKind,
        value: T,
    ) -> Result<NonNull<T>, (OutOfMemory, T)> {
        assert!(self.cache(kind).1.fits(Layout::new::<T>()), "{kind:?} objects are too small for the value");
        match self.alloc(machine, frames, kind) {
            Ok(object) => {
                let object = object.cast::<T>();
                // SAFETY: fresh from the cache, so ours alone, and large and aligned enough for a `T`.
                unsafe { object.write(value) };
                Ok(object)
            }
            Err(error) => Err((error, value)),
        }
    }

    /// Drops the value and gives its object back.
    ///
    /// # Safety
    ///
    /// `object` came from [`alloc_value`](Self::alloc_value) of this `kind` with this `T`, and nothing refers to it any
    /// more.
    pub unsafe fn free_value<T>(&self, machine: M, frames: &FrameAllocator<M>, kind: SlabKind, object: NonNull<T>) {
        // SAFETY: by the contract above it holds a `T` that nobody else will drop, and came from `alloc`.
        unsafe {
            object.drop_in_place();
            self.free(machine, frames, kind, object.cast());
        }
    }

    /// Objects in use. Takes the cache's lock.
    pub fn objects(&self, machine: M, kind: SlabKind) -> u64 {
        self.caches[kind as usize].lists.lock(machine, LockClass::Slab).in_use
    }

    /// Gives the empty frames that caches keep back, so that frames can be counted. Takes the caches' locks and the zone
    /// lock, one at a time.
    pub fn shrink(&self, machine: M, frames: &FrameAllocator<M>) {
        for cache in &self.caches {
            let spare = cache.lists.lock(machine, LockClass::Slab).spare.take();
            if let Some(pfn) = spare {
                free_frame(machine, frames, pfn);
            }
        }
    }

    fn cache(&self, kind: SlabKind) -> (&Cache<M>, Geometry) {
        let cache = &self.caches[kind as usize];
        match cache.geometry {
            Some(geometry) => (cache, geometry),
            None => panic!("no type is registered for {kind:?}"),
        }
    }
}

impl<M: Machine> Default for Slab<M> {
    fn default() -> Self {
        Self::new()
    }
}

fn new_frame<M: Machine>(
    machine: M,
    frames: &FrameAllocator<M>,
    kind: SlabKind,
    geometry: Geometry,
) -> Result<Pfn, OutOfMemory> {
    let pfn = frames.alloc_low(machine)?;
    let bytes = machine.frame_bytes(pfn);
    assert_eq!(bytes.addr().get() % PAGE_SIZE, 0, "frames are mapped at multiples of their size");
    // SAFETY: the frame was allocated just now, so nobody else uses its bytes.
    let first = unsafe { objects::format(bytes, pfn, geometry) };
    let page = frames.memmap().page(pfn);
    page.set_state(PageType::Slab, 0, kind as usize);
    page.slab_used.store(0, Ordering::Relaxed);
    page.freelist.store(first as usize, Ordering::Relaxed);
    Ok(pfn)
}

/// Of an empty frame that is on none of its cache's lists any more.
fn free_frame<M: Machine>(machine: M, frames: &FrameAllocator<M>, pfn: Pfn) {
    let page = frames.memmap().page(pfn);
    page.freelist.store(0, Ordering::Relaxed);
    page.set_state(PageType::Data, 0, 0);
    frames.free(machine, pfn);
}

#[cfg(all(test, not(loom)))]
mod tests;
