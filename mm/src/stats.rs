//! Event counts, kept per CPU.
//!
//! Rule: a count is written by its own CPU alone, so that counting never shares a cache line (a shared counter in the
//! fault path would undo the split of the locks), and one count is bumped either by interrupt handlers or outside of
//! them: an update is a load and a store, not one locked instruction. Anyone may read; sums are exact while the CPUs
//! rest. The atomics are plain ones under the model checker too: no protocol reads a count.

use crate::cpu::Cpus;
use crate::sync::atomic::plain::Solo64;
use crate::sync::{LOCK_CLASSES, LockClass};
use core::array;
use core::ops::{Add, Index};

/// Defines an enum that indexes an array of counts, and the name each count has in a report.
macro_rules! indices {
    ($(#[$about:meta])* $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum $enum {
            $($(#[$doc])* $variant,)+
        }

        impl $enum {
            /// All of them, in the order of their indices.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

indices! {
    /// An event that `mm` counts.
    Counter {
        /// Fault that mapped the zero page into anonymous memory.
        AnonymousRead = "anonymous_read",
        /// Fault that gave anonymous memory a fresh frame.
        AnonymousWrite = "anonymous_write",
        /// Write fault that replaced the zero page by a fresh frame.
        ZeroPageUpgrade = "zero_page_upgrade",
        /// Write fault that replaced a page shared after a fork by a copy.
        PageCopied = "page_copied",
        /// Write fault on such a page that nobody else had any more.
        PageReused = "page_reused",
        /// Fault that mapped a page of a memory object.
        ObjectFault = "object_fault",
        /// Fault whose page was there already: nothing to do, or a right to add.
        SpuriousFault = "spurious_fault",
        /// Fault that another CPU was faster with: the access is repeated and finds its work.
        RacedFault = "raced_fault",
        /// Fault that had to take `mmap_lock`.
        MmapLockFault = "mmap_lock_fault",
        /// Times `mmap_lock` of any address space was taken, for reading or for writing.
        MmapLockTaken = "mmap_lock_taken",
        /// Fault that ended in an error.
        FailedFault = "failed_fault",
        /// Flushes that interrupted at least one other CPU.
        ShootdownsSent = "shootdowns_sent",
        /// CPUs interrupted by them.
        ShootdownTargets = "shootdown_targets",
        /// Flush requests of other CPUs answered, those included that had nothing to flush here.
        FlushesServed = "flushes_served",
        /// Entries that were neither none, nor a table, nor a page, and have been cleared.
        BadEntries = "bad_entries",
        /// Flushes done here page by page, for this CPU or another.
        FlushesRanged = "flushes_ranged",
        /// Flushes done here that dropped all of the loaded address space.
        FlushesFull = "flushes_full",
        /// CPUs a flush passed by because they ran a kernel thread.
        LazySkipped = "lazy_skipped",
        /// Lazily kept address spaces left because of a flush.
        LazyLeft = "lazy_left",
        /// Returns to a lazily kept address space that had been flushed meanwhile.
        LazyBehind = "lazy_behind",
        /// Loads of an address space whose translations were all kept and are current.
        AsidCurrent = "asid_current",
        /// Loads of an address space some of whose kept translations may be out of date.
        AsidBehind = "asid_behind",
        /// Loads of an address space nothing was kept of.
        AsidNew = "asid_new",
        /// Page tables allocated.
        TablesAllocated = "tables_allocated",
        /// Page tables freed.
        TablesFreed = "tables_freed",
        /// Fault that mapped a huge page.
        HugeFault = "huge_fault",
        /// Transparent huge pages split.
        HugeSplits = "huge_splits",
        /// Ranges of small pages collapsed into a huge one.
        HugeCollapses = "huge_collapses",
        /// Grace periods waited for.
        GracePeriods = "grace_periods",
    }
}

indices! {
    /// A count kept for each [`LockClass`].
    LockCounter {
        /// Times a lock was taken.
        Acquired = "acquired",
        /// Of these, times it was not free at the first look.
        Waited = "waited",
        /// Nanoseconds waited.
        WaitNanos = "wait_ns",
        /// Times a waiter halted.
        Halts = "halts",
        /// Times an unlocker kicked a halted waiter.
        Kicks = "kicks",
    }
}

indices! {
    /// A largest value kept for each [`LockClass`].
    LockPeak {
        /// Longest wait, in nanoseconds.
        WaitNanos = "wait_max",
        /// Most rounds one waiter stood outside the queue.
        RoundsOutside = "rounds_max",
        /// Most other acquisitions between taking a ticket and owning the lock.
        TurnsInQueue = "turns_max",
    }
}

/// The counts of one CPU.
#[repr(align(64))]
pub struct CpuStats {
    events: [Solo64; Counter::COUNT],
    locks: [[Solo64; LockCounter::COUNT]; LOCK_CLASSES],
    peaks: [[Solo64; LockPeak::COUNT]; LOCK_CLASSES],
}

impl CpuStats {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            events: [const { Solo64::new(0) }; Counter::COUNT],
            locks: [const { [const { Solo64::new(0) }; LockCounter::COUNT] }; LOCK_CLASSES],
            peaks: [const { [const { Solo64::new(0) }; LockPeak::COUNT] }; LOCK_CLASSES],
        }
    }

    /// Counts one `counter`. On the CPU whose counts these are, as is every update below.
    pub fn bump(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `count` of `counter`.
    pub fn add(&self, counter: Counter, count: u64) {
        let tally = &self.events[counter as usize];
        tally.set(tally.get().wrapping_add(count));
    }

    /// Counts `count` of `counter` for locks of `class`.
    pub(crate) fn add_lock(&self, class: LockClass, counter: LockCounter, count: u64) {
        let tally = &self.locks[class as usize][counter as usize];
        tally.set(tally.get().wrapping_add(count));
    }

    /// Notes a `value` of which the largest is kept.
    pub(crate) fn raise(&self, class: LockClass, peak: LockPeak, value: u64) {
        let tally = &self.peaks[class as usize][peak as usize];
        if value > tally.get() {
            tally.set(value);
        }
    }

    /// Forgets the largest values, before a phase that is to have its own. The only update another CPU may make; one
    /// that coincides with a wait on the owning CPU may be lost, or half of it.
    pub fn forget_peaks(&self) {
        self.peaks.iter().flatten().for_each(|tally| tally.set(0));
    }

    /// The counts as they are now.
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            events: array::from_fn(|event| self.events[event].get()),
            locks: array::from_fn(|class| array::from_fn(|counter| self.locks[class][counter].get())),
            peaks: array::from_fn(|class| array::from_fn(|peak| self.peaks[class][peak].get())),
        }
    }
}

impl Default for CpuStats {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts as values: of one CPU or of several, since start or since an earlier snapshot.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct StatsSnapshot {
    events: [u64; Counter::COUNT],
    locks: [[u64; LockCounter::COUNT]; LOCK_CLASSES],
    peaks: [[u64; LockPeak::COUNT]; LOCK_CLASSES],
}

impl StatsSnapshot {
    /// The counts of all CPUs together.
    pub fn sum(cpus: &Cpus) -> Self {
        cpus.iter().map(|(_, local)| local.stats.snapshot()).fold(Self::default(), |sum, one| sum + one)
    }

    /// What was counted since `earlier`. Largest values stay those of `self`: see [`CpuStats::forget_peaks`].
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            events: array::from_fn(|event| self.events[event].wrapping_sub(earlier.events[event])),
            locks: array::from_fn(|class| {
                array::from_fn(|counter| self.locks[class][counter].wrapping_sub(earlier.locks[class][counter]))
            }),
            peaks: self.peaks,
        }
    }

    /// A count for the locks of `classes` together.
    pub fn locks(&self, classes: &[LockClass], counter: LockCounter) -> u64 {
        classes.iter().map(|&class| self.locks[class as usize][counter as usize]).sum()
    }

    /// A largest value among the locks of `classes`.
    pub fn peak(&self, classes: &[LockClass], peak: LockPeak) -> u64 {
        classes.iter().map(|&class| self.peaks[class as usize][peak as usize]).max().unwrap_or(0)
    }
}

impl Index<Counter> for StatsSnapshot {
    type Output = u64;

    fn index(&self, counter: Counter) -> &u64 {
        &self.events[counter as usize]
    }
}

impl Add for StatsSnapshot {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            events: array::from_fn(|event| self.events[event].wrapping_add(other.events[event])),
            locks: array::from_fn(|class| {
                array::from_fn(|counter| self.locks[class][counter].wrapping_add(other.locks[class][counter]))
            }),
            peaks: array::from_fn(|class| array::from_fn(|peak| self.peaks[class][peak].max(other.peaks[class][peak]))),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Counter, CpuStats, LockCounter, LockPeak, StatsSnapshot};
    use crate::cpu::{CpuId, Cpus};
    use crate::sync::LockClass::{Pmd, Pte, Zone};

    #[test]
    fn a_difference_holds_only_what_was_counted_in_between() {
        let stats = CpuStats::new();
        stats.add(Counter::TablesFreed, 5);
        stats.add_lock(Pte, LockCounter::Halts, 2);
        let before = stats.snapshot();
        stats.bump(Counter::TablesFreed);
        stats.add_lock(Pte, LockCounter::Halts, 3);
        let between = stats.snapshot().since(&before);
        assert_eq!(between[Counter::TablesFreed], 1);
        assert_eq!(between[Counter::TablesAllocated], 0);
        assert_eq!(between.locks(&[Pte], LockCounter::Halts), 3);
    }

    #[test]
    fn a_sum_adds_counts_and_takes_the_largest_peak() {
        let cpus = Cpus::new();
        for (cpu, wait) in [(CpuId(0), 30), (CpuId(1), 70)] {
            let stats = &cpus.of(cpu).stats;
            stats.bump(Counter::AnonymousRead);
            stats.add_lock(Pmd, LockCounter::Acquired, 4);
            stats.raise(Pmd, LockPeak::WaitNanos, wait);
            stats.raise(Pmd, LockPeak::WaitNanos, wait - 1);
        }
        let sum = StatsSnapshot::sum(&cpus);
        assert_eq!(sum[Counter::AnonymousRead], 2);
        assert_eq!(sum.locks(&[Pte, Pmd, Zone], LockCounter::Acquired), 8);
        assert_eq!(sum.peak(&[Pte, Pmd, Zone], LockPeak::WaitNanos), 70);
        assert_eq!(sum.peak(&[Pte], LockPeak::WaitNanos), 0);
    }

    #[test]
    fn forgetting_peaks_leaves_counts_alone() {
        let stats = CpuStats::new();
        stats.add_lock(Zone, LockCounter::WaitNanos, 9);
        stats.raise(Zone, LockPeak::WaitNanos, 9);
        stats.forget_peaks();
        assert_eq!(stats.snapshot().peak(&[Zone], LockPeak::WaitNanos), 0);
        assert_eq!(stats.snapshot().locks(&[Zone], LockCounter::WaitNanos), 9);
    }
}
