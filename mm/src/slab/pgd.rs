//! Top tables that are smaller than a frame, by their physical address: what the CPU is given, and PAE's CR3 has room for.

use super::{OutOfMemory, Slab, SlabKind, objects};
use crate::address::PhysAddr;
use crate::config::PAGE_SIZE;
use crate::frame::FrameAllocator;
use crate::machine::Machine;

impl<M: Machine> Slab<M> {
    /// Takes an object of the pgd cache; its contents are undefined. Locks as [`alloc`](Self::alloc).
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], with nothing changed.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn alloc_pgd(&self, machine: M, frames: &FrameAllocator<M>) -> Result<PhysAddr, OutOfMemory> {
        let object = self.alloc(machine, frames, SlabKind::Pgd)?;
        // SAFETY: the object lies in a frame the cache has formatted.
        let pfn = unsafe { objects::frame_of(object) };
        Ok(PhysAddr(pfn.address() + (object.addr().get() % PAGE_SIZE) as u64))
    }

    /// Gives an object of the pgd cache back. Locks as [`free`](Self::free).
    ///
    /// # Safety
    ///
    /// `pgd` came from [`alloc_pgd`](Self::alloc_pgd), and no CPU and nobody else refers to it any more.
    pub(crate) unsafe fn free_pgd(&self, machine: M, frames: &FrameAllocator<M>, pgd: PhysAddr) {
        // SAFETY: the object lies in that frame; the rest is the caller's promise.
        unsafe {
            let object = machine.frame_bytes(pgd.pfn()).add(pgd.offset());
            self.free(machine, frames, SlabKind::Pgd, object);
        }
    }
}
