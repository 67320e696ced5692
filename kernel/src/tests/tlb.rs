//! CPUs that keep an address space lazily under a kernel thread: who is interrupted, and what they find when they come back.

use alloc::sync::Arc;
use core::hint::spin_loop;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::machine::X86;
use arch_x86::user_access::AccessFault;
use mm::cpu::{CpuId, CpuSet};
use mm::machine::Machine;
use mm::pgtable::Protection;
use mm::stats::{Counter, StatsSnapshot};

use super::support::{PATIENCE_NANOS, TABLE, await_within, map_anonymous, needs_a_second_cpu, pages, read, write};
use crate::harness::{AtomicCount, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mapping, Mm, MmRef, enter, memory, statistics};
use crate::smp::online;
use crate::thread::{block_while, need_resched, spawn_on, wake};
use crate::workload::crew::{self, Member};

/// Pages mapped: two tables' worth of addresses, with a page touched in each.
const MAPPED: Range<u64> = 0..2 * TABLE;

ktest! {
    /// A page is unmapped while all other CPUs run kernel threads on the address space: none is interrupted, each stays in
    /// the mask, and each finds the page gone when it comes back (R26, I29, I31).
    fn lazy_cpus_are_passed_by_and_catch_up(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let counted = unmap_under_lazy_cpus(t, 0..1)?;
        let others = t.cpus() as u64 - 1;
        ktest_assert_eq!(counted.sent[Counter::ShootdownTargets], 0);
        ktest_assert_eq!(counted.sent[Counter::LazySkipped], others);
        ktest_assert_eq!((counted.left, counted.in_mask), (0, others));
        ktest_assert_eq!(counted.behind, others);
    }

    /// A table goes while all other CPUs run kernel threads on the address space: each is interrupted once and leaves (I33,
    /// R25), and finds the pages gone when it comes back.
    fn lazy_cpus_leave_when_a_table_goes(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let counted = unmap_under_lazy_cpus(t, 0..TABLE)?;
        let others = t.cpus() as u64 - 1;
        ktest_assert_eq!(counted.sent[Counter::ShootdownTargets], others);
        ktest_assert_eq!((counted.left, counted.in_mask), (others, 0));
        ktest_assert_eq!(counted.behind, 0);
    }

    /// One `munmap` over many regions, whose pages every CPU has cached, interrupts each CPU once.
    fn an_unmapping_of_many_regions_is_one_shootdown(t: &TestContext) {
        const REGIONS: u64 = 24;
        let mm = Mm::create(memory())?;
        for region in 0..REGIONS {
            map_anonymous(&mm, pages(4 * region, 4 * region + 2))?;
        }
        let others = t.cpus() as u64 - 1;
        let counted = beside_all(t, &mm, REGIONS, || mm.munmap(pages(0, 4 * REGIONS)).is_ok())?;
        ktest_assert_eq!(counted[Counter::ShootdownTargets], others);
        ktest_assert_eq!(counted[Counter::ShootdownsSent], u64::from(others > 0));
    }

    /// A right that is given interrupts nobody, one that is taken away interrupts each CPU that has it cached (spec 7.5).
    fn an_upgrade_interrupts_nobody_and_a_downgrade_everybody(t: &TestContext) {
        let others = t.cpus() as u64 - 1;
        let (read_only, writable) = (Protection::READ, Protection::READ_WRITE);
        for (from, to, written, expected) in [(read_only, writable, 0, 0), (writable, read_only, 1, others)] {
            let mm = Mm::create(memory())?;
            mm.mmap(pages(0, 4), from, Mapping::Anonymous)?;
            let counted = beside_all(t, &mm, written, || read(0).is_ok() && mm.mprotect(pages(0, 4), to).is_ok())?;
            ktest_assert!(
                counted[Counter::ShootdownTargets] == expected,
                "{} CPUs interrupted for {to:?}",
                counted[Counter::ShootdownTargets]
            );
        }
    }
}

/// What CPU 0 counted while it did `work`, with all other CPUs awake in `mm`. Before, each has written one page of each of
/// the first `regions` stretches of four pages.
fn beside_all(
    t: &TestContext,
    mm: &MmRef,
    regions: u64,
    work: impl Fn() -> bool + Sync,
) -> Result<StatsSnapshot, Stop> {
    let done = AtomicBool::new(false);
    let mut counted = crew::run(online(), &|member| {
        let _user = enter(mm);
        for region in 0..regions {
            t.check(write(4 * region, 1).is_ok(), format_args!("region {region} cannot be written"));
        }
        member.meet_awake();
        if member.index > 0 {
            // Not asleep: a CPU that sleeps leaves the address space.
            while !done.load(Ordering::Acquire) {
                spin_loop();
            }
            return None;
        }
        let before = X86.local().stats.snapshot();
        t.check(work(), format_args!("the change fails"));
        done.store(true, Ordering::Release);
        Some(X86.local().stats.snapshot().since(&before))
    })?;
    counted.swap_remove(0).ok_or(Stop::failed(format_args!("nothing was counted")))
}

/// What an unmapping under lazy CPUs came to.
struct Unmapped {
    /// Counted by the CPU that unmapped.
    sent: StatsSnapshot,
    /// CPUs that left the address space because of it.
    left: u64,
    /// Lazy CPUs still in the mask after it.
    in_mask: u64,
    /// CPUs that noticed when they came back that they had been passed by.
    behind: u64,
}

/// What the threads of a scenario share with the kernel threads.
#[derive(Default)]
pub(super) struct Shared {
    over: AtomicBool,
    left: AtomicCount,
    in_mask: AtomicCount,
}

impl Shared {
    fn key(&self) -> usize {
        (&raw const self.over).addr()
    }

    /// Has lazy CPUs come back.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        wake(self.key());
    }
}

/// All CPUs but the first.
pub(super) fn others() -> CpuSet {
    online().without(CpuId(0))
}

/// All CPUs but one write two pages, then run a kernel thread on what they have loaded while the one unmaps `gone`, which
/// holds the first of the two; then they come back.
fn unmap_under_lazy_cpus(t: &TestContext, gone: Range<u64>) -> Result<Unmapped, Stop> {
    let mm = Mm::create(memory())?;
    map_anonymous(&mm, pages(MAPPED.start, MAPPED.end))?;
    let shared = Arc::new(Shared::default());
    let others = others();
    let before = statistics();
    let mut outcomes = crew::run(online(), &|member| -> Result<Option<StatsSnapshot>, Stop> {
        let _user = enter(&mm);
        member.meet();
        // Not before: a CPU that slept while it waited for the others has dropped what it had cached.
        let touched = write(0, 1).is_ok() && write(TABLE, 2).is_ok();
        t.check(touched, format_args!("cpu {} cannot write", member.cpu.0));
        if member.index > 0 {
            be_lazy(member, &shared)?;
            t.check(read(0) == Err(AccessFault::Fault), format_args!("cpu {} finds what is gone", member.cpu.0));
            t.check(read(TABLE) == Ok(2), format_args!("cpu {} has lost a page", member.cpu.0));
            return Ok(None);
        }
        let outcome = unmap(&mm, others, &gone, &shared);
        // Whatever happened, the others must not wait for ever.
        shared.end();
        outcome.map(Some)
    })?;
    let sent = outcomes.swap_remove(0)?.ok_or(Stop::failed(format_args!("nothing was unmapped")))?;
    outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))?;
    let count = |count: &AtomicCount| count.load(Ordering::Relaxed);
    let behind = statistics().since(&before)[Counter::LazyBehind];
    Ok(Unmapped { sent, left: count(&shared.left), in_mask: count(&shared.in_mask), behind })
}

/// Gives this CPU to a kernel thread until all is over. It is not idle before it comes back.
pub(super) fn be_lazy(member: &Member<'_>, shared: &Arc<Shared>) -> TestResult {
    let seen = Arc::clone(shared);
    let kernel_thread = spawn_on(member.cpu, "lazy", move || {
        while !seen.over.load(Ordering::Acquire) || !need_resched() {
            spin_loop();
        }
    })?;
    block_while(shared.key(), &mut || !shared.over.load(Ordering::Acquire));
    kernel_thread.join();
    Ok(())
}

/// Waits until all of `cpus` are lazy.
pub(super) fn await_lazy(cpus: CpuSet) -> TestResult {
    let is_lazy = |cpu: CpuId| X86.cpus().of(cpu).tlb.is_lazy();
    let all = await_within(PATIENCE_NANOS, || cpus.iter().all(is_lazy));
    ktest_assert!(all, "not all of {cpus:?} are lazy");
    Ok(())
}

/// Unmaps `gone` once all of `others` are lazy.
fn unmap(mm: &MmRef, others: CpuSet, gone: &Range<u64>, shared: &Shared) -> Result<StatsSnapshot, Stop> {
    let left = || others.iter().map(|cpu| X86.cpus().of(cpu).stats.snapshot()[Counter::LazyLeft]).sum::<u64>();
    await_lazy(others)?;
    let (left_before, before) = (left(), X86.local().stats.snapshot());
    mm.munmap(pages(gone.start, gone.end))?;
    let sent = X86.local().stats.snapshot().since(&before);
    shared.left.store(left() - left_before, Ordering::Relaxed);
    let in_mask = others.iter().filter(|cpu| mm.tlb().cpus().contains(*cpu)).count();
    shared.in_mask.store(in_mask as u64, Ordering::Relaxed);
    Ok(sent)
}
