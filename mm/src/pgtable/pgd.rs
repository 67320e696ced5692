//! Top tables: a frame of their own, or an object of the pgd cache where they are smaller than a frame (spec 5).
//!
//! Rules kept: an object is as large as the table and aligned to its size, since the CPU asks for that. It shares its frame
//! with others, so it has no descriptor: it owns no lock and is no frame of page tables (I8). A top table that owns a lock, as
//! a PMD table does, is a frame whatever its size.
#![allow(unsafe_code)]

use super::alloc::{OutOfTables, UnpublishedTable, pagetable_dtor_free};
use super::{Entry, EntrySlot, Level, PagingMode, Table, ptlock_cache_init};
use crate::address::PhysAddr;
use crate::config::PAGE_SIZE;
use crate::frame::FrameAllocator;
use crate::machine::{Machine, SlotOf};
use crate::memory::Memory;
use crate::slab::{Slab, SlabKind};
use core::alloc::Layout;

/// Where the top tables of a machine come from.
pub(crate) fn pgd_layout<M: Machine>() -> Option<Layout> {
    let size = M::Mode::entries(M::Mode::TOP) * size_of::<SlotOf<M>>();
    if M::Mode::TOP == Level::Pmd || size >= PAGE_SIZE {
        return None;
    }
    Layout::from_size_align(size, size).ok()
}

/// Makes the pgd cache, where top tables are smaller than a frame.
pub fn pgtable_cache_init<M: Machine>(slab: Slab<M>) -> Slab<M> {
    match pgd_layout::<M>() {
        Some(layout) => slab.register_layout(SlabKind::Pgd, layout),
        None => slab,
    }
}

/// Makes the slab caches page tables need. Once the slab is up, before the first table.
///
/// # Panics
///
/// If one cannot be made.
pub fn pgtable_init<M: Machine>(slab: Slab<M>, machine: M, frames: &FrameAllocator<M>) -> Slab<M> {
    pgtable_cache_init(ptlock_cache_init(slab, machine, frames))
}

/// A top table that no address space has yet. Dropping it frees it at once.
pub(crate) struct UnpublishedPgd<'m, M: Machine> {
    memory: &'m Memory<M>,
    address: PhysAddr,
}

impl<M: Machine> UnpublishedPgd<'_, M> {
    /// Where it lies.
    pub(crate) fn address(&self) -> PhysAddr {
        self.address
    }

    /// Gives the table to an owner that frees it by [`pgd_free`].
    pub(crate) fn keep(self) {
        core::mem::forget(self);
    }
}

impl<M: Machine> Drop for UnpublishedPgd<'_, M> {
    fn drop(&mut self) {
        pgd_free(self.memory, self.address);
    }
}

/// Makes the top table of a new address space, with the kernel's entries in it.
///
/// # Errors
///
/// [`OutOfTables`]; whatever had been taken is given back.
pub(crate) fn pgd_alloc<M: Machine>(memory: &Memory<M>) -> Result<UnpublishedPgd<'_, M>, OutOfTables> {
    let address = match pgd_layout::<M>() {
        Some(_) => memory.slab().alloc_pgd(memory.machine(), memory.frames()).map_err(|_| OutOfTables)?,
        None => UnpublishedTable::allocate(memory, M::Mode::TOP)?.into_pfn().into(),
    };
    let pgd = UnpublishedPgd { memory, address };
    {
        let table = Table::map_top(memory, address);
        if pgd_layout::<M>().is_some() {
            table.slots().iter().for_each(|slot| slot.store(Entry::NONE));
        }
        memory.machine().fill_kernel_entries(table.slots());
    }
    Ok(pgd)
}

/// Frees the top table of an address space that no CPU has loaded and nobody refers to any more (I36).
pub(crate) fn pgd_free<M: Machine>(memory: &Memory<M>, pgd: PhysAddr) {
    match pgd_layout::<M>() {
        // SAFETY: it came from `pgd_alloc`, which asks the same, and nobody refers to it.
        Some(_) => unsafe { memory.slab().free_pgd(memory.machine(), memory.frames(), pgd) },
        None => pagetable_dtor_free(memory, pgd.pfn()),
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
