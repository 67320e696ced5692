//! Leaves above the PTE level: locked, changed, split.
//!
//! Rules kept: a huge entry is changed under the lock of the table that holds it, which is what [`huge_pte_lock`] takes for
//! its size (spec 10). Under a split or a change of rights it is never none: rights change by compare-and-exchange, and a
//! split goes huge → invalidated (P off, leaf bit kept) → table (I28, R12). Between the two TLBs are flushed, so that no CPU
//! has the large translation and one of the small ones at the same time (I34). A split cannot fail: its table was deposited
//! with the entry.
//!
//! References: a block has one count, in its first frame, and as long as the entry is huge nothing else refers to a part of
//! it: there is exactly one mapping, since whoever wants to share a transparent huge page (fork) splits it first. So the
//! holder of the PMD lock owns the block, and a split simply makes it single frames with one reference and one mapping each.
//! The alternative, a block that stays one and counts its mapped parts, would need a place to keep the part frames of a
//! half unmapped block and bring nothing here: nobody maps a block anew after its split.

use super::lockptr::lock_table_of;
use super::ptlock::PtlGuard;
use super::{Entry, EntrySlot, Level, PagingMode, Slot, Table, deposit};
use crate::address::{VirtAddr, VirtRange};
use crate::address_space::Mm;
use crate::config::{PAGE_SHIFT, PAGE_SIZE};
use crate::machine::Machine;
use crate::pgtable::alloc::UnpublishedTable;
use crate::stats::Counter;
use crate::sync::atomic::Ordering;
use crate::sync::rcu;
use crate::tlb::{self, TlbFlush};

/// The size of a huge page: what one entry of a level maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugeSize {
    /// An entry of a PMD table: 2 MiB.
    Pmd,
    /// An entry of a PUD table: 1 GiB.
    Pud,
}

impl HugeSize {
    /// The level of the tables that hold such entries.
    pub const fn level(self) -> Level {
        match self {
            Self::Pmd => Level::Pmd,
            Self::Pud => Level::Pud,
        }
    }

    /// Bytes of one page.
    pub fn bytes<Mode: PagingMode>(self) -> u64 {
        Mode::entry_span(self.level())
    }

    /// log2 of the frames of one page.
    pub fn order<Mode: PagingMode>(self) -> u32 {
        Mode::shift(self.level()) - PAGE_SHIFT
    }

    /// Whether the mode has tables with such entries. A folded level has none.
    pub fn exists_in<Mode: PagingMode>(self) -> bool {
        core::iter::successors(Some(Mode::TOP), |level| Mode::below(*level)).any(|level| level == self.level())
    }
}

/// The addresses that the entry of a table of `level` for `address` translates.
pub(crate) fn span_of<Mode: PagingMode>(level: Level, address: VirtAddr) -> VirtRange {
    let start = address.0 & !(Mode::entry_span(level) - 1);
    VirtRange { start: VirtAddr(start), end: VirtAddr(start + Mode::entry_span(level)) }
}

/// A huge entry with the lock of its table held. Only A and D of it change meanwhile. Dropping it unlocks.
pub(crate) struct HugeLocked<'m, 't, M: Machine> {
    mm: &'m Mm<M>,
    slot: Slot<'t, M>,
    guard: PtlGuard<'m, M>,
    span: VirtRange,
}

impl<'m, 't, M: Machine> HugeLocked<'m, 't, M> {
    /// Locks the huge entry that `slot` holds for `address`; `None` if it holds anything else once locked. Under the lock no entry is seen invalidated: that state does not outlive a critical section.
    #[track_caller]
    pub(crate) fn lock(mm: &'m Mm<M>, slot: Slot<'t, M>, address: VirtAddr) -> Option<Self> {
        let guard = lock_table_of(mm, slot);
        let span = span_of::<M::Mode>(slot.table().level(), address);
        let entry = slot.load();
        debug_assert!(!entry.is_huge() || entry.is_present(), "an invalidated entry was left behind (I28)");
        entry.is_huge().then_some(Self { mm, slot, guard, span })
    }

    /// The entry.
    pub(crate) fn load(&self) -> Entry {
        self.slot.load()
    }

    /// The addresses it translates.
    pub(crate) fn span(&self) -> VirtRange {
        self.span
    }

    /// The level of the table that holds it.
    pub(crate) fn level(&self) -> Level {
        self.slot.table().level()
    }

    /// Itself if all it translates lies in `range`. Else it is split, and its small pages are to be looked at instead.
    pub(crate) fn inside(self, range: VirtRange) -> Option<Self> {
        if range.start <= self.span.start && self.span.end <= range.end {
            return Some(self);
        }
        self.split();
        None
    }

    /// Changes the entry to another for the same page, and returns the old and the new one. Walkers may set A and D
    /// meanwhile, so it is retried until nothing came between; at no moment is the slot none (I28).
    pub(crate) fn update(&self, change: impl Fn(Entry) -> Entry) -> (Entry, Entry) {
        self.slot.update(change)
    }

    /// Takes the entry out (I35), and the table deposited for it unless it was explicit. The block's reference is the
    /// caller's now; the spare table is to be dropped without the lock.
    pub(crate) fn clear(&self) -> (Entry, Option<UnpublishedTable<'m, M>>) {
        let entry = self.slot.swap(Entry::NONE);
        self.mm.memory().memmap().page(entry.pfn()).unmap();
        if entry.is_explicit() || sabotaged!("deposit-left") {
            return (entry, None);
        }
        // Relaxed: a count, checked when nobody changes it any more (I6, I7).
        self.mm.pgtables_bytes().fetch_sub(PAGE_SIZE, Ordering::Relaxed);
        (entry, Some(deposit::withdraw(self.mm, self.slot, &self.guard)))
    }

    /// Replaces a transparent huge entry by the deposited table with the same frames, rights, A and D in it
    /// (`__split_huge_pmd`). Interrupts are on: a shootdown is waited for under the lock.
    pub(crate) fn split(self) {
        let memory = self.mm.memory();
        let entry = self.load();
        debug_assert!(!entry.is_explicit(), "an explicit huge page is split");
        // From here on walkers fault, and whoever looks without a lock sees a huge entry. The exchange returns the last A
        // and D there will be (I35).
        let entry = self.slot.swap(if sabotaged!("split-none") { Entry::NONE } else { entry.invalidated() });
        if !sabotaged!("split-flush") {
            flush_huge(self.mm, self.span);
        }
        let table = deposit::withdraw(self.mm, self.slot, &self.guard);
        memory.frames().split_block(entry.pfn(), HugeSize::Pmd.order::<M::Mode>());
        let slots = Table::map_private(memory, table.pfn(), Level::Pte);
        for (number, slot) in slots.slots().iter().enumerate() {
            debug_assert!(slot.load().is_none(), "a deposited table is not all none (I14)");
            let page = entry.small_page(number as u64);
            if number > 0 {
                memory.memmap().page(page.pfn()).map();
            }
            slot.store(page);
        }
        drop(slots);
        // Release: who follows the pointer finds the table filled (pairs with `load`). The invalidated entry may be replaced
        // by a plain store: no walker changes what is not present.
        self.slot.store(table.into_entry());
        memory.machine().local().stats.bump(Counter::HugeSplits);
    }
}

/// Makes sure that no CPU translates an address of `span` by the huge entry it had before the call. The first page is enough:
/// one INVLPG drops the translation of its address whatever the page's size (spec 8.5). Lazy CPUs are reached too: their
/// walkers would cache the pages that come in the entry's place beside it (I34).
fn flush_huge<M: Machine>(mm: &Mm<M>, span: VirtRange) {
    let range = VirtRange { start: span.start, end: VirtAddr(span.start.0 + PAGE_SIZE as u64) };
    tlb::flush_mm_range(mm, TlbFlush { range, stride: Level::Pte, freed_tables: true, top_changed: false });
}

/// Locks the transparent huge entry that `pmd` holds for `address`; `None`, without the lock, if it holds anything else once
/// locked (`pmd_trans_huge_lock`). Takes the PMD lock.
fn pmd_trans_huge_lock<'m, 't, M: Machine>(
    mm: &'m Mm<M>,
    pmd: Slot<'t, M>,
    address: VirtAddr,
) -> Option<HugeLocked<'m, 't, M>> {
    debug_assert_eq!(pmd.table().level(), Level::Pmd);
    HugeLocked::lock(mm, pmd, address).filter(|huge| !huge.load().is_explicit())
}

/// Splits the transparent huge entry that `pmd` holds for `address`, if it holds one (`split_huge_pmd`), and says whether.
/// Takes the PMD lock then, and waits for a shootdown under it. Faults and removers may run meanwhile.
pub(crate) fn split_huge_pmd<M: Machine>(mm: &Mm<M>, pmd: Slot<'_, M>, address: VirtAddr) -> bool {
    pmd.load().is_huge() && pmd_trans_huge_lock(mm, pmd, address).map(HugeLocked::split).is_some()
}

/// The entry that is or was a leaf for `address` at one instant, and its level; `None` where there is none at any level.
/// An invalidated huge entry counts. Takes no lock; for oracles and reports.
pub fn leaf_at<M: Machine>(mm: &Mm<M>, address: VirtAddr) -> Option<(Level, Entry)> {
    let rcu = rcu::read_lock(mm.machine());
    let mut table = Table::top(mm);
    loop {
        let (level, entry) = (table.level(), table.slot(address).load_stable());
        if entry.is_none() {
            return None;
        }
        if level == Level::Pte || !entry.is_table() {
            return Some((level, entry));
        }
        table = Table::map(mm.memory(), &rcu, entry.pfn(), M::Mode::below(level)?);
    }
}
