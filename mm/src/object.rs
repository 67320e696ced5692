//! Shared memory objects: pages that several regions, in several address spaces, map at once.
//!
//! The pages hang in a radix tree of fixed height. Rule: a slot goes from empty to full once, by compare-and-exchange, and
//! back only when the object dies; so a fault on a page that exists takes no lock here, and two that race for a missing one
//! agree on the winner's.
#![allow(unsafe_code)]

use crate::address::Pfn;
use crate::machine::Machine;
use crate::memory::{Memory, OutOfMemory};
use crate::slab::SlabKind;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use core::ptr::NonNull;

/// log2 of the slots of a node.
const NODE_SHIFT: u32 = if cfg!(loom) { 1 } else { 6 };
const NODE_SLOTS: usize = 1 << NODE_SHIFT;

/// An object may have this many pages: 16 GiB.
pub const MAX_PAGES: u64 = 1 << 22;

/// A slot holds 0, or a child's address above the lowest height, or a frame number plus one at the lowest.
pub(crate) struct ObjectNode {
    slots: [AtomicUsize; NODE_SLOTS],
}

impl ObjectNode {
    fn empty() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicUsize::new(0)) }
    }

    fn slot(&self, index: u64, height: u32) -> &AtomicUsize {
        &self.slots[(index >> (NODE_SHIFT * height)) as usize & (NODE_SLOTS - 1)]
    }
}

/// A memory object. Reached through [`ObjectRef`].
pub struct Object<M: Machine> {
    memory: &'static Memory<M>,
    /// Number of pages; an index below it always fits the tree's height.
    pages: u64,
    height: u32,
    root: NonNull<ObjectNode>,
    /// Regions and handles that name the object.
    references: AtomicU32,
}

/// Why a page of an object could not be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectError {
    /// No memory for it.
    OutOfMemory,
    /// The object ends before it.
    BeyondEnd,
}

impl From<OutOfMemory> for ObjectError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl<M: Machine> Object<M> {
    /// An object of `pages` pages that read as zero; none has a frame yet.
    ///
    /// # Errors
    ///
    /// [`ObjectError::BeyondEnd`] for no page or more than [`MAX_PAGES`], [`ObjectError::OutOfMemory`].
    pub fn create(memory: &'static Memory<M>, pages: u64) -> Result<ObjectRef<M>, ObjectError> {
        if pages == 0 || pages > MAX_PAGES {
            return Err(ObjectError::BeyondEnd);
        }
        memory.with_reclaim(ObjectError::OutOfMemory, || Self::try_create(memory, pages))
    }

    fn try_create(memory: &'static Memory<M>, pages: u64) -> Result<ObjectRef<M>, ObjectError> {
        let mut height = 0;
        while pages > 1 << (NODE_SHIFT * (height + 1)) {
            height += 1;
        }
        let root = alloc_node(memory)?;
        let object = Self { memory, pages, height, root, references: AtomicU32::new(1) };
        match memory.alloc_value(SlabKind::Object, object) {
            Ok(object) => Ok(ObjectRef(object)),
            Err((error, _)) => {
                free_node(memory, root);
                Err(error.into())
            }
        }
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The frame of page `index`, which the object keeps as long as it lives. Takes no lock when the page exists.
    ///
    /// # Errors
    ///
    /// See [`ObjectError`].
    pub fn page(&self, index: u64) -> Result<Pfn, ObjectError> {
        if index >= self.pages {
            return Err(ObjectError::BeyondEnd);
        }
        let mut node = self.root;
        for height in (1..=self.height).rev() {
            // SAFETY: nodes live as long as the object.
            let slot = unsafe { node.as_ref() }.slot(index, height);
            node = self.child(slot)?;
        }
        // SAFETY: as above.
        self.frame(unsafe { node.as_ref() }.slot(index, 0))
    }

    /// The frame of page `index` if it has one. Takes no lock.
    pub fn resident(&self, index: u64) -> Option<Pfn> {
        let mut node = self.root;
        for height in (0..=self.height).rev() {
            // SAFETY: nodes live as long as the object. Acquire: pairs with the exchange in `child` and `frame`.
            let value = unsafe { node.as_ref() }.slot(index, height).load(Ordering::Acquire);
            if height == 0 {
                return (value as u64).checked_sub(1).map(Pfn);
            }
            node = NonNull::new(value as *mut ObjectNode)?;
        }
        None
    }

    fn child(&self, slot: &AtomicUsize) -> Result<NonNull<ObjectNode>, ObjectError> {
        // Acquire: the child's contents; pairs with the exchange below.
        if let Some(child) = NonNull::new(slot.load(Ordering::Acquire) as *mut ObjectNode) {
            return Ok(child);
        }
        let spare = alloc_node(self.memory)?;
        // Release: the spare's contents; pairs with the loads of whoever finds it.
        match slot.compare_exchange(0, spare.as_ptr() as usize, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(spare),
            Err(winner) => {
                free_node(self.memory, spare);
                NonNull::new(winner as *mut ObjectNode).ok_or(ObjectError::OutOfMemory)
            }
        }
    }

    fn frame(&self, slot: &AtomicUsize) -> Result<Pfn, ObjectError> {
        // Acquire: the page's contents; pairs with the exchange below.
        if let Some(pfn) = (slot.load(Ordering::Acquire) as u64).checked_sub(1) {
            return Ok(Pfn(pfn));
        }
        let machine = self.memory.machine();
        let spare = self.memory.frames().alloc_zeroed(machine).map_err(OutOfMemory::from)?;
        // Release: the zeroes; pairs with the loads of whoever finds it.
        match slot.compare_exchange(0, spare.0 as usize + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(spare),
            Err(winner) => {
                self.memory.frames().free(machine, spare);
                Ok(Pfn(winner as u64 - 1))
            }
        }
    }
}

#[cfg_attr(test, track_caller)]
fn alloc_node<M: Machine>(memory: &Memory<M>) -> Result<NonNull<ObjectNode>, OutOfMemory> {
    let node = memory.alloc_value(SlabKind::ObjectNode, ObjectNode::empty());
    node.map_err(|(error, _)| error)
}

fn free_node<M: Machine>(memory: &Memory<M>, node: NonNull<ObjectNode>) {
    // SAFETY: allocated by `alloc_node`; the callers own it: it lost its race, or its object is dying.
    unsafe { memory.free_value(SlabKind::ObjectNode, node) };
}

/// Frees what hangs below `node`, which is at `height`, and the node.
fn free_tree<M: Machine>(memory: &Memory<M>, node: NonNull<ObjectNode>, height: u32) {
    // SAFETY: the object is dying; nobody else reaches its nodes.
    for slot in &unsafe { node.as_ref() }.slots {
        let value = slot.load(Ordering::Relaxed);
        if height == 0 {
            if let Some(pfn) = (value as u64).checked_sub(1) {
                memory.put_page(Pfn(pfn));
            }
        } else if let Some(child) = NonNull::new(value as *mut ObjectNode) {
            free_tree(memory, child, height - 1);
        }
    }
    free_node(memory, node);
}

/// A reference to a memory object. The last one frees its pages.
pub struct ObjectRef<M: Machine>(NonNull<Object<M>>);

// SAFETY: an object may be used from any CPU: its count and slots are atomics, the rest never changes.
unsafe impl<M: Machine> Send for ObjectRef<M> {}
// SAFETY: as above.
unsafe impl<M: Machine> Sync for ObjectRef<M> {}

impl<M: Machine> core::ops::Deref for ObjectRef<M> {
    type Target = Object<M>;

    fn deref(&self) -> &Object<M> {
        // SAFETY: the reference keeps the object.
        unsafe { self.0.as_ref() }
    }
}

impl<M: Machine> Clone for ObjectRef<M> {
    fn clone(&self) -> Self {
        // Relaxed: the existing reference keeps the object.
        self.references.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<M: Machine> Drop for ObjectRef<M> {
    fn drop(&mut self) {
        // Release: this holder's uses come before the end; pairs with the fence of the last.
        if self.references.fetch_sub(1, Ordering::Release) != 1 || crate::is_unwinding() {
            return;
        }
        fence(Ordering::Acquire);
        let memory = self.memory;
        free_tree(memory, self.root, self.height);
        // SAFETY: allocated by `create`; this was the last reference.
        unsafe { memory.free_value(SlabKind::Object, self.0) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
