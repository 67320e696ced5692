//! A mapped table and a slot in it.
//!
//! Rule: a table reachable by others is seen only under an RCU read section, so its frame cannot be freed under the
//! reader (1.5 of the spec); the lifetime of [`Table`] is that section's.

use super::pgd::pgd_layout;
use super::{Entry, EntrySlot, Level, PagingMode, PtlGuard};
use crate::address::{Pfn, PhysAddr, VirtAddr};
use crate::address_space::Mm;
use crate::machine::{Machine, SlotOf};
use crate::memory::Memory;
use crate::page::{Page, PageType};
use crate::sync::RawLock;
use crate::sync::rcu::RcuRead;

/// A page table, mapped for access until dropped.
pub struct Table<'r, M: Machine> {
    machine: &'r M,
    page: &'static Page<M::Lock>,
    pfn: Pfn,
    level: Level,
    slots: &'r [SlotOf<M>],
}

impl<'r, M: Machine> Table<'r, M> {
    /// Maps the table of `level` in frame `pfn`, which an entry read in this read section names.
    pub(super) fn map(memory: &'r Memory<M>, _rcu: &'r RcuRead<M>, pfn: Pfn, level: Level) -> Self {
        Self::map_private(memory, pfn, level)
    }

    /// Maps a table whose frame the caller keeps by other means: a read section it stores next to the table, ownership of
    /// the only pointer to it, or the address space's last reference.
    pub(super) fn map_private(memory: &'r Memory<M>, pfn: Pfn, level: Level) -> Self {
        let machine = memory.machine_ref();
        let page = memory.memmap().page(pfn);
        assert_table(page, pfn);
        let slots = machine.map_table(pfn, level);
        debug_assert_eq!(slots.len(), M::Mode::entries(level));
        Self { machine, page, pfn, level, slots }
    }

    /// In debug builds, fails unless the table's constructor has run and its destructor has not (I4, I11).
    pub(super) fn assert_constructed(&self) {
        assert_table(self.page, self.pfn);
    }

    /// The top table of `mm`, which lives as long as the address space.
    pub fn top(mm: &'r Mm<M>) -> Self {
        Self::map_top(mm.memory(), mm.pgd())
    }

    /// The top table at `pgd`, which the caller keeps.
    pub(super) fn map_top(memory: &'r Memory<M>, pgd: PhysAddr) -> Self {
        if pgd_layout::<M>().is_none() {
            return Self::map_private(memory, pgd.pfn(), M::Mode::TOP);
        }
        let machine = memory.machine_ref();
        let (pfn, slots) = (pgd.pfn(), machine.map_small_top(pgd));
        debug_assert_eq!(slots.len(), M::Mode::entries(M::Mode::TOP));
        Self { machine, page: memory.memmap().page(pfn), pfn, level: M::Mode::TOP, slots }
    }

    /// The frame of the table; a small top table shares it with others.
    pub fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// The table's level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The descriptor of the table's frame.
    pub(super) fn page(&self) -> &'static Page<M::Lock> {
        self.page
    }

    /// The slots, in index order.
    pub(super) fn slots(&self) -> &[SlotOf<M>] {
        self.slots
    }

    /// The slot that translates `address`.
    pub fn slot(&self, address: VirtAddr) -> Slot<'_, M> {
        Slot { table: self, index: M::Mode::index(self.level, address) }
    }
}

fn assert_table<L: RawLock>(page: &Page<L>, pfn: Pfn) {
    debug_assert_eq!(page.page_type(), PageType::Table, "{pfn:?} is used as a table without a constructor");
}

impl<M: Machine> Drop for Table<'_, M> {
    fn drop(&mut self) {
        self.machine.unmap_table(self.slots);
    }
}

/// A slot really inside a table, so that both the containing table's lock and the entry can be reached from it.
pub struct Slot<'t, M: Machine> {
    table: &'t Table<'t, M>,
    index: usize,
}

impl<M: Machine> Clone for Slot<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Machine> Copy for Slot<'_, M> {}

impl<'t, M: Machine> Slot<'t, M> {
    /// The table the slot is in.
    pub fn table(&self) -> &'t Table<'t, M> {
        self.table
    }

    /// The entry at one instant. It may change at once unless the table's lock is held.
    pub fn load(&self) -> Entry {
        self.cell().load()
    }

    /// Fills a none slot; `guard` is of its table's lock.
    pub(crate) fn fill(&self, _guard: &PtlGuard<'_, M>, entry: Entry) {
        debug_assert!(self.load().is_none(), "a present entry is replaced by exchange (I35)");
        self.cell().store(entry);
    }

    pub(super) fn cell(&self) -> &'t SlotOf<M> {
        &self.table.slots[self.index]
    }
}
