//! One round of a phase: map, storm, check, unmap, count.

use arch_x86::machine::X86;
use arch_x86::time;
use arch_x86::user_access::{UserAddr, fetch_add_u64};
use mm::cpu::{CpuId, CpuSet};
use mm::machine::Machine;
use mm::pgtable::Protection;
use mm::stats::StatsSnapshot;

use super::oracle::{self, Findings, Holdings, Property};
use super::{Figures, Phase, StormError};
use crate::memory::{Mapping, Mm, MmRef, Object, ObjectRef, enter, memory};
use crate::workload::crew::{self, Member};

/// What one CPU did in a round.
pub struct Work {
    /// The CPU.
    pub cpu: CpuId,
    /// When it began and was done, in nanoseconds of the clock.
    pub began: u64,
    pub ended: u64,
    /// What `mm` counted on it meanwhile.
    pub counted: StatsSnapshot,
    accesses: u64,
    /// Accesses that failed.
    failed: u64,
    /// Accesses that did not find zero.
    not_first: u64,
}

/// Runs one round of `phase` on `cpus`. `mm` has no region when it begins and when it ends.
///
/// # Errors
/// The round cannot be run. What an oracle finds wrong is no error but a finding.
pub fn run(
    mm: &MmRef,
    phase: &Phase,
    cpus: CpuSet,
    salt: u64,
    figures: &mut Figures,
    findings: &mut Findings,
) -> Result<(), StormError> {
    // With PAE, PMD tables that were there from the start go with what is unmapped there, and stay away.
    for range in phase.ranges() {
        mm.mmap(range, Protection::READ_WRITE, Mapping::Anonymous)?;
        mm.munmap(range)?;
    }
    let before = Holdings::count(mm);
    let object = map(mm, phase)?;
    let count = cpus.iter().count() as u64;

    let works = crew::run(cpus, &|member| work(mm, phase, salt, member))?;
    figures.add_round(&works);
    let sum = |of: fn(&Work) -> u64| works.iter().map(of).sum();
    findings.note_many(Property::Access, sum(|work| work.accesses), sum(|work| work.failed));
    if !phase.is_shared() {
        findings.note_many(Property::Zero, sum(|work| work.accesses), sum(|work| work.not_first));
    }
    oracle::check_pages(mm, phase, object.as_ref(), salt, count, findings);

    let began = time::now_nanos();
    for range in phase.ranges() {
        mm.munmap(range)?;
    }
    figures.add_unmapping(time::now_nanos() - began);
    drop(object);
    oracle::check_holdings(&before, &Holdings::count(mm), findings);
    Ok(())
}

/// Maps the phase's pages; returns the object if they are one's.
fn map(mm: &Mm, phase: &Phase) -> Result<Option<ObjectRef>, StormError> {
    let object = if phase.is_shared() { Some(Object::create(memory(), phase.pages)?) } else { None };
    for range in phase.ranges() {
        let mapping = match &object {
            Some(object) => Mapping::Object { object: object.clone(), first_page: 0 },
            None => Mapping::Anonymous,
        };
        mm.mmap(range, Protection::READ_WRITE, mapping)?;
    }
    Ok(object)
}

/// One CPU's part. Its first access to a page adds to it, so that it sees what was there and leaves its mark in one fault.
fn work(mm: &MmRef, phase: &Phase, salt: u64, member: &Member<'_>) -> Work {
    let (cpu, cpus) = (member.index as u64, member.count as u64);
    let _user = enter(mm);
    let (mut accesses, mut failed, mut not_first) = (0, 0, 0);
    let stats = &X86.local().stats;
    stats.forget_peaks();
    member.meet();
    let (before, began) = (stats.snapshot(), time::now_nanos());
    for page in phase.pages_of(cpu, cpus) {
        let addend = phase.addend(salt, cpu, page);
        for address in phase.addresses(page) {
            accesses += 1;
            match UserAddr::new(address.0 as usize).map(|at| fetch_add_u64(at, addend)) {
                Some(Ok(0)) => {}
                Some(Ok(_)) => not_first += 1,
                _ => failed += 1,
            }
        }
    }
    let ended = time::now_nanos();
    let counted = stats.snapshot().since(&before);
    Work { cpu: member.cpu, began, ended, counted, accesses, failed, not_first }
}
