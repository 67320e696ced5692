//! A private list of regions: those an operation is about to publish, or has just taken out.
//!
//! Rule: a region is in at most one chain, and the chain owns it. A chain must be published, handed to the deferred list or
//! disposed of; dropping one with regions in it is a leak and caught in debug builds.
#![allow(unsafe_code)]

use super::Vma;
use crate::address::VirtAddr;
use crate::machine::Machine;
use crate::memory::{Memory, OutOfMemory};
use crate::slab::SlabKind;
use crate::sync::atomic::Ordering;
use core::ptr::{self, NonNull};

/// An ordered list of regions linked through themselves.
pub(crate) struct VmaChain<M: Machine> {
    head: *mut Vma<M>,
    tail: *mut Vma<M>,
    len: usize,
}

// SAFETY: a chain owns its regions, and a region may be sent to another CPU.
unsafe impl<M: Machine> Send for VmaChain<M> {}

impl<M: Machine> VmaChain<M> {
    pub(crate) const fn new() -> Self {
        Self { head: ptr::null_mut(), tail: ptr::null_mut(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Allocates `vma` and appends it.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn push_new(&mut self, memory: &Memory<M>, vma: Vma<M>) -> Result<(), OutOfMemory> {
        let vma = memory.alloc_value(SlabKind::Vma, vma).map_err(|(error, _)| error)?;
        self.push_owned(vma);
        Ok(())
    }

    /// Appends a region that no chain holds.
    pub(super) fn push_owned(&mut self, vma: NonNull<Vma<M>>) {
        // SAFETY: the region is allocated, and its link is used by the one chain it is in: this one.
        unsafe { vma.as_ref() }.link.store(ptr::null_mut(), Ordering::Relaxed);
        match NonNull::new(self.tail) {
            // SAFETY: the tail is a region of this chain, which owns it.
            Some(tail) => unsafe { tail.as_ref() }.link.store(vma.as_ptr(), Ordering::Relaxed),
            None => self.head = vma.as_ptr(),
        }
        self.tail = vma.as_ptr();
        self.len += 1;
    }

    /// Where the first region begins.
    pub(super) fn first_start(&self) -> Option<VirtAddr> {
        // SAFETY: the head is a region of this chain, which owns it.
        unsafe { self.head.as_ref() }.map(|vma| vma.range().start)
    }

    /// The region that contains `address`.
    pub(crate) fn find(&self, address: VirtAddr) -> Option<&Vma<M>> {
        let mut next = self.head;
        loop {
            // SAFETY: a region of this chain, which owns it for as long as the chain is borrowed.
            let vma = unsafe { next.as_ref() }?;
            if vma.range().contains(address) {
                return Some(vma);
            }
            next = vma.link.load(Ordering::Relaxed);
        }
    }

    /// Takes the first region out.
    pub(super) fn pop(&mut self) -> Option<NonNull<Vma<M>>> {
        let vma = NonNull::new(self.head)?;
        // SAFETY: the head is a region of this chain.
        self.head = unsafe { vma.as_ref() }.link.load(Ordering::Relaxed);
        if self.head.is_null() {
            self.tail = ptr::null_mut();
        }
        self.len -= 1;
        Some(vma)
    }

    /// Moves all of `other` to the end.
    pub(crate) fn append(&mut self, other: &mut Self) {
        while let Some(vma) = other.pop() {
            self.push_owned(vma);
        }
    }

    /// Frees the regions, which nobody else can reach any more.
    pub(crate) fn dispose(&mut self, memory: &Memory<M>) {
        while let Some(vma) = self.pop() {
            // SAFETY: it came from this cache, and the chain was its only owner.
            unsafe { memory.free_value(SlabKind::Vma, vma) };
        }
    }
}

impl<M: Machine> Drop for VmaChain<M> {
    fn drop(&mut self) {
        debug_assert!(self.head.is_null() || crate::is_unwinding(), "regions leaked");
    }
}
