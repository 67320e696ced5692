//! The three phases: which pages there are, where they are mapped, and which CPU touches which.

use arch_x86::layout;
use arch_x86::machine::X86;
use mm::address::{VirtAddr, VirtRange};
use mm::config::PAGE_SIZE;
use mm::machine::Machine;
use mm::pgtable::{Level, PagingMode};

use crate::harness::Random;

/// Where the regions begin: at the beginning of a table, and in the middle of one far away.
const FIRST: VirtAddr = VirtAddr(layout::STORM[0]);
const SECOND: VirtAddr = VirtAddr(layout::STORM[1]);

/// Pages that one PTE table maps.
fn table_pages() -> u64 {
    <X86 as Machine>::Mode::entry_span(Level::Pmd) / PAGE_SIZE as u64
}

/// Who touches a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// The owner of its 2 MiB slice: no two CPUs need the same PTE table.
    Slices,
    /// One CPU after the other, page by page: all need the same PTE tables, none the same page.
    Neighbours,
    /// Every CPU, at two addresses: they race for each page.
    Everyone,
}

/// A phase of the storm.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Its name in the report.
    pub name: &'static str,
    sharing: Sharing,
    /// Number of pages.
    pub pages: u64,
}

impl Phase {
    /// Each CPU has `slices` slices of 2 MiB of its own.
    pub fn disjoint(cpus: u64, slices: u64) -> Self {
        Self { name: "disjoint", sharing: Sharing::Slices, pages: cpus * slices * table_pages() }
    }

    /// All CPUs work in the same `tables` PTE tables, on pages of their own.
    pub fn same_table(tables: u64) -> Self {
        Self { name: "same_table", sharing: Sharing::Neighbours, pages: tables * table_pages() }
    }

    /// All CPUs work on the same `pages` pages of one object.
    pub fn same_page(pages: u64) -> Self {
        Self { name: "same_page", sharing: Sharing::Everyone, pages }
    }

    /// The three phases as `cargo xtask run` runs them.
    pub fn full_size(cpus: u64) -> [Self; 3] {
        [Self::disjoint(cpus, 4), Self::same_table(16), Self::same_page(4096)]
    }

    /// Whether the pages are those of a shared object, and not anonymous memory.
    pub fn is_shared(&self) -> bool {
        self.sharing == Sharing::Everyone
    }

    /// The first addresses of the regions that map the pages.
    fn starts(&self) -> &'static [VirtAddr] {
        if self.is_shared() { &[FIRST, SECOND] } else { &[FIRST] }
    }

    /// The regions.
    pub fn ranges(&self) -> impl Iterator<Item = VirtRange> {
        let bytes = self.pages * PAGE_SIZE as u64;
        self.starts().iter().filter_map(move |start| VirtRange::new(start.0, start.0 + bytes))
    }

    /// The addresses of page `page`.
    pub fn addresses(&self, page: u64) -> impl Iterator<Item = VirtAddr> {
        self.starts().iter().map(move |start| VirtAddr(start.0 + page * PAGE_SIZE as u64))
    }

    /// The pages that CPU number `cpu` of `cpus` touches, in the order it does.
    pub fn pages_of(&self, cpu: u64, cpus: u64) -> impl Iterator<Item = u64> {
        let phase = *self;
        (0..self.pages).filter(move |page| phase.owner(*page, cpus).is_none_or(|owner| owner == cpu))
    }

    /// The CPU a page belongs to, `None` if to all.
    fn owner(&self, page: u64, cpus: u64) -> Option<u64> {
        match self.sharing {
            Sharing::Slices => Some(page / table_pages() % cpus),
            Sharing::Neighbours => Some(page % cpus),
            Sharing::Everyone => None,
        }
    }

    /// What CPU number `cpu` adds to a page at each of its addresses: 1 to a page of everyone, to one of its own what
    /// nobody else would, and never 0.
    pub fn addend(&self, salt: u64, cpu: u64, page: u64) -> u64 {
        if self.is_shared() { 1 } else { Random::new(salt ^ cpu << 48 ^ page).next_u64() | 1 }
    }

    /// What a page holds when all of `cpus` CPUs are done.
    pub fn sum(&self, salt: u64, page: u64, cpus: u64) -> u64 {
        match self.owner(page, cpus) {
            Some(owner) => self.addend(salt, owner, page),
            None => cpus * self.starts().len() as u64,
        }
    }
}
