//! Top tables: a frame of their own, or an object of the pgd cache where they are smaller than a frame (spec 5).
//!
//! Rules kept: an object is as large as the table and aligned to its size, since the CPU asks for that. It shares its frame
//! with others, so it has no descriptor: it owns no lock and is no frame of page tables (I8). A top table that owns a lock, as
//! a PMD table does, is a frame whatever its size. In a mode that wants so, the user half's tables below are there from the
//! start; if one cannot be made, none is left (I43). The kernel's entries are copied, and point to tables that all share.
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
        if !sabotaged!("pgd-unwind") {
            pgd_mop_up(self.memory, self.address);
        }
        pgd_free(self.memory, self.address);
    }
}

/// Makes the top table of a new address space, with the kernel's entries in it, and the tables below it that are there from the
/// start.
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
        preallocate(memory, &table)?;
        memory.machine().fill_kernel_entries(table.slots());
    }
    Ok(pgd)
}

/// Makes the tables that `top` has from the start. If one fails the others are made all the same, and what there is then goes
/// with the top table (spec 3.5).
fn preallocate<M: Machine>(memory: &Memory<M>, top: &Table<'_, M>) -> Result<(), OutOfTables> {
    let mut outcome = Ok(());
    for (index, below) in preallocated::<M>() {
        match UnpublishedTable::allocate(memory, below) {
            Ok(table) => top.slot_at(index).store(table.into_entry()),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

/// The slots of a top table that are filled from the start, and the level of the tables there.
fn preallocated<M: Machine>() -> impl Iterator<Item = (usize, Level)> {
    let below = M::Mode::below(M::Mode::TOP);
    (0..M::Mode::PREALLOCATED).filter_map(move |index| Some((index, below?)))
}

/// Destroys what is left of the tables that [`pgd_alloc`] made below the top table at `pgd`, and returns their number: those
/// that no unmapping took with it. They are all none. Nobody has the table loaded or refers to it.
pub(crate) fn pgd_mop_up<M: Machine>(memory: &Memory<M>, pgd: PhysAddr) -> usize {
    let mut count = 0;
    for (index, level) in preallocated::<M>() {
        let entry = Table::map_top(memory, pgd).slot_at(index).swap(Entry::NONE);
        if entry.is_table() {
            drop(UnpublishedTable::adopt(memory, entry.pfn(), level));
            count += 1;
        }
    }
    count
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
