//! Races made to happen: one CPU holds a page-table lock until the others have come as far as waiting for it.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch_x86::machine::X86;
use mm::cpu::{CpuId, CpuSet};
use mm::machine::Machine;
use mm::pgtable::{pmd_lock, pmd_offset, pte_offset_map_lock, pud_lock};
use mm::sync::parking::WaitingFor;
use mm::sync::rcu;

use crate::harness::{Stop, TestContext, TestResult};
use crate::memory::{Mm, MmRef, enter};
use crate::tests::support::{PATIENCE_NANOS, await_within, first_cpus, page};
use crate::workload::crew::{self, Member};

/// A page-table lock.
#[derive(Clone, Copy)]
pub enum TableLock {
    /// Of the PTE table that maps page 0, which must be there.
    Pte,
    /// Of the PMD table that maps page 0, which must be there.
    Pmd,
    /// `page_table_lock`.
    Upper,
}

impl TableLock {
    /// Does `work`, which must not sleep, with the lock held.
    pub fn hold<R>(self, mm: &Mm, work: impl FnOnce() -> R) -> Result<R, Stop> {
        if matches!(self, Self::Upper) {
            let _held = pud_lock(mm);
            return Ok(work());
        }
        let rcu = rcu::read_lock(X86);
        let pmds = pmd_offset(mm, &rcu, page(0)).ok_or("no PMD table to lock")?;
        let pmd = pmds.slot(page(0));
        if matches!(self, Self::Pmd) {
            let _held = pmd_lock(mm, pmd);
            return Ok(work());
        }
        let _held = pte_offset_map_lock(mm, pmd, page(0)).ok_or("no PTE table to lock")?;
        Ok(work())
    }
}

/// Waits until every CPU of `cpus` waits for a lock of `mm` that this CPU holds; `false` if some does not come to it. A wait
/// for another lock, of the slab say, does not count: that CPU has not come so far yet.
pub fn await_waiting(cpus: CpuSet) -> bool {
    await_waiting_so(cpus, |_| true)
}

/// As [`await_waiting`], until they all have also halted.
pub fn await_halted(cpus: CpuSet) -> bool {
    await_waiting_so(cpus, |wait| wait.asleep)
}

fn await_waiting_so(cpus: CpuSet, so: impl Fn(WaitingFor) -> bool) -> bool {
    let held = &X86.local().held;
    let wait_of = |cpu: CpuId| X86.cpus().of(cpu).parking.waiting_for();
    let waits = |cpu: CpuId| wait_of(cpu).is_some_and(|wait| held.contains(wait.lock) && so(wait));
    await_within(PATIENCE_NANOS, || cpus.iter().all(waits))
}

/// A race of two CPUs for a lock that a third holds until both wait for it, the first for longer than the second.
pub struct Collision<'a> {
    /// The lock.
    pub lock: TableLock,
    /// Makes the situation both begin in.
    pub prepare: &'a (dyn Fn(&MmRef) -> TestResult + Sync),
    /// What the first does; it is in the address space.
    pub first: &'a (dyn Fn(&MmRef) -> TestResult + Sync),
    /// What the second does.
    pub second: &'a (dyn Fn(&MmRef) -> TestResult + Sync),
    /// Judges what both have left, and removes it.
    pub judge: &'a (dyn Fn(&MmRef) -> TestResult + Sync),
}

/// Who may run into the lock.
const NOBODY: u32 = 0;
const FIRST: u32 = 1;
const BOTH: u32 = 2;

impl Collision<'_> {
    /// Has the two collide `rounds` times: who of them gets the lock first is left to chance.
    pub fn repeat(&self, t: &TestContext, mm: &MmRef, rounds: u32) -> TestResult {
        if t.cpus() < 3 {
            return Err(Stop::skipped(format_args!("needs three CPUs")));
        }
        let turn = AtomicU32::new(NOBODY);
        // Each flag is stored on one side of a meeting and looked at on the other: whoever is late sees what all others saw.
        let (lost, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let outcomes = crew::run(first_cpus(3), &|member| {
            let _user = enter(mm);
            let is_judge = member.index == 0;
            let mut outcome = Ok(());
            for _ in 0..rounds {
                if is_judge {
                    turn.store(NOBODY, Ordering::Relaxed);
                    if !lost.load(Ordering::Relaxed) {
                        outcome = outcome.and_then(|()| (self.prepare)(mm));
                    }
                    over.store(outcome.is_err() || lost.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                member.meet();
                if over.load(Ordering::Relaxed) {
                    break;
                }
                outcome = self.collide(mm, member, &turn);
                lost.fetch_or(outcome.is_err(), Ordering::Relaxed);
                member.meet();
                if is_judge && !lost.load(Ordering::Relaxed) {
                    outcome = (self.judge)(mm);
                }
            }
            outcome
        })?;
        outcomes.into_iter().collect()
    }

    fn collide(&self, mm: &MmRef, member: &Member<'_>, turn: &AtomicU32) -> TestResult {
        let await_turn = |wanted| {
            while turn.load(Ordering::Acquire) < wanted {
                spin_loop();
            }
        };
        match member.index {
            0 => {
                let held = self.lock.hold(mm, || let_in(turn));
                // Also when there was no lock to hold, or the others would wait for ever.
                turn.store(BOTH, Ordering::Release);
                held?
            }
            1 => {
                await_turn(FIRST);
                (self.first)(mm)
            }
            _ => {
                await_turn(BOTH);
                (self.second)(mm)
            }
        }
    }
}

/// Lets one after the other run into the lock that the caller holds.
fn let_in(turn: &AtomicU32) -> TestResult {
    for (next, runner) in [FIRST, BOTH].into_iter().zip(first_cpus(3).iter().skip(1)) {
        turn.store(next, Ordering::Release);
        if !await_waiting(CpuSet::only(runner)) {
            return Err(Stop::failed(format_args!("cpu {} does not wait for the lock", runner.0)));
        }
    }
    Ok(())
}
