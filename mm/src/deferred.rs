//! What waits for its readers: unhooked tables, replaced regions and tree nodes, freed after a grace period.
//!
//! Rules kept: destructor and frame free happen together, after unlink, flush and grace period (I10, I11). The backlog of a
//! CPU is bounded: past a limit the CPU that adds to it waits for a grace period itself.

use crate::address::Pfn;
use crate::config::NR_CPUS;
use crate::machine::Machine;
use crate::memory::Memory;
use crate::pgtable::pagetable_dtor_free;
use crate::sync::LockClass;
use crate::sync::atomic::Ordering;
use crate::sync::rcu::{self, GracePeriod, Rcu};
use crate::sync::spin::SpinLock;
use crate::vma::Removed;

/// Tables a CPU may have waiting before it stops to wait itself.
const BACKLOG: usize = 256;

/// No further table in a list.
const END: u64 = u64::MAX;

/// Things nobody can find any more but somebody may still be looking at. Linked through themselves, so that collecting
/// them needs no memory.
pub(crate) struct Garbage<M: Machine> {
    tables: u64,
    count: usize,
    pub(crate) removed: Removed<M>,
}

impl<M: Machine> Garbage<M> {
    pub(crate) const fn new() -> Self {
        Self { tables: END, count: 0, removed: Removed::new() }
    }

    /// Adds an unhooked table.
    pub(crate) fn push_table(&mut self, memory: &Memory<M>, pfn: Pfn) {
        // Relaxed: the list is private until it is handed on under a lock.
        memory.memmap().page(pfn).rcu_next.store(self.tables, Ordering::Relaxed);
        self.tables = pfn.0;
        self.count += 1;
    }

    fn pop_table(&mut self, memory: &Memory<M>) -> Option<Pfn> {
        if self.tables == END {
            return None;
        }
        let pfn = Pfn(self.tables);
        self.tables = memory.memmap().page(pfn).rcu_next.load(Ordering::Relaxed);
        self.count -= 1;
        Some(pfn)
    }

    fn is_empty(&self) -> bool {
        self.count == 0 && self.removed.is_empty()
    }

    fn append(&mut self, memory: &Memory<M>, other: &mut Self) {
        while let Some(pfn) = other.pop_table(memory) {
            self.push_table(memory, pfn);
        }
        self.removed.vmas.append(&mut other.removed.vmas);
        self.removed.nodes.append(&mut other.removed.nodes);
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

/// One CPU's garbage: what the running grace period covers, and what came after its start.
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

/// The backlogs of all CPUs. A CPU adds to its own; anyone may drain all.
pub(crate) struct Deferred<M: Machine> {
    backlogs: [SpinLock<Backlog<M>, M::Lock>; NR_CPUS],
}

impl<M: Machine> Deferred<M> {
    pub(crate) fn new() -> Self {
        Self {
            backlogs: core::array::from_fn(|_| {
                SpinLock::new(Backlog { grace_period: None, waiting: Garbage::new(), next: Garbage::new() })
            }),
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
            backlog.next.count + backlog.waiting.count
        };
        self.advance_deferred();
        if count > BACKLOG {
            self.drain_deferred();
        }
    }

    /// Frees what this CPU has had waiting long enough. For the idle loop and other quiet moments; not in a read section.
    /// Returns whether something still waits.
    pub fn advance_deferred(&self) -> bool {
        let (mut ready, waits) = {
            let mut backlog = self.backlog();
            let ready = backlog.advance(self.rcu(), self.machine());
            (ready, backlog.grace_period.is_some())
        };
        ready.free(self);
        waits
    }

    /// Waits for a grace period and frees everything that waits on any CPU. Not in a read section.
    pub fn drain_deferred(&self) {
        let mut all = Garbage::new();
        for backlog in &self.deferred().backlogs {
            let mut backlog = backlog.lock(self.machine(), LockClass::Other);
            backlog.grace_period = None;
            let Backlog { waiting, next, .. } = &mut *backlog;
            all.append(self, waiting);
            all.append(self, next);
        }
        if !all.is_empty() {
            rcu::synchronize(self.rcu(), self.machine());
            all.free(self);
        }
    }

    fn backlog(&self) -> crate::sync::spin::SpinGuard<'_, Backlog<M>, M::Lock, M> {
        self.deferred().backlogs[self.machine().cpu().index()].lock(self.machine(), LockClass::Other)
    }
}
