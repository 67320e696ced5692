//! A CPU's TLB and paging-structure caches: what it may still translate, whatever the tables say by now.
//!
//! Rule: entries stay until a flush the architecture defines (spec 8.5), or a random eviction; nothing else may be relied
//! upon to drop them. Each is tagged with the ASID it was cached under, and only those of the current ASID are used. Each of
//! these names a frame, and memory keeps count of the names; the others do not, since whoever loads their ASID again has to
//! know whether they are still right.
//!
//! Where the mode has CPUs latch the top table's entries, only the loading of a top table does so: nothing else makes a changed
//! one known (spec 6.1).

use super::memory::PhysicalMemory;
use super::violation::Cached;
use super::walk::{self, hw};
use crate::address::{Pfn, PhysAddr, VirtAddr, VirtRange};
use crate::config::{PAGE_SHIFT, PAGE_SIZE};
use crate::machine::PgdLoad;
use crate::pgtable::{Entry, EntrySlot, Level, PagingMode, span_of};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// What is cached: for each ASID, level and address prefix the entry found there. In the TLB the level is that of a leaf,
/// in the paging-structure cache that of an entry that points to a table.
type Cache = BTreeMap<Key, Kept>;

/// The kernel's own table has an ASID of its own; nothing is ever cached under it, since its user half is empty.
const KERNEL: u8 = u8::MAX;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    asid: u8,
    level: Level,
    prefix: u64,
}

#[derive(Clone, Copy)]
struct Kept {
    /// As found, with the rights of the levels above folded in.
    entry: Entry,
    /// Uses that the frames it names had had by then.
    lives: u64,
    /// The level it was found at. The TLB may keep a large leaf in small pieces.
    found: Level,
}

/// The caches of one CPU.
pub(super) struct Mmu<Mode> {
    top: Option<PhysAddr>,
    /// The top table's entries as they were when it was loaded; none in modes whose walkers read them.
    latched: Vec<Entry>,
    asid: u8,
    tlb: Cache,
    tables: Cache,
    mode: PhantomData<fn() -> Mode>,
}

impl<Mode: PagingMode> Mmu<Mode> {
    pub(super) fn new() -> Self {
        Self {
            top: None,
            latched: Vec::new(),
            asid: KERNEL,
            tlb: Cache::new(),
            tables: Cache::new(),
            mode: PhantomData,
        }
    }

    /// The loaded top table.
    pub(super) fn top(&self) -> Option<PhysAddr> {
        self.top
    }

    /// What is latched of entry `index` of the top table.
    pub(super) fn latched(&self, index: usize) -> Option<Entry> {
        self.latched.get(index).copied()
    }

    /// The latched entry that the CPU would have refused, if any (I39).
    pub(super) fn refused(&self) -> Option<usize> {
        self.latched.iter().position(|entry| hw::is_refused(*entry))
    }

    /// The latched entry that differs from the one in memory, if any (I38). Walkers do not write them, so A does not matter.
    pub(super) fn latched_stale(&self, memory: &PhysicalMemory<Mode::Slot>) -> Option<usize> {
        let now = self.to_latch(memory);
        self.latched.iter().zip(now).position(|(then, now)| *then != now)
    }

    fn to_latch(&self, memory: &PhysicalMemory<Mode::Slot>) -> Vec<Entry> {
        self.top.filter(|_| Mode::LATCHED_TOP).map_or(Vec::new(), |top| walk::to_latch::<Mode>(memory, top))
    }

    /// What the load of a top table does besides dropping translations.
    pub(super) fn latch(&mut self, memory: &PhysicalMemory<Mode::Slot>) {
        let new = self.to_latch(memory);
        let old = std::mem::replace(&mut self.latched, new);
        tables(&self.latched).for_each(|pfn| memory.name(pfn));
        tables(&old).for_each(|pfn| memory.unname(pfn));
    }

    /// Loads a top table; there are no global translations in the user half. Unless translations are `tagged`, it drops
    /// everything. Returns what is kept and has had another use since: for which address, and where it leads.
    pub(super) fn load(
        &mut self,
        memory: &PhysicalMemory<Mode::Slot>,
        load: PgdLoad,
        tagged: bool,
    ) -> Vec<(VirtAddr, Pfn)> {
        let (top, asid, keep) = match load {
            PgdLoad::Kernel => (None, KERNEL, false),
            PgdLoad::User { pgd, asid, keep } => (Some(pgd), asid.0, keep && tagged),
        };
        if !tagged {
            self.flush_all(memory);
        }
        self.named().for_each(|pfn| memory.unname(pfn));
        self.asid = asid;
        if !keep {
            self.tlb.retain(|key, _| key.asid != asid);
            self.tables.retain(|key, _| key.asid != asid);
        }
        self.named().for_each(|pfn| memory.name(pfn));
        if let Some(new) = top {
            memory.name(new.pfn());
        }
        if let Some(old) = std::mem::replace(&mut self.top, top) {
            memory.unname(old.pfn());
        }
        self.latch(memory);
        let leaves = self
            .loaded(&self.tlb)
            .filter(|(key, kept)| lives::<Mode, Mode::Slot>(memory, key, kept.entry) != kept.lives);
        let tables = self.loaded(&self.tables).filter(|(_, kept)| memory.lives(hw::pfn(kept.entry)) != kept.lives);
        leaves.chain(tables).map(|(key, kept)| (start::<Mode>(key), hw::pfn(kept.entry))).collect()
    }

    /// What is cached under the current ASID.
    fn loaded<'a>(&self, cache: &'a Cache) -> impl Iterator<Item = (Key, Kept)> + use<'a, Mode> {
        let asid = self.asid;
        cache.iter().map(|(key, kept)| (*key, *kept)).filter(move |(key, _)| key.asid == asid)
    }

    /// The frames that entries of the current ASID name, as often as they do.
    fn named(&self) -> impl Iterator<Item = Pfn> {
        let leaves = self.loaded(&self.tlb).flat_map(|(key, kept)| frames::<Mode>(key.level, kept.entry));
        leaves.chain(self.loaded(&self.tables).map(|(_, kept)| hw::pfn(kept.entry)))
    }

    /// The cached translation of `address`, and the level of its leaf.
    pub(super) fn translation(&self, address: VirtAddr) -> Option<(Level, Entry)> {
        leaf_levels::<Mode>().find_map(|level| Some((level, self.tlb.get(&self.key(level, address))?.entry)))
    }

    /// Whether the cached translation of `address` is from before the frames it names came to their present use.
    pub(super) fn is_stale<S: EntrySlot>(&self, memory: &PhysicalMemory<S>, address: VirtAddr) -> bool {
        leaf_levels::<Mode>().any(|level| {
            let key = self.key(level, address);
            self.tlb.get(&key).is_some_and(|kept| lives::<Mode, S>(memory, &key, kept.entry) != kept.lives)
        })
    }

    /// The level of a cached translation that reaches into what a leaf of `level` at `address` translates and is of another
    /// size.
    pub(super) fn other_size(&self, level: Level, address: VirtAddr) -> Option<Level> {
        let span = span_of::<Mode>(level, address);
        let mut found = leaf_levels::<Mode>().flat_map(|size| self.kept_in(size, span)).map(|(_, found)| found);
        found.find(|found| *found != level)
    }

    /// The cached translations of `size` that reach into `span`, and the level of the leaf of each.
    fn kept_in(&self, size: Level, span: VirtRange) -> impl Iterator<Item = (Key, Level)> {
        let bounds = self.key(size, span.start)..=self.key(size, VirtAddr(span.end.0 - 1));
        self.tlb.range(bounds).map(|(key, kept)| (*key, kept.found))
    }

    /// The cached entries that point to tables on the way to `address`, from the closest to the leaf on.
    pub(super) fn tables(&self, address: VirtAddr) -> impl Iterator<Item = (Level, Entry)> {
        table_levels::<Mode>().filter_map(move |level| Some((level, self.tables.get(&self.key(level, address))?.entry)))
    }

    /// Whether an entry of `level` that points to a table on the way to `address` is cached.
    pub(super) fn has_table(&self, level: Level, address: VirtAddr) -> bool {
        self.tables.contains_key(&self.key(level, address))
    }

    fn key(&self, level: Level, address: VirtAddr) -> Key {
        Key { asid: self.asid, level, prefix: address.0 >> Mode::shift(level) }
    }

    /// Caches the leaf `entry` of level `found` as a translation of `size`, which is no larger.
    pub(super) fn cache_translation<S: EntrySlot>(
        &mut self,
        memory: &PhysicalMemory<S>,
        (found, size): (Level, Level),
        address: VirtAddr,
        entry: Entry,
    ) {
        let key = self.key(size, address);
        let piece = address.0 & (Mode::entry_span(found) - 1) & !(Mode::entry_span(size) - 1);
        let entry = Entry(entry.0 + piece);
        let old = self.tlb.insert(key, Kept { entry, lives: lives::<Mode, S>(memory, &key, entry), found });
        frames::<Mode>(size, entry).for_each(|pfn| memory.name(pfn));
        old.into_iter().flat_map(|old| frames::<Mode>(size, old.entry)).for_each(|pfn| memory.unname(pfn));
    }

    pub(super) fn cache_table<S: EntrySlot>(
        &mut self,
        memory: &PhysicalMemory<S>,
        level: Level,
        address: VirtAddr,
        entry: Entry,
    ) {
        memory.name(hw::pfn(entry));
        let kept = Kept { entry, lives: memory.lives(hw::pfn(entry)), found: level };
        if let Some(old) = self.tables.insert(self.key(level, address), kept) {
            memory.unname(hw::pfn(old.entry));
        }
    }

    /// What a page fault at `address` drops: its translation and the tables used for it.
    pub(super) fn drop_faulting<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, address: VirtAddr) {
        for level in leaf_levels::<Mode>() {
            self.evict_translation(memory, self.key(level, address));
        }
        for level in table_levels::<Mode>() {
            self.evict_table(memory, self.key(level, address));
        }
    }

    /// INVLPG once every `stride` bytes of `range`: the translations it meets, of a large leaf all pieces (SDM 3A, 4.10.4.1), and
    /// all of the paging-structure cache.
    pub(super) fn flush_range<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, range: VirtRange, stride: u64) {
        let first = range.start.0 & !(stride - 1);
        let in_pieces = self.tlb.iter().any(|(key, kept)| key.level != kept.found);
        for address in (first..range.end.0).step_by(stride as usize) {
            for level in leaf_levels::<Mode>() {
                self.evict_translation(memory, self.key(level, VirtAddr(address)));
                if in_pieces {
                    self.evict_pieces(memory, level, VirtAddr(address));
                }
            }
        }
        self.flush_tables(memory);
    }

    /// Everything of the current ASID.
    pub(super) fn flush_all<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>) {
        let keys: Vec<_> = self.loaded(&self.tlb).map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.evict_translation(memory, key));
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

    /// An address that a cached translation or table of the current ASID covers, the `choice`-th modulo their number.
    pub(super) fn known_address(&self, choice: usize) -> Option<VirtAddr> {
        let keys = || self.loaded(&self.tlb).chain(self.loaded(&self.tables)).map(|(key, _)| key);
        keys().nth(choice.checked_rem(keys().count())?).map(start::<Mode>)
    }

    /// Every cached translation of the current ASID: first address, level of the leaf, entry.
    pub(super) fn translations(&self) -> impl Iterator<Item = (VirtAddr, Level, Entry)> {
        self.loaded(&self.tlb).map(|(key, kept)| (start::<Mode>(key), key.level, kept.entry))
    }

    /// Those that reach into `range`.
    pub(super) fn translations_in(&self, range: VirtRange) -> impl Iterator<Item = (VirtAddr, Level, Entry)> {
        self.translations().filter(move |(start, level, _)| {
            start.0 < range.end.0 && range.start.0 < start.0 + Mode::entry_span(*level)
        })
    }

    /// As what the CPU still knows frame `pfn`: first as what its walker would use on its own account.
    pub(super) fn knows(&self, pfn: Pfn) -> Option<Cached> {
        if self.top.map(PhysAddr::pfn) == Some(pfn) {
            return Some(Cached::Top);
        }
        if let Some((key, _)) = self.loaded(&self.tables).find(|(_, kept)| hw::pfn(kept.entry) == pfn) {
            return Some(Cached::Table(key.level, start::<Mode>(key)));
        }
        if let Some(index) = self.latched.iter().position(|entry| hw::is_present(*entry) && hw::pfn(*entry) == pfn) {
            return Some(Cached::Table(Mode::TOP, VirtAddr((index as u64) << Mode::shift(Mode::TOP))));
        }
        let names = |key: &Key, entry| frames::<Mode>(key.level, entry).any(|named| named == pfn);
        let translation = self.loaded(&self.tlb).find(|(key, kept)| names(key, kept.entry));
        translation.map(|(key, _)| Cached::Translation(start::<Mode>(key)))
    }

    fn flush_tables<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>) {
        let keys: Vec<_> = self.loaded(&self.tables).map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.evict_table(memory, key));
    }

    fn evict_translation<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, key: Key) {
        if let Some(kept) = self.tlb.remove(&key)
            && key.asid == self.asid
        {
            frames::<Mode>(key.level, kept.entry).for_each(|pfn| memory.unname(pfn));
        }
    }

    /// What is cached in pieces of the leaf of `level` at `address`.
    fn evict_pieces<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, level: Level, address: VirtAddr) {
        let span = span_of::<Mode>(level, address);
        let sizes = leaf_levels::<Mode>().filter(|size| *size < level);
        let pieces: Vec<_> =
            sizes.flat_map(|size| self.kept_in(size, span)).filter(|(_, found)| *found == level).collect();
        pieces.into_iter().for_each(|(key, _)| self.evict_translation(memory, key));
    }

    fn evict_table<S: EntrySlot>(&mut self, memory: &PhysicalMemory<S>, key: Key) {
        if let Some(kept) = self.tables.remove(&key)
            && key.asid == self.asid
        {
            memory.unname(hw::pfn(kept.entry));
        }
    }
}

/// The tables that `latched` entries point to.
fn tables(latched: &[Entry]) -> impl Iterator<Item = Pfn> {
    latched.iter().filter(|entry| hw::is_present(**entry)).map(|entry| hw::pfn(*entry))
}

/// Levels whose entries may be leaves, lowest first.
fn leaf_levels<Mode: PagingMode>() -> impl Iterator<Item = Level> {
    [Level::Pte, Level::Pmd, Level::Pud].into_iter().filter(|level| *level <= Mode::TOP)
}

/// Levels whose entries may point to tables, lowest first. Nothing is ever cached for a level the mode folds away.
fn table_levels<Mode: PagingMode>() -> impl Iterator<Item = Level> {
    [Level::Pmd, Level::Pud, Level::P4d, Level::Pgd].into_iter().filter(|level| *level <= Mode::TOP)
}

fn start<Mode: PagingMode>(key: Key) -> VirtAddr {
    VirtAddr(key.prefix << Mode::shift(key.level))
}

/// Uses that the frames of a leaf have had, taken together.
fn lives<Mode: PagingMode, S: EntrySlot>(memory: &PhysicalMemory<S>, key: &Key, leaf: Entry) -> u64 {
    frames::<Mode>(key.level, leaf).map(|pfn| memory.lives(pfn)).sum()
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
