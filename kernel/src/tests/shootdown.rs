//! Flushing other CPUs' translations: whoever must be reached is, nobody else is, and nobody waits for ever.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::machine::X86;
use arch_x86::user_access::AccessFault;
use mm::cpu::{CpuId, CpuSet};
use mm::machine::Machine;
use mm::pgtable::Level;
use mm::stats::{Counter, LockCounter};
use mm::sync::LockClass;
use mm::tlb::{self, TlbFlush};

use super::race::come_and_go::{Scenario, play};
use super::race::held::{TableLock, await_waiting};
use super::support::{
    DEAF_NANOS, PATIENCE_NANOS, TABLE, add, await_within, first_cpus, map_anonymous, needs_a_second_cpu, pages, read,
    write,
};
use crate::harness::{TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, enter, memory, statistics};
use crate::smp::online;
use crate::thread::{block_while, wake};
use crate::workload::crew;

ktest! {
    /// Every CPU has cached how to reach a page when it is unmapped: from the return of `munmap` on no access succeeds,
    /// and none reaches the frame in its next use.
    fn a_stale_translation_is_never_usable_after_munmap(t: &TestContext) {
        needs_a_second_cpu(t)?;
        play(t, &Scenario { region: 0..1, kept: Some(1), rounds: 12, until_reached: true })?;
    }

    /// The same when the tables go with the page.
    fn a_stale_table_is_never_walked_after_munmap(t: &TestContext) {
        needs_a_second_cpu(t)?;
        play(t, &Scenario { region: 0..1, kept: None, rounds: 12, until_reached: true })?;
    }

    /// I29: whoever unmaps a page waits for every CPU that may have it cached. One has interrupts off and cannot answer; `munmap`
    /// does not return before it turns them on.
    fn an_unmapping_waits_for_a_cpu_that_does_not_answer_yet(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        // The second page keeps the table.
        map_anonymous(&mm, pages(0, 2))?;
        let (is_deaf, is_gone) = (AtomicBool::new(false), AtomicBool::new(false));
        let outcomes = crew::run(first_cpus(2), &|member| -> TestResult {
            let _user = enter(&mm);
            if member.index == 0 {
                while !is_deaf.load(Ordering::Acquire) {
                    spin_loop();
                }
                let outcome = mm.munmap(pages(0, 1));
                is_gone.store(true, Ordering::Release);
                return Ok(outcome?);
            }
            let written = write(0, 7);
            let asked = || X86.cpus().of(CpuId(0)).stats.snapshot()[Counter::ShootdownsSent];
            let is_gone_by = |nanos| await_within(nanos, || is_gone.load(Ordering::Acquire));
            let before = asked();
            let irqs = X86.irq_save();
            is_deaf.store(true, Ordering::Release);
            let is_asked = await_within(PATIENCE_NANOS, || asked() > before);
            let early = is_gone_by(DEAF_NANOS);
            X86.irq_restore(irqs);
            written?;
            ktest_assert!(is_asked, "nobody is asked to flush");
            ktest_assert!(!early, "munmap returns though a CPU cannot have answered");
            ktest_assert!(is_gone_by(PATIENCE_NANOS), "munmap does not return");
            ktest_assert_eq!(read(0), Err(AccessFault::Fault));
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
    }

    /// Of three CPUs and the idle ones, `munmap` interrupts the one that has the address space loaded too, and no other.
    fn only_cpus_in_the_address_space_are_interrupted(t: &TestContext) {
        let (mm, other) = (Mm::create(memory())?, Mm::create(memory())?);
        for mm in [&mm, &other] {
            // One page more than goes, so that no table goes: with PAE every CPU has to know of that.
            map_anonymous(mm, pages(0, 5))?;
        }
        let done = AtomicBool::new(false);
        let before = served();
        let targets = crew::run(first_cpus(3), &|member| {
            let _user = enter(if member.index < 2 { &mm } else { &other });
            t.check(write(0, 1).is_ok(), format_args!("cpu {} cannot write", member.cpu.0));
            member.meet_awake();
            if member.index > 0 {
                // Not asleep: a CPU that sleeps leaves the address space.
                while !done.load(Ordering::Acquire) {
                    spin_loop();
                }
                return 0;
            }
            let before = X86.local().stats.snapshot();
            t.check(mm.munmap(pages(0, 4)).is_ok(), format_args!("munmap fails"));
            done.store(true, Ordering::Release);
            X86.local().stats.snapshot().since(&before)[Counter::ShootdownTargets]
        })?;
        ktest_assert_eq!(targets.iter().sum::<u64>(), if t.cpus() > 1 { 1 } else { 0 });
        for ((cpu, before), (_, after)) in before.iter().zip(&served()) {
            let expected = u64::from(cpu.index() == 1);
            ktest_assert!(after - before == expected, "cpu {} served {} flushes", cpu.0, after - before);
        }
    }

    /// A CPU whose thread sleeps in an address space has left it: nobody interrupts the CPU, and when the thread goes on it
    /// finds what was changed meanwhile.
    fn a_sleeping_thread_keeps_no_cpu_in_its_address_space(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 2))?;
        let asleep = AtomicBool::new(true);
        let key = (&raw const asleep).addr();
        let outcomes = crew::run(first_cpus(2), &|member| {
            let _user = enter(&mm);
            t.check(write(0, 1).is_ok(), format_args!("cpu {} cannot write", member.cpu.0));
            // Awake: a thread that slept here could still be on its way back when its CPU is looked for in the mask.
            member.meet_awake();
            if member.index == 1 {
                block_while(key, &mut || asleep.load(Ordering::Acquire));
                ktest_assert_eq!(read(0), Err(AccessFault::Fault));
                return Ok(());
            }
            let outcome = unmap_alone(&mm, member.cpu);
            asleep.store(false, Ordering::Release);
            wake(key);
            outcome
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        ktest_assert!(mm.tlb().cpus().is_empty());
    }

    /// The deaf waiter (R27): CPUs wait for the lock of a table while its holder flushes them. Each page of one table shows
    /// the zero page on all CPUs and is replaced under the table's lock, by all CPUs at once.
    fn a_waiter_for_a_page_table_lock_answers_flushes(t: &TestContext) {
        const PAGES: u64 = 24;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES))?;
        let before = statistics();
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            for number in 0..PAGES {
                t.check(read(number) == Ok(0), format_args!("page {number} is not zero"));
            }
            member.meet_awake();
            // Each CPU begins elsewhere, so that all of them replace pages, and wait for each other's lock.
            for step in 0..PAGES {
                let number = (step + member.index as u64 * PAGES / member.count as u64) % PAGES;
                t.check(add(number, 1).is_ok(), format_args!("page {number} cannot be written"));
            }
        })?;
        let counted = statistics().since(&before);
        t.note(format_args!(
            "{} flushes sent, {} waits for the table's lock",
            counted[Counter::ShootdownsSent],
            counted.locks(&[LockClass::Pte], LockCounter::Waited)
        ));
        let _user = enter(&mm);
        for number in 0..PAGES {
            ktest_assert_eq!(read(number)?, t.cpus() as u64);
        }
    }

    /// R27, made to happen: a CPU holds the lock of a table until another waits for it, and then flushes that one.
    fn the_holder_of_a_lock_flushes_the_one_who_waits_for_it(t: &TestContext) {
        needs_a_second_cpu(t)?;
        const ROUNDS: u64 = 16;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1 + ROUNDS))?;
        let held = AtomicBool::new(false);
        let outcomes = crew::run(first_cpus(2), &|member| -> TestResult {
            let _user = enter(&mm);
            write(0, 1)?;
            for round in 1..=ROUNDS {
                member.meet_awake();
                if member.index == 1 {
                    while !held.load(Ordering::Acquire) {
                        spin_loop();
                    }
                    write(round, round)?;
                } else {
                    let answered = TableLock::Pte.hold(&mm, || {
                        held.store(true, Ordering::Release);
                        let waits = await_waiting(CpuSet::only(CpuId(1)));
                        let before = flushes_served(CpuId(1));
                        let range = pages(0, 1);
                        tlb::flush(X86, mm.tlb(), TlbFlush { range, stride: Level::Pte, freed_tables: false, top_changed: false });
                        (waits, flushes_served(CpuId(1)) - before)
                    });
                    // Also when there was no lock to hold, or the other would wait for ever.
                    held.store(true, Ordering::Release);
                    ktest_assert_eq!(answered?, (true, 1));
                }
                member.meet_awake();
                held.store(false, Ordering::Release);
            }
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
    }

    /// CPUs that flush each other at the same moment, each under a lock of its own, all get through (R28).
    fn cpus_that_flush_each_other_all_get_through(t: &TestContext) {
        const PAGES: u64 = 12;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, TABLE * t.cpus() as u64))?;
        let before = statistics();
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            let first = TABLE * member.index as u64;
            for number in first..first + PAGES {
                t.check(read(number) == Ok(0), format_args!("page {number} is not zero"));
            }
            member.meet_awake();
            for number in first..first + PAGES {
                t.check(add(number, 1) == Ok(0), format_args!("page {number} cannot be written"));
            }
        })?;
        let counted = statistics().since(&before);
        ktest_assert_eq!(counted[Counter::ZeroPageUpgrade], PAGES * t.cpus() as u64);
        ktest_assert!(t.cpus() == 1 || counted[Counter::ShootdownsSent] > 0);
    }
}

/// Flushes each CPU has served so far.
fn served() -> alloc::vec::Vec<(CpuId, u64)> {
    online().iter().map(|cpu| (cpu, flushes_served(cpu))).collect()
}

fn flushes_served(cpu: CpuId) -> u64 {
    X86.cpus().of(cpu).stats.snapshot()[Counter::FlushesServed]
}

/// Unmaps a page once `cpu`, the running one, is alone in `mm`; nobody is interrupted then. Another page keeps the table: with
/// PAE every CPU has to know when that goes.
fn unmap_alone(mm: &MmRef, cpu: CpuId) -> TestResult {
    let alone = await_within(PATIENCE_NANOS, || mm.tlb().cpus() == CpuSet::only(cpu));
    ktest_assert!(alone, "{:?} have the address space loaded", mm.tlb().cpus());
    let before = X86.local().stats.snapshot();
    mm.munmap(pages(0, 1))?;
    ktest_assert_eq!(X86.local().stats.snapshot().since(&before)[Counter::ShootdownTargets], 0);
    Ok(())
}
