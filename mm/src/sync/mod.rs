//! What CPUs wait on: the atomics façade, the page-table lock algorithms, the locks built from them, RCU.

pub mod atomic;
// Its unlock is unsafe to call, and it reads the places it was given.
#[allow(unsafe_code)]
pub mod debug;
pub mod held;
pub mod mcs;
pub mod order;
pub mod parking;
pub mod rcu;
pub mod rwlock;
// `SpinLock` hands out its value.
#[allow(unsafe_code)]
pub mod spin;
pub mod test_and_set;
pub mod ticket;
// `RawLock::unlock` is unsafe to call.
#[allow(unsafe_code)]
mod word;

#[cfg(all(test, not(loom)))]
mod testing;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::machine::Machine;

/// The lock of this build: what a machine names as its [`Machine::Lock`], and what [`crate::config`] computes with.
#[cfg(not(all(feature = "debug-locks", not(loom))))]
pub type BuildLock = Algorithm;
/// As above, in its debug form.
#[cfg(all(feature = "debug-locks", not(loom)))]
pub type BuildLock = debug::DebugLock<Algorithm>;

/// How CPUs wait for a lock and hand it on.
pub type Algorithm = ticket::TicketLock;

/// Keeps its contents on cache lines of their own.
#[repr(align(64))]
pub(crate) struct OwnLine<T>(pub(crate) T);

/// What a lock protects; counted and reported by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LockClass {
    /// A PTE table.
    Pte = 0,
    /// A PMD table.
    Pmd = 1,
    /// The levels above: `mm->page_table_lock`.
    PageTable = 2,
    /// The frame allocator's free lists.
    Zone = 3,
    /// A slab cache.
    Slab = 4,
    /// Any other lock of `mm`.
    Other = 5,
}

/// Number of [`LockClass`]es.
pub const LOCK_CLASSES: usize = LockClass::ALL.len();

impl LockClass {
    /// All of them, each at its own index.
    pub const ALL: &[Self] = &[Self::Pte, Self::Pmd, Self::PageTable, Self::Zone, Self::Slab, Self::Other];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pte => "pte",
            Self::Pmd => "pmd",
            Self::PageTable => "page_table",
            Self::Zone => "zone",
            Self::Slab => "slab",
            Self::Other => "other",
        }
    }

    /// Its place in the lock order (spec 2.2): locks are waited for in rising rank. Those of the last rank, the leaves, are
    /// waited for under one another neither.
    pub(crate) const fn rank(self) -> u8 {
        match self {
            Self::PageTable => 0,
            Self::Pmd => 1,
            Self::Pte => 2,
            Self::Zone | Self::Slab | Self::Other => 3,
        }
    }

    fn from_index(index: u8) -> Self {
        Self::ALL.get(usize::from(index)).copied().unwrap_or(Self::Other)
    }

    /// What a report of a holder or waiter calls the lock.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Pte => "the lock of a PTE table",
            Self::Pmd => "the lock of a PMD table",
            Self::PageTable => "a page_table_lock",
            Self::Zone => "the lock of the free lists",
            Self::Slab => "the lock of a slab cache",
            Self::Other => "a lock of mm",
        }
    }
}

/// Why a lock may be waited for under another of its class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nesting {
    /// It is not, or its address is the higher one.
    Plain,
    /// The caller knows an order of its own: destination before source, old before new. One such lock at a time
    /// (`SINGLE_DEPTH_NESTING`).
    SingleDepth,
}

/// A mutual-exclusion algorithm. Taken with interrupts on (I24): a shootdown may be under way under the lock,
/// and a waiter that does not take its interrupt would stop it for ever.
///
/// Page tables use [`ticket`]; [`ticket::FifoLock`], [`test_and_set`] and [`mcs`] are there to be compared with it.
pub trait RawLock: Send + Sync + 'static {
    /// A free lock.
    fn new() -> Self;
    /// Takes the lock, waiting by the machine's [`WaitingRule`](crate::machine::WaitingRule).
    #[track_caller]
    fn lock<M: Machine>(&self, machine: M, class: LockClass);
    /// Takes the lock if it is free now. Never enqueues, never waits (I48).
    #[track_caller]
    fn try_lock<M: Machine>(&self, machine: M, class: LockClass) -> bool;
    /// Gives the lock up, and wakes whoever is to have it next. Does not touch the word after the releasing store (I46).
    ///
    /// # Safety
    ///
    /// The caller's CPU holds the lock.
    #[allow(unsafe_code)]
    #[track_caller]
    unsafe fn unlock<M: Machine>(&self, machine: M);
    /// Whether anyone holds it.
    fn is_locked(&self) -> bool;
    /// Whether the word knows of anyone behind the owner, in the queue where there is one; right across counter wrap (I49).
    fn is_contended(&self) -> bool;
}
