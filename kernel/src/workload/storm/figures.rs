//! What a phase is measured by, summed over its rounds.

use alloc::vec::Vec;

use mm::cpu::CpuId;
use mm::stats::{Counter, LockCounter, LockPeak, StatsSnapshot};
use mm::sync::LockClass;

use super::round::Work;

/// The locks of page tables, at all levels.
const PAGE_TABLE_LOCKS: &[LockClass] = &[LockClass::Pte, LockClass::Pmd, LockClass::PageTable];

/// How a fault can end.
const FAULTS: [Counter; 7] = [
    Counter::AnonymousRead,
    Counter::AnonymousWrite,
    Counter::ZeroPageUpgrade,
    Counter::ObjectFault,
    Counter::SpuriousFault,
    Counter::RacedFault,
    Counter::FailedFault,
];

/// The figures of a phase.
pub struct Figures {
    /// Rounds run.
    pub rounds: u64,
    /// From the first CPU's begin to the last CPU's end.
    pub nanoseconds: u64,
    /// Spent unmapping.
    pub unmap_nanoseconds: u64,
    cpus: Vec<(CpuId, StatsSnapshot)>,
}

impl Figures {
    /// Of a phase that has not begun.
    pub fn new() -> Self {
        Self { rounds: 0, nanoseconds: 0, unmap_nanoseconds: 0, cpus: Vec::new() }
    }

    /// Adds what all CPUs did in a round, always the same CPUs.
    pub fn add_round(&mut self, works: &[Work]) {
        self.rounds += 1;
        let began = works.iter().map(|work| work.began).min();
        let ended = works.iter().map(|work| work.ended).max();
        self.nanoseconds += ended.zip(began).map_or(0, |(ended, began)| ended.saturating_sub(began));
        for work in works {
            match self.cpus.iter_mut().find(|(cpu, _)| *cpu == work.cpu) {
                Some((_, counted)) => *counted = core::mem::take(counted) + work.counted.clone(),
                None => self.cpus.push((work.cpu, work.counted.clone())),
            }
        }
    }

    /// Adds the time a round's unmapping took.
    pub fn add_unmapping(&mut self, nanoseconds: u64) {
        self.unmap_nanoseconds += nanoseconds;
    }

    /// Faults of each CPU.
    pub fn faults_by_cpu(&self) -> impl Iterator<Item = (CpuId, u64)> {
        self.cpus.iter().map(|(cpu, counted)| (*cpu, faults(counted)))
    }

    /// How often each CPU counted `counter`, in the order of [`faults_by_cpu`](Self::faults_by_cpu).
    pub fn by_cpu(&self, counter: Counter) -> impl Iterator<Item = u64> {
        self.cpus.iter().map(move |(_, counted)| counted[counter])
    }

    /// Faults of all CPUs.
    pub fn faults(&self) -> u64 {
        self.faults_by_cpu().map(|(_, faults)| faults).sum()
    }

    /// How often `counter` was counted on all CPUs.
    pub fn count(&self, counter: Counter) -> u64 {
        self.cpus.iter().map(|(_, counted)| counted[counter]).sum()
    }

    /// `counter` of the page-table locks, on all CPUs.
    pub fn locks(&self, counter: LockCounter) -> u64 {
        self.cpus.iter().map(|(_, counted)| counted.locks(PAGE_TABLE_LOCKS, counter)).sum()
    }

    /// The longest wait for a page-table lock.
    pub fn longest_wait(&self) -> u64 {
        let waits = self.cpus.iter().map(|(_, counted)| counted.peak(PAGE_TABLE_LOCKS, LockPeak::WaitNanos));
        waits.max().unwrap_or(0)
    }
}

fn faults(counted: &StatsSnapshot) -> u64 {
    FAULTS.iter().map(|&outcome| counted[outcome]).sum()
}
