//! Huge pages on all CPUs: faults that race for one, splits and collapses under the feet of those who use it.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::machine::X86;
use arch_x86::user_access::AccessFault;
use mm::address_space::MapError;
use mm::cpu::CpuSet;
use mm::machine::Machine;
use mm::pgtable::{
    HugeSize, Level, Protection, deposited_tables, leaf_at, pmd_offset, pmd_same, pte_offset_map, pte_same,
};
use mm::sync::rcu;

use super::held::{Collision, TableLock};
use crate::harness::{AtomicCount, Random, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mapping, Mm, enter, memory};
use crate::smp::online;
use crate::tests::support::{
    LEFT_TABLES, PMD_TABLE, TABLE, add, dawdle, first_cpus, map_anonymous, needs_a_second_cpu, page, pages, read, write,
};
use crate::tests::turns::Turns;
use crate::workload::crew;

/// A page of another span below the same PMD table; it keeps that table.
const NEIGHBOUR: u64 = 300 * TABLE;

/// The span of huge page `number`.
fn span(number: u64) -> mm::address::VirtRange {
    pages(number * TABLE, (number + 1) * TABLE)
}

fn map_huge(mm: &Mm, number: u64) -> Result<(), MapError> {
    mm.mmap(span(number), Protection::READ_WRITE, Mapping::AnonymousHuge)
}

/// Maps and touches a page that keeps the PMD table of page 0.
fn keep_pmd_table(mm: &Mm) -> TestResult {
    map_anonymous(mm, pages(NEIGHBOUR, NEIGHBOUR + 1))?;
    Ok(write(NEIGHBOUR, 1)?)
}

fn level_of(mm: &Mm, number: u64) -> Option<Level> {
    leaf_at(mm, span(number).start).map(|(level, _)| level)
}

fn deposits(mm: &Mm) -> usize {
    let rcu = rcu::read_lock(X86);
    pmd_offset(mm, &rcu, page(0)).map_or(0, |pmds| deposited_tables(mm, pmds.slot(page(0))))
}

ktest! {
    /// All CPUs fault in four spans below one PMD table, and one of them unmaps and maps one of the spans: at the end each
    /// span is one huge page with one deposit, and nothing is lost (R13, I14).
    fn huge_faults_race(t: &TestContext) {
        const SPANS: u64 = 4;
        const ROUNDS: u64 = 6;
        let mm = Mm::create(memory())?;
        for _ in 0..ROUNDS {
            (0..SPANS).try_for_each(|number| map_huge(&mm, number))?;
            let outcomes = crew::run(online(), &|member| -> TestResult {
                let _user = enter(&mm);
                member.meet();
                if member.index == 0 {
                    mm.munmap(span(SPANS - 1))?;
                    map_huge(&mm, SPANS - 1)?;
                }
                for number in 0..SPANS - 1 {
                    // A store, not an addition: where virtual CPUs take turns, QEMU's addition reads first and finds the zero page.
                    write(number * TABLE + member.index as u64, 1)?;
                    add(number * TABLE + 100, 1)?;
                }
                // This one comes and goes.
                match write((SPANS - 1) * TABLE, 1) {
                    Ok(()) | Err(AccessFault::Fault) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            })?;
            outcomes.into_iter().collect::<TestResult>()?;
            let _user = enter(&mm);
            write((SPANS - 1) * TABLE, 1)?;
            for number in 0..SPANS - 1 {
                ktest_assert_eq!(read(number * TABLE + 100)?, t.cpus() as u64);
            }
            for number in 0..SPANS {
                ktest_assert_eq!(level_of(&mm, number), Some(Level::Pmd));
            }
            ktest_assert_eq!(deposits(&mm), SPANS as usize);
            mm.munmap(pages(0, SPANS * TABLE))?;
            ktest_assert_eq!(mm.linked_table_bytes(), LEFT_TABLES * 4096);
        }
    }

    /// Two CPUs want one huge page and wait for the PMD lock, each with a block and a deposit in hand: the second gives both
    /// back (R13).
    fn two_huge_faults_that_wait_for_the_pmd_lock_leave_one_page(t: &TestContext) {
        let mm = Mm::create(memory())?;
        Collision {
            lock: TableLock::Pmd,
            prepare: &|mm| {
                if level_of(mm, NEIGHBOUR / TABLE).is_none() {
                    keep_pmd_table(mm)?;
                }
                Ok(map_huge(mm, 0)?)
            },
            first: &|_| Ok(write(0, 1)?),
            second: &|_| Ok(write(1, 1)?),
            judge: &|mm| {
                ktest_assert_eq!((level_of(mm, 0), deposits(mm)), (Some(Level::Pmd), 1));
                ktest_assert_eq!((read(0)?, read(1)?), (1, 1));
                Ok(mm.munmap(span(0))?)
            },
        }
        .repeat(t, &mm, 8)?;
    }

    /// A huge fault that waits for the PMD lock finds its region gone, or is unmapped: in no case it leaves a page (R13, and
    /// the rule for none slots).
    fn a_huge_fault_that_waits_gives_up_when_its_region_is_gone(t: &TestContext) {
        let mm = Mm::create(memory())?;
        Collision {
            lock: TableLock::Pmd,
            prepare: &|mm| {
                if level_of(mm, NEIGHBOUR / TABLE).is_none() {
                    keep_pmd_table(mm)?;
                }
                Ok(map_huge(mm, 0)?)
            },
            first: &|_| {
                let _ = write(0, 1);
                Ok(())
            },
            second: &|mm| Ok(mm.munmap(span(0))?),
            judge: &|mm| {
                ktest_assert_eq!((level_of(mm, 0), deposits(mm)), (None, 0));
                ktest_assert_eq!(read(0), Err(AccessFault::Fault));
                Ok(())
            },
        }
        .repeat(t, &mm, 8)?;
    }

    /// One CPU splits a huge page and has it collapsed again, the others look without a lock and increment: they never see
    /// an entry in split as none, and no increment is lost (R12, I28).
    fn splits_race_with_faults_and_lockless_walkers(t: &TestContext) {
        needs_a_second_cpu(t)?;
        const ROUNDS: u64 = 8;
        let mm = Mm::create(memory())?;
        map_huge(&mm, 0)?;
        {
            let _user = enter(&mm);
            write(0, 0)?;
        }
        let (added, turns) = (AtomicCount::new(0), Turns::new());
        // While even, nobody collapses: an entry may be in split, but never none.
        let phase = AtomicCount::new(0);
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            let mut random = Random::new(seed ^ member.index as u64);
            let _user = enter(&mm);
            if member.index == 0 {
                return turns.change(member, ROUNDS, |round| {
                    dawdle(&mut random, 20_000);
                    ktest_assert!(mm.split_huge_page(page(0)), "round {round}: nothing to split");
                    ktest_assert_eq!(level_of(&mm, 0), Some(Level::Pte));
                    turns.await_all(member);
                    phase.fetch_add(1, Ordering::SeqCst);
                    mm.collapse_huge_page(page(0)).map_err(|_| "a range in use cannot be collapsed")?;
                    phase.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                });
            }
            let look_and_add = |_| {
                let before = phase.load(Ordering::SeqCst);
                let leaf = leaf_at(&mm, page(0));
                let is_quiet = before.is_multiple_of(2) && before == phase.load(Ordering::SeqCst);
                t.check(leaf.is_some() || !is_quiet, format_args!("an entry in split was none"));
                add(random.below(TABLE), 1)?;
                added.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            turns.take(member, look_and_add).map(|_| ())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        let _user = enter(&mm);
        let sum = (0..TABLE).try_fold(0, |sum, number| Ok::<u64, AccessFault>(sum + read(number)?))?;
        ktest_assert_eq!(sum, added.load(Ordering::Relaxed));
        ktest_assert_eq!(deposits(&mm), 1);
    }

    /// All of a huge page loses and gets back the right to write while others look and try: its entry is never none and
    /// stays huge, and no write lands without the right (I28, R12).
    fn a_protection_change_is_never_seen_as_none(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        map_huge(&mm, 0)?;
        {
            let _user = enter(&mm);
            write(0, 0)?;
        }
        let turns = Turns::new();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            let _user = enter(&mm);
            if member.index == 0 {
                return turns.change(member, 12, |round| {
                    mm.mprotect(span(0), Protection::READ)?;
                    let seen = read(7)?;
                    turns.await_all(member);
                    ktest_assert!(read(7)? == seen, "round {round}: a write landed while it was forbidden");
                    Ok(mm.mprotect(span(0), Protection::READ_WRITE)?)
                });
            }
            let look_and_add = |_| {
                let leaf = leaf_at(&mm, page(0));
                let is_huge = leaf.is_some_and(|(level, entry)| level == Level::Pmd && entry.is_huge());
                t.check(is_huge, format_args!("a huge entry under protection change was {leaf:?}"));
                let _ = add(7, 1);
                Ok(())
            };
            turns.take(member, look_and_add).map(|_| ())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        ktest_assert_eq!(level_of(&mm, 0), Some(Level::Pmd));
    }

    /// Small pages are collapsed and cut up again by `mprotect` of a part while others increment them: none is lost.
    fn collapse_races_with_faults(t: &TestContext) {
        needs_a_second_cpu(t)?;
        const PAGES: u64 = 16;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, span(0))?;
        {
            let _user = enter(&mm);
            write(0, 0)?;
        }
        let turns = Turns::new();
        let outcomes = crew::run(online(), &|member| -> Result<u64, Stop> {
            let _user = enter(&mm);
            if member.index > 0 {
                return turns.take(member, |turn| Ok(add(turn % PAGES, 1).map(|_| ())?));
            }
            turns.change(member, 6, |_| {
                mm.collapse_huge_page(page(3)).map_err(|_| "a range in use cannot be collapsed")?;
                ktest_assert!(mm.split_huge_page(page(5)), "it was split by somebody else");
                Ok(())
            })?;
            Ok(0)
        })?;
        let added = outcomes.into_iter().sum::<Result<u64, Stop>>()?;
        let _user = enter(&mm);
        let sum = (0..TABLE).try_fold(0, |sum, number| Ok::<u64, AccessFault>(sum + read(number)?))?;
        ktest_assert_eq!(sum, added);
    }

    /// I16: who holds the lock of a PTE table keeps it in its slot, also from a collapse: that waits before it judges the
    /// entries, or a fault could add one it has not judged.
    fn a_collapse_waits_for_the_lock_of_its_table(t: &TestContext) {
        let mm = Mm::create(memory())?;
        Collision {
            lock: TableLock::Pte,
            prepare: &|mm| {
                map_anonymous(mm, span(0))?;
                Ok(write(0, 1)?)
            },
            first: &|mm| Ok(mm.collapse_huge_page(page(3)).map_err(|_| "a range in use cannot be collapsed")?),
            second: &|_| Ok(write(9, 7)?),
            judge: &|mm| {
                ktest_assert_eq!((level_of(mm, 0), deposits(mm)), (Some(Level::Pmd), 1));
                ktest_assert_eq!((read(0)?, read(9)?), (1, 7));
                Ok(mm.munmap(span(0))?)
            },
        }
        .repeat(t, &mm, 8)?;
    }

    /// Spec 9.2, I11: a collapse waits, between unhooking a table and emptying it, for those that walk it without a lock.
    ///
    /// ```text
    ///   CPU 1: maps the table, reads an entry
    ///                                             CPU 0: unhooks the table
    ///   CPU 1: reads the entry again: as it was, as long as its read section lasts
    ///                                             CPU 0: empties the table, deposits it
    /// ```
    fn a_collapse_leaves_a_table_as_it_is_to_its_walkers(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, span(0))?;
        let seed = t.random().next_u64();
        for round in 0..4 {
            {
                let _user = enter(&mm);
                write(0, round)?;
            }
            let (is_walked, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
            let outcomes = crew::run(first_cpus(2), &|member| -> TestResult {
                if member.index > 0 {
                    let walked = walk_while_collapsed(&mm, &is_walked, &is_over, &mut Random::new(seed ^ round));
                    // Whatever happened, the other must not wait for ever.
                    is_walked.store(true, Ordering::Release);
                    return walked;
                }
                while !is_walked.load(Ordering::Acquire) {
                    spin_loop();
                }
                let collapsed = mm.collapse_huge_page(page(0)).map_err(|_| "a range in use cannot be collapsed");
                is_over.store(true, Ordering::Release);
                Ok(collapsed?)
            })?;
            outcomes.into_iter().collect::<TestResult>()?;
            ktest_assert!(mm.split_huge_page(page(0)), "nothing to split");
        }
    }

    /// All CPUs fault on explicit pages of 2 MiB, under the PMD lock (spec 10): one page each, and every increment in it.
    fn explicit_huge_faults_race(t: &TestContext) {
        let mm = Mm::create(memory())?;
        mm.mmap(pages(0, 3 * TABLE), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pmd))?;
        count_on_cpus(online(), &mm, 3 * TABLE)?;
        ktest_assert_eq!((level_of(&mm, 0), deposits(&mm)), (Some(Level::Pmd), 0));
        ktest_assert_eq!(mm.munmap(pages(1, TABLE)), Err(MapError::CutsHugePage));
        mm.munmap(span(1))?;
        let _user = enter(&mm);
        ktest_assert_eq!((read(TABLE), read(0)?), (Err(AccessFault::Fault), t.cpus() as u64));
    }

    /// The same with a page of 1 GiB, under `page_table_lock`, on two CPUs, since each that finds the entry none clears a GiB
    /// first; only where there is so much memory in one piece.
    fn a_gigabyte_page_is_faulted_in_once(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        let mapped = mm.mmap(pages(0, PMD_TABLE), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pud));
        if !X86.has_huge_pages(HugeSize::Pud) {
            ktest_assert_eq!(mapped, Err(MapError::NoSuchPageSize));
            return Err(Stop::skipped(format_args!("this CPU has no pages of 1 GiB")));
        }
        mapped?;
        let Ok(block) = memory().frames().alloc_order(X86, HugeSize::Pud.order::<arch_x86::layout::Mode>()) else {
            return Err(Stop::skipped(format_args!("no GiB of memory in one piece: needs --mem 4G")));
        };
        memory().frames().free_order(X86, block, HugeSize::Pud.order::<arch_x86::layout::Mode>());
        count_on_cpus(first_cpus(2), &mm, PMD_TABLE)?;
        ktest_assert_eq!(level_of(&mm, 0), Some(Level::Pud));
        ktest_assert_eq!(mm.munmap(pages(0, TABLE)), Err(MapError::CutsHugePage));
        mm.munmap(pages(0, PMD_TABLE))?;
        ktest_assert_eq!(mm.linked_table_bytes(), 0);
    }
}

/// Maps the table of page 0 without a lock, says so, and sees that its entry stays when the table has been unhooked.
fn walk_while_collapsed(mm: &Mm, is_walked: &AtomicBool, is_over: &AtomicBool, random: &mut Random) -> TestResult {
    const LOOKS: usize = 100;
    let rcu = rcu::read_lock(X86);
    let pmds = pmd_offset(mm, &rcu, page(0)).ok_or("no PMD table")?;
    let pmd = pmds.slot(page(0));
    let pte = pte_offset_map(mm, pmd, page(0)).ok_or("no PTE table")?;
    let seen = pte.load();
    is_walked.store(true, Ordering::Release);
    while pmd_same(pmd.load(), pte.pmd()) && !is_over.load(Ordering::Acquire) {
        spin_loop();
    }
    // Time for a collapse that would not wait.
    for _ in 0..LOOKS {
        dawdle(random, 20_000);
        ktest_assert!(pte_same(pte.load(), seen), "{seen:?} has become {:?} under its walker", pte.load());
    }
    Ok(())
}

/// Has each of `cpus` increment some pages below `end`, and sees that no increment is lost.
fn count_on_cpus(cpus: CpuSet, mm: &crate::memory::MmRef, end: u64) -> TestResult {
    let touched = || (0..end).step_by(end as usize / 6);
    let outcomes = crew::run(cpus, &|member| -> TestResult {
        let _user = enter(mm);
        member.meet();
        touched().try_for_each(|number| add(number, 1).map(|_| ()))?;
        Ok(())
    })?;
    outcomes.into_iter().collect::<TestResult>()?;
    let _user = enter(mm);
    for number in touched() {
        ktest_assert_eq!(read(number)?, cpus.iter().count() as u64);
    }
    Ok(())
}
