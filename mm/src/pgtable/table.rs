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

    /// Slot number `index`.
    pub(crate) fn slot_at(&self, index: usize) -> Slot<'_, M> {
        Slot { table: self, index }
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

    /// The entry at one instant. It may change at once unless the table's lock is held, or be torn where it is two words; so
    /// nothing may be done by it without the lock but to compare. See [`load_stable`](Self::load_stable).
    pub fn load(&self) -> Entry {
        self.logical(self.load_raw())
    }

    /// The entry at one instant, never torn (I40).
    ///
    /// Where it is two words, interrupts are off meanwhile. Torn would be half of each of two tables' pointers, with no entry
    /// between them that this CPU sees. But no pointer to a second table is stored before all CPUs have taken an interrupt
    /// since the first was taken out (`unlink`), so not both fall into this load (R29, R30).
    pub(super) fn load_stable(&self) -> Entry {
        self.logical(self.load_raw_stable())
    }

    /// As [`load_stable`](Self::load_stable), the bits as they are there.
    pub(super) fn load_raw_stable(&self) -> Entry {
        if <SlotOf<M> as EntrySlot>::ONE_ACCESS {
            return self.load_raw();
        }
        if sabotaged!("stable-load") {
            return self.load_raw();
        }
        let irqs = self.table.machine.irq_save();
        let raw = self.load_raw();
        self.table.machine.irq_restore(irqs);
        raw
    }

    /// Takes a bad entry out unless it has changed since it was read by [`load_raw_stable`](Self::load_raw_stable).
    pub(super) fn clear_raw(&self, raw: Entry) -> bool {
        self.cell().compare_exchange(raw, Entry::NONE).is_ok()
    }

    /// Fills a none slot; `guard` is of its table's lock.
    pub(crate) fn fill(&self, _guard: &PtlGuard<'_, M>, entry: Entry) {
        debug_assert!(self.load().is_none(), "a present entry is replaced by exchange (I35)");
        self.store(entry);
    }

    /// Fills a slot that holds no present entry. The caller holds the table's lock, here and below.
    pub(super) fn store(&self, entry: Entry) {
        self.cell().store(self.hardware(entry));
    }

    /// Replaces the entry and returns what was there (I35).
    pub(super) fn swap(&self, entry: Entry) -> Entry {
        self.logical(self.cell().swap(self.hardware(entry)))
    }

    /// Changes a present entry to another for the same page, and returns the old and the new one. Walkers may set A and D
    /// meanwhile, so it is retried until nothing came between.
    pub(super) fn update(&self, change: impl Fn(Entry) -> Entry) -> (Entry, Entry) {
        let mut old = self.load();
        loop {
            let new = change(old);
            match self.cell().compare_exchange(self.hardware(old), self.hardware(new)) {
                Ok(()) => return (old, new),
                Err(current) => old = self.logical(current),
            }
        }
    }

    fn load_raw(&self) -> Entry {
        self.cell().load()
    }

    /// What hardware wants of `entry` here.
    fn hardware(&self, entry: Entry) -> Entry {
        let entry = if self.table.machine.has_no_execute() { entry } else { entry.executable() };
        M::Mode::to_hardware(self.table.level, entry)
    }

    /// What hardware's `raw` bits mean here.
    pub(super) fn logical(&self, raw: Entry) -> Entry {
        M::Mode::from_hardware(self.table.level, raw)
    }

    fn cell(&self) -> &'t SlotOf<M> {
        &self.table.slots[self.index]
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
