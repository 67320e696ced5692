//! A CPU's TLB and paging-structure caches: what it may still translate, whatever the tables say by now.
//!
//! Rule: entries stay until a flush the architecture defines (spec 8.5), or a random eviction; nothing else may be relied
//! upon to drop them. Every entry names a frame, and memory keeps count of the names.

use super::memory::PhysicalMemory;
use super::violation::Cached;
use super::walk::hw;
use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::config::{PAGE_SHIFT, PAGE_SIZE};
use crate::pgtable::{Entry, EntrySlot, Level, PagingMode};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// What is cached: for each level and address prefix the entry found there, with the rights of the levels above folded
/// in. In the TLB the level is that of a leaf, in the paging-structure cache that of an entry that points to a table.
type Cache = BTreeMap<(Level, u64), Entry>;

/// The caches of one CPU.
pub(super) struct Mmu<Mode> {
    top: Option<Pfn>,
    tlb: Cache,
    tables: Cache,
    mode: PhantomData<fn() -> Mode>,
}

impl<Mode: PagingMode> Mmu<Mode> {
    pub(super) fn new() -> Self {
        Self { top: None, tlb: Cache::new(), tables: Cache::new(), mode: PhantomData }
    }

    /// The loaded top table.
    pub(super) fn top(&self) -> Option<Pfn> {
        self.top
    }

    /// Loads a top table. Drops everything: there are no global translations in the user half.
    pub(super) fn load<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, top: Option<Pfn>) {
        self.flush_all(memory);
        if let Some(new) = top {
            memory.name(new);
        }
        if let Some(old) = std::mem::replace(&mut self.top, top) {
            memory.unname(old);
        }
    }

    /// The cached translation of `address`, and the level of its leaf.
    pub(super) fn translation(&self, address: VirtAddr) -> Option<(Level, Entry)> {
        leaf_levels::<Mode>().find_map(|level| Some((level, *self.tlb.get(&key::<Mode>(level, address))?)))
    }

    /// The level of a cached translation that reaches into what a leaf of `level` at `address` translates and is of another
    /// size.
    pub(super) fn other_size(&self, level: Level, address: VirtAddr) -> Option<Level> {
        let start = address.0 & !(Mode::entry_span(level) - 1);
        let span = VirtRange { start: VirtAddr(start), end: VirtAddr(start + Mode::entry_span(level)) };
        let sizes = leaf_levels::<Mode>().filter(|other| *other != level);
        let bounds = |other| (key::<Mode>(other, span.start), key::<Mode>(other, VirtAddr(span.end.0 - 1)));
        sizes.map(bounds).find_map(|(first, last)| self.tlb.range(first..=last).next()).map(|(key, _)| key.0)
    }

    /// The cached entry closest to the leaf that points to a table on the way to `address`.
    pub(super) fn table(&self, address: VirtAddr) -> Option<(Level, Entry)> {
        table_levels::<Mode>().find_map(|level| Some((level, *self.tables.get(&key::<Mode>(level, address))?)))
    }

    pub(super) fn cache_translation<S: EntrySlot>(
        &mut self,
        memory: &PhysicalMemory<S>,
        level: Level,
        address: VirtAddr,
        entry: Entry,
    ) {
        let old = self.tlb.insert(key::<Mode>(level, address), entry);
        frames::<Mode>(level, entry).for_each(|pfn| memory.name(pfn));
        old.into_iter().flat_map(|old| frames::<Mode>(level, old)).for_each(|pfn| memory.unname(pfn));
    }

    pub(super) fn cache_table<S: EntrySlot>(
        &mut self,
        memory: &PhysicalMemory<S>,
        level: Level,
        address: VirtAddr,
        entry: Entry,
    ) {
        memory.name(hw::pfn(entry));
        if let Some(old) = self.tables.insert(key::<Mode>(level, address), entry) {
            memory.unname(hw::pfn(old));
        }
    }

    /// What a page fault at `address` drops: its translation and the tables used for it.
    pub(super) fn drop_faulting<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, address: VirtAddr) {
        for level in leaf_levels::<Mode>() {
            self.evict_translation(memory, key::<Mode>(level, address));
        }
        for level in table_levels::<Mode>() {
            self.evict_table(memory, key::<Mode>(level, address));
        }
    }

    /// INVLPG for every page of `range`: their translations, and all of the paging-structure cache.
    pub(super) fn flush_range<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, range: VirtRange) {
        let hit: Vec<_> = self.tlb.keys().filter(|key| overlaps::<Mode>(**key, range)).copied().collect();
        hit.into_iter().for_each(|key| self.evict_translation(memory, key));
        self.flush_tables(memory);
    }

    /// A load of CR3.
    pub(super) fn flush_all<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>) {
        while let Some((key, _)) = self.tlb.first_key_value() {
            self.evict_translation(memory, *key);
        }
        self.flush_tables(memory);
    }

    /// Drops the `choice`-th cached entry, modulo their number.
    pub(super) fn evict<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, choice: usize) {
        let all = self.tlb.len() + self.tables.len();
        let Some(choice) = choice.checked_rem(all) else { return };
        if let Some(key) = self.tlb.keys().nth(choice).copied() {
            self.evict_translation(memory, key);
        } else if let Some(key) = self.tables.keys().nth(choice - self.tlb.len()).copied() {
            self.evict_table(memory, key);
        }
    }

    /// An address that a cached translation or table covers, the `choice`-th modulo their number.
    pub(super) fn known_address(&self, choice: usize) -> Option<VirtAddr> {
        let all = self.tlb.len() + self.tables.len();
        let key = self.tlb.keys().chain(self.tables.keys()).nth(choice.checked_rem(all)?)?;
        Some(start::<Mode>(*key))
    }

    /// Every cached translation: first address, level of the leaf, entry.
    pub(super) fn translations(&self) -> impl Iterator<Item = (VirtAddr, Level, Entry)> {
        self.tlb.iter().map(|(key, entry)| (start::<Mode>(*key), key.0, *entry))
    }

    /// Those that reach into `range`.
    pub(super) fn translations_in(&self, range: VirtRange) -> impl Iterator<Item = (VirtAddr, Level, Entry)> {
        self.translations()
            .filter(move |(start, level, _)| overlaps::<Mode>((*level, start.0 >> Mode::shift(*level)), range))
    }

    /// As what the CPU still knows frame `pfn`.
    pub(super) fn knows(&self, pfn: Pfn) -> Option<Cached> {
        if self.top == Some(pfn) {
            return Some(Cached::Top);
        }
        let translation = self.tlb.iter().find(|(key, entry)| frames::<Mode>(key.0, **entry).any(|named| named == pfn));
        if let Some((key, _)) = translation {
            return Some(Cached::Translation(start::<Mode>(*key)));
        }
        let table = self.tables.iter().find(|(_, entry)| hw::pfn(**entry) == pfn);
        table.map(|(key, _)| Cached::Table(key.0, start::<Mode>(*key)))
    }

    fn flush_tables<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>) {
        while let Some((key, _)) = self.tables.first_key_value() {
            self.evict_table(memory, *key);
        }
    }

    fn evict_translation<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, key: (Level, u64)) {
        if let Some(entry) = self.tlb.remove(&key) {
            frames::<Mode>(key.0, entry).for_each(|pfn| memory.unname(pfn));
        }
    }

    fn evict_table<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, key: (Level, u64)) {
        if let Some(entry) = self.tables.remove(&key) {
            memory.unname(hw::pfn(entry));
        }
    }
}

/// Levels whose entries may be leaves, lowest first.
fn leaf_levels<Mode: PagingMode>() -> impl Iterator<Item = Level> {
    [Level::Pte, Level::Pmd, Level::Pud].into_iter().filter(|level| *level <= Mode::TOP)
}

/// Levels whose entries may point to tables, lowest first. Nothing is ever cached for a level the mode folds away.
fn table_levels<Mode: PagingMode>() -> impl Iterator<Item = Level> {
    [Level::Pmd, Level::Pud, Level::P4d, Level::Pgd].into_iter().filter(|level| *level <= Mode::TOP)
}

fn key<Mode: PagingMode>(level: Level, address: VirtAddr) -> (Level, u64) {
    (level, address.0 >> Mode::shift(level))
}

fn start<Mode: PagingMode>(key: (Level, u64)) -> VirtAddr {
    VirtAddr(key.1 << Mode::shift(key.0))
}

fn overlaps<Mode: PagingMode>(key: (Level, u64), range: VirtRange) -> bool {
    let first = start::<Mode>(key).0;
    first < range.end.0 && range.start.0 < first + Mode::entry_span(key.0)
}

/// The frames a leaf maps.
fn frames<Mode: PagingMode>(level: Level, leaf: Entry) -> impl Iterator<Item = Pfn> {
    let first = hw::pfn(leaf).0;
    (first..first + (Mode::entry_span(level) >> PAGE_SHIFT)).map(Pfn)
}

/// The frame of the page of `address` in the leaf `entry` of `level`.
pub(super) fn frame_of<Mode: PagingMode>(level: Level, leaf: Entry, address: VirtAddr) -> Pfn {
    let page = (address.0 & (Mode::entry_span(level) - 1)) / PAGE_SIZE as u64;
    Pfn(hw::pfn(leaf).0 + page)
}
