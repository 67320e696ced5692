//! Sequences of operations on address spaces, by two CPUs in turn, held against the reference model: whatever the paging mode,
//! the sizes of pages, what CPUs have cached and where memory runs out, memory is a plain map from page to content and right.

mod run;

pub use run::run;

use crate::config::PAGE_SIZE;
use crate::machine::sim::SimConfig;
use crate::pgtable::{HugeSize, Level, PagingMode};
use std::ops::Range;

/// CPUs that take turns.
pub const CPUS: usize = 2;
/// Address spaces that CPUs take turns in. One that is replaced lives on where it is loaded.
pub const SPACES: usize = 3;
/// Memory objects that can be mapped.
pub const OBJECTS: usize = 2;
/// Pages of each: enough for a tree of two levels.
pub const OBJECT_PAGES: u64 = 70;

/// A step: who does what, and which of its allocations fail.
pub type Step = (usize, Option<Shortage>, Action);

/// Which of an operation's allocations fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// The one of this number.
    Once(u32),
    /// That and all after it.
    ForGood(u32),
}

/// What a CPU does. Addresses are numbers of pages.
#[derive(Clone, Debug)]
pub enum Action {
    /// It runs in address space number so many from now on.
    Enter(usize),
    /// It runs a kernel thread and keeps what it has loaded.
    Lazy,
    /// It loads the kernel's own table.
    Idle,
    /// Stores a word.
    Write(u64, u64),
    /// Loads it.
    Read(u64),
    /// Maps memory.
    Map {
        /// Where.
        range: Range<u64>,
        /// In place of what is there, or only where nothing is.
        instead: bool,
        /// Whether it may be written.
        write: bool,
        /// What it consists of.
        backing: Backing,
    },
    /// `munmap`
    Unmap(Range<u64>),
    /// `mprotect`: whether it may be written.
    Protect(Range<u64>, bool),
    /// `mremap`: from where to where.
    Remap(Range<u64>, Range<u64>),
    /// `madvise(MADV_DONTNEED)`
    Discard(Range<u64>),
    /// Makes small pages one huge page.
    Collapse(u64),
    /// Makes a huge page small ones.
    Split(u64),
    /// Number so many becomes a fork of the address space it runs in.
    Fork(usize),
    /// Number so many becomes an empty one.
    Replace(usize),
}

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Anonymous memory in small pages.
    Anonymous,
    /// Anonymous memory, huge where that goes.
    AnonymousHuge,
    /// Explicit huge pages.
    Huge(HugeSize),
    /// The object of this number, from this page on.
    Object(usize, u64),
}

/// Pages of a PTE table.
pub fn table<Mode: PagingMode>() -> u64 {
    Mode::entries(Level::Pte) as u64
}

/// The page where tables of every level but the top begin.
pub fn border<Mode: PagingMode>() -> u64 {
    Mode::entry_span(Mode::TOP) / PAGE_SIZE as u64
}

/// A page near a border of tables: `reach` pages before it to as many after it, by `at`. The middle one of the three borders, by
/// `side`, is that of tables of all levels.
pub fn near<Mode: PagingMode>(side: u64, reach: u64, at: u64) -> u64 {
    border::<Mode>() + side % 3 * table::<Mode>() + at % (2 * reach) - table::<Mode>() - reach
}

/// Walks ahead and forgets at random, dawdles never: one CPU runs at a time.
pub fn config(frames: usize, asids: usize) -> SimConfig {
    SimConfig {
        delay: 0,
        speculation: 8,
        eviction: 256,
        asids,
        gigabyte_pages: false,
        ..SimConfig::racy(frames, CPUS, 1)
    }
}
