//! What waits for its readers: unhooked tables, replaced regions and tree nodes, freed after a grace period.
//!
//! Rules kept: destructor and frame free happen together, after unlink, flush and grace period (I10, I11). The backlog of a
//! CPU is bounded: past a limit the CPU that adds to it waits for a grace period itself.

use crate::address::Pfn;
use crate::config::NR_CPUS;
use crate::machine::Machine;
use crate::memory::Memory;
use crate::page::{decode, encode};
use crate::pgtable::pagetable_dtor_free;
use crate::sync::atomic::{AtomicUsize, Ordering, is_older};
use crate::sync::rcu::{self, GracePeriod, Rcu};
use crate::sync::spin::SpinLock;
use crate::sync::{LockClass, OwnLine};
use crate::vma::Removed;

/// Tables, regions and nodes a backlog may hold before the CPU that adds to it waits itself.
const BACKLOG: usize = 256;

/// Number of backlogs. On a larger machine several CPUs share one: [`Memory`] is made on a kernel stack.
const BACKLOGS: usize = if NR_CPUS < 16 { NR_CPUS } else { 16 };

/// Freeing a batch that has taken this long will never end.
const FREE_LIMIT_NANOS: u64 = 60_000_000_000;

/// Things nobody can find any more but somebody may still be looking at. Linked through themselves, so that collecting
/// them needs no memory.
pub(crate) struct Garbage<M: Machine> {
    tables: Option<Pfn>,
    count: usize,
    pub(crate) removed: Removed<M>,
}

impl<M: Machine> Garbage<M> {
    pub(crate) const fn new() -> Self {
        Self { tables: None, count: 0, removed: Removed::new() }
    }

    /// Adds an unhooked table.
    pub(crate) fn push_table(&mut self, memory: &Memory<M>, pfn: Pfn) {
        // Relaxed: the list is private until it is handed on under a lock.
        memory.memmap().page(pfn).rcu_next.store(encode(self.tables), Ordering::Relaxed);
        self.tables = Some(pfn);
        self.count += 1;
    }

    fn pop_table(&mut self, memory: &Memory<M>) -> Option<Pfn> {
        let pfn = self.tables?;
        self.tables = decode(memory.memmap().page(pfn).rcu_next.load(Ordering::Relaxed));
        self.count -= 1;
        Some(pfn)
    }

    /// Number of tables.
    pub(crate) fn tables(&self) -> usize {
        self.count
    }

    fn len(&self) -> usize {
        self.count + self.removed.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves all of `other` here.
    pub(crate) fn append(&mut self, memory: &Memory<M>, other: &mut Self) {
        while let Some(pfn) = other.pop_table(memory) {
            self.push_table(memory, pfn);
        }
        self.removed.append(&mut other.removed);
    }

    /// Frees everything. The grace period is over, or nothing was ever published.
    pub(crate) fn free(&mut self, memory: &Memory<M>) {
        while let Some(pfn) = self.pop_table(memory) {
            pagetable_dtor_free(memory, pfn);
        }
        self.removed.vmas.dispose(memory);
        self.removed.nodes.dispose(memory);
    }
}

/// The garbage of one CPU, or a few: what the running grace period covers, and what came after its start.
struct Backlog<M: Machine> {
    grace_period: Option<GracePeriod>,
    waiting: Garbage<M>,
    next: Garbage<M>,
}

impl<M: Machine> Backlog<M> {
    /// What is ready to be freed, if anything; starts a grace period for what came meanwhile.
    fn advance(&mut self, rcu: &Rcu, machine: M) -> Garbage<M> {
        let mut ready = Garbage::new();
        if self.grace_period.as_mut().is_some_and(|period| period.poll(machine)) {
            self.grace_period = None;
            core::mem::swap(&mut ready, &mut self.waiting);
        }
        if self.grace_period.is_none() && !self.next.is_empty() {
            core::mem::swap(&mut self.waiting, &mut self.next);
            self.grace_period = Some(GracePeriod::start(rcu, machine));
        }
        ready
    }
}

/// The backlogs of all CPUs. A CPU adds to one; anyone may drain all.
pub(crate) struct Deferred<M: Machine> {
    backlogs: [SpinLock<Backlog<M>, M::Lock>; BACKLOGS],
    /// Batches taken out of a backlog so far, and how many of them are free by now.
    taken: OwnLine<AtomicUsize>,
    freed: OwnLine<AtomicUsize>,
}

impl<M: Machine> Deferred<M> {
    pub(crate) fn new() -> Self {
        Self {
            backlogs: core::array::from_fn(|_| {
                SpinLock::new(Backlog { grace_period: None, waiting: Garbage::new(), next: Garbage::new() })
            }),
            taken: OwnLine(AtomicUsize::new(0)),
            freed: OwnLine(AtomicUsize::new(0)),
        }
    }
}

impl<M: Machine> Memory<M> {
    /// Frees `garbage` after a grace period. Not in a read section, since a full backlog is waited for.
    pub(crate) fn defer(&self, mut garbage: Garbage<M>) {
        if garbage.is_empty() {
            return;
        }
        let count = {
            let mut backlog = self.backlog();
            backlog.next.append(self, &mut garbage);
            backlog.next.len() + backlog.waiting.len()
        };
        self.advance_deferred();
        if count > BACKLOG {
            self.drain_deferred();
        }
    }

    /// Frees what this CPU's backlog has had waiting long enough. For the idle loop and other quiet moments; not in a read section.
    /// Returns whether something still waits.
    pub fn advance_deferred(&self) -> bool {
        let (mut ready, waits) = {
            let mut backlog = self.backlog();
            let ready = backlog.advance(self.rcu(), self.machine());
            if !ready.is_empty() {
                // Relaxed: whoever finds the backlog without the batch took the lock later.
                self.deferred().taken.0.fetch_add(1, Ordering::Relaxed);
            }
            (ready, backlog.grace_period.is_some())
        };
        if !ready.is_empty() {
            ready.free(self);
            // Release: pairs with the Acquire in `drain_deferred`.
            self.deferred().freed.0.fetch_add(1, Ordering::Release);
        }
        waits
    }

    /// Waits for a grace period and frees everything that waits on any CPU; what another CPU is just freeing is free when
    /// it returns, too, or as much. Not in a read section and under no lock.
    pub fn drain_deferred(&self) {
        self.drain_after(rcu::synchronize);
    }

    /// The same for an allocation that has found no memory: the grace period is an expedited one.
    pub(crate) fn drain_deferred_expedited(&self) {
        self.drain_after(rcu::synchronize_expedited);
    }

    fn drain_after(&self, grace_period: fn(&Rcu, M)) {
        let Deferred { backlogs, taken, freed } = self.deferred();
        // Relaxed: whoever finds a backlog emptied by this took its lock later.
        taken.0.fetch_add(1, Ordering::Relaxed);
        let mut all = Garbage::new();
        for backlog in backlogs {
            let mut backlog = backlog.lock(self.machine(), LockClass::Other);
            backlog.grace_period = None;
            let Backlog { waiting, next, .. } = &mut *backlog;
            all.append(self, waiting);
            all.append(self, next);
        }
        if !all.is_empty() {
            grace_period(self.rcu(), self.machine());
            all.free(self);
        }
        // Release: pairs with the Acquire below, on another CPU.
        freed.0.fetch_add(1, Ordering::Release);
        self.await_freed(taken.0.load(Ordering::Relaxed));
    }

    /// Waits until `batches` have been freed. Nobody waits here before it has freed its own, so the wait ends.
    fn await_freed(&self, batches: usize) {
        let started = self.machine().now();
        // Acquire: pairs with the Release of whoever has freed a batch.
        while is_older(self.deferred().freed.0.load(Ordering::Acquire), batches) {
            // Whoever frees may wait for this CPU's quiescent state first.
            rcu::quiescent(self.machine());
            self.machine().pause();
            if self.machine().now().saturating_sub(started) > FREE_LIMIT_NANOS {
                self.machine().stuck("another CPU to free memory");
            }
        }
    }

    fn backlog(&self) -> crate::sync::spin::SpinGuard<'_, Backlog<M>, M::Lock, M> {
        self.deferred().backlogs[self.machine().cpu().index() % BACKLOGS].lock(self.machine(), LockClass::Other)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
