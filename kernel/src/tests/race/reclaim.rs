//! `madvise(DONTNEED)`: pages and empty tables that go while their region stays, under faults, lockless walkers, `munmap` and
//! more advice (spec 9.1; R3, R6, R7, R8, R20, R21, R35, R41, I29).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::machine::X86;
use arch_x86::percpu;
use arch_x86::time;
use mm::address::VirtRange;
use mm::config::{PAGE_SIZE, USE_SPLIT_PTE_PTLOCKS};
use mm::page::PageType;
use mm::pgtable::{pmd_offset, pte_at, pte_offset_map, pte_offset_map_lock};
use mm::sync::rcu;

use super::held::{Collision, TableLock, await_waiting};
use crate::harness::{AtomicCount, Random, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, enter, memory};
use crate::smp::online;
use crate::tests::support::{
    LEFT_TABLES, LINKED_UPPER, TABLE, add, dawdle, first_cpus, map_anonymous, needs_a_second_cpu, page, pages, read,
    write,
};
use crate::tests::turns::Turns;
use crate::thread::spawn_on;
use crate::workload::crew;

/// The pages of two PTE tables.
const SPAN: VirtRange = pages(0, 2 * TABLE);
const ROUNDS: u64 = 12;
const COLLISIONS: u32 = 10;
/// How long a table is watched that must not be freed: many ticks, and so many grace periods.
const LOOKS_NANOS: u64 = 200_000_000;

ktest! {
    /// One CPU drops all pages with their tables, the others write theirs and read them back: each finds what it wrote, or
    /// zero, and no store is lost in a table that went (R3, R8, R20).
    fn advice_races_with_faults(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, SPAN)?;
        play(t, &mm, &|mm| Ok(mm.madvise_dontneed(SPAN)?), &|value, index| write_and_read(t, value, index))?;
    }

    /// The same, and a neighbour in the first of the tables comes and goes (R35, R41).
    fn advice_and_munmap_race_with_faults(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        let (goes, stays) = (pages(TABLE - 8, TABLE), pages(TABLE, 3 * TABLE));
        map_anonymous(&mm, stays)?;
        let come_and_go = |mm: &MmRef| -> TestResult {
            map_anonymous(mm, goes)?;
            write(TABLE - 1, 1)?;
            mm.munmap(goes)?;
            ktest_assert!(pte_at(mm, page(TABLE - 1)).is_none_or(|entry| entry.is_none()), "a page of no region");
            Ok(())
        };
        play(t, &mm, &come_and_go, &|value, index| {
            if index == 1 {
                t.check(mm.madvise_dontneed(stays).is_ok(), format_args!("advice is refused"));
                return;
            }
            write_and_read(t, value, TABLE as usize + index);
            // Mapped or not, it does no harm.
            let _ = write(TABLE - 1 - value % 8, value);
        })?;
    }

    /// All CPUs drop the same pages at once. Whoever returns reads zero, also where another has cleared the entry and not
    /// flushed it yet (R21, I29).
    fn advice_races_with_advice(t: &TestContext) {
        const MEETINGS: u64 = 8;
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, SPAN)?;
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            for round in 0..MEETINGS {
                for number in 0..member.count as u64 {
                    t.check(add(number, 1).is_ok(), format_args!("page {number} cannot be written"));
                }
                member.meet();
                t.check(mm.madvise_dontneed(SPAN).is_ok(), format_args!("advice is refused"));
                for number in 0..member.count as u64 {
                    let found = read(number);
                    t.check(found == Ok(0), format_args!("round {round}: page {number} was dropped and reads {found:?}"));
                }
                member.meet();
            }
        })?;
        mm.madvise_dontneed(SPAN)?;
        ktest_assert!(pte_at(&mm, page(0)).is_none(), "an empty table is left");
    }

    /// CPU 0 drops two tables. It has cleared the first and flushed nothing, when CPU 1 holds it up at the second. CPU 2, who
    /// knows a page of the first still, drops that page, and reads zero (R21).
    fn advice_flushes_what_other_advice_has_not_flushed_yet(t: &TestContext) {
        if t.cpus() < 3 || !USE_SPLIT_PTE_PTLOCKS {
            return Err(Stop::skipped(format_args!("needs three CPUs and a lock for each PTE table")));
        }
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, SPAN)?;
        let turn = AtomicCount::new(0);
        let await_turn = |wanted| {
            while turn.load(Ordering::Acquire) < wanted {
                spin_loop();
            }
        };
        crew::run(first_cpus(3), &|member| {
            let _user = enter(&mm);
            t.check(write(0, 1).is_ok() && write(TABLE, 1).is_ok(), format_args!("the pages cannot be written"));
            member.meet_awake();
            match member.index {
                0 => {
                    await_turn(1);
                    t.check(mm.madvise_dontneed(SPAN).is_ok(), format_args!("advice is refused"));
                }
                1 => {
                    let rcu = rcu::read_lock(X86);
                    let pmds = pmd_offset(&mm, &rcu, page(TABLE));
                    let _held = pmds.as_ref().and_then(|pmds| pte_offset_map_lock(&mm, pmds.slot(page(TABLE)), page(TABLE)));
                    turn.store(1, Ordering::Release);
                    t.check(await_waiting(first_cpus(1)), format_args!("cpu 0 does not come to the second table"));
                    turn.store(2, Ordering::Release);
                    await_turn(3);
                }
                _ => {
                    await_turn(2);
                    t.check(mm.madvise_dontneed(pages(0, 1)).is_ok(), format_args!("advice is refused"));
                    let found = read(0);
                    t.check(found == Ok(0), format_args!("a page that was dropped reads {found:?}"));
                    turn.store(3, Ordering::Release);
                }
            }
        })?;
    }

    /// The others walk the tables without a lock while they come and go: a table stays one as long as its walker holds it,
    /// and shows a page of this region or none (R6, I11).
    fn advice_races_with_lockless_walkers(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, TABLE))?;
        // Keeps the PMD table.
        map_anonymous(&mm, pages(TABLE, TABLE + 1))?;
        let walk = |value: u64, index: usize| {
            let map = || {
                let rcu = rcu::read_lock(X86);
                let pmds = pmd_offset(&mm, &rcu, page(0))?;
                pte_offset_map(&mm, pmds.slot(page(0)), page(0))
            };
            // From here on the map's own read section is all that keeps the table.
            let Some(pte) = map() else { return };
            let descriptor = memory().memmap().page(pte.pmd().pfn());
            let mut random = Random::new(value ^ (index as u64) << 32);
            for _ in 0..8 {
                let entry = pte.load();
                let sane = entry.is_none() || (entry.is_present() && entry.is_writable());
                t.check(sane, format_args!("walk {value} of cpu {index} found {entry:?}"));
                t.check(descriptor.page_type() == PageType::Table, format_args!("a table was freed under its walker"));
                dawdle(&mut random, 400);
            }
        };
        let make_and_drop = |mm: &MmRef| -> TestResult {
            write(0, 1)?;
            Ok(mm.madvise_dontneed(pages(0, TABLE))?)
        };
        play(t, &mm, &make_and_drop, &walk)?;
    }

    /// I10, I11: advice takes a table away while somebody has it mapped without a lock, and frees it only when the map's read
    /// section is over. Until then it stays a table, unhooked and all none.
    ///
    /// ```text
    ///   CPU 1: maps the table
    ///                                             CPU 0: unhooks the table, flushes; time passes
    ///   CPU 1: reads it still
    ///                                             CPU 0: destroys and frees it
    /// ```
    fn a_table_that_goes_is_not_freed_under_its_walker(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, TABLE))?;
        // Keeps the PMD table.
        map_anonymous(&mm, pages(TABLE, TABLE + 1))?;
        {
            let _user = enter(&mm);
            write(0, 1)?;
            write(TABLE, 1)?;
        }
        let (is_mapped, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let outcomes = crew::run(first_cpus(2), &|member| -> TestResult {
            if member.index > 0 {
                let walked = hold_while_dropped(&mm, &is_mapped, &is_over);
                // Whatever happened, the other must not wait for ever.
                is_mapped.store(true, Ordering::Release);
                return walked;
            }
            while !is_mapped.load(Ordering::Acquire) {
                spin_loop();
            }
            let dropped = mm.madvise_dontneed(pages(0, TABLE));
            // Time for a grace period that would not wait for the walker.
            let give_up = time::now_nanos() + LOOKS_NANOS;
            while time::now_nanos() < give_up {
                memory().advance_deferred();
            }
            is_over.store(true, Ordering::Release);
            Ok(dropped?)
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
    }

    /// Spec 2.3: kernel mode is not preemptible, but whoever clears a long range lets other threads of the CPU run meanwhile.
    fn a_long_zap_lets_other_threads_run(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, SPAN)?;
        let _user = enter(&mm);
        write(TABLE, 1)?;
        let ran = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&ran);
        let other = spawn_on(percpu::cpu(), "ready", move || mark.store(true, Ordering::Relaxed))?;
        let before = ran.load(Ordering::Relaxed);
        mm.madvise_dontneed(SPAN)?;
        let after = ran.load(Ordering::Relaxed);
        other.join();
        ktest_assert!(!before && after, "the other thread ran before: {before}, meanwhile: {after}");
    }

    /// A fault and `DONTNEED` wait for the lock of one PTE table. If the table goes first, the fault has locked one that is
    /// in no slot any more, and must look again (R3).
    fn a_fault_that_waits_for_a_table_that_goes_finds_the_next(t: &TestContext) {
        let mm = Mm::create(memory())?;
        Collision {
            lock: TableLock::Pte,
            prepare: &|mm| {
                map_anonymous(mm, pages(0, TABLE))?;
                Ok(write(0, 1)?)
            },
            first: &|_| Ok(write(8, 1)?),
            second: &|mm| Ok(mm.madvise_dontneed(pages(0, TABLE))?),
            judge: &|mm| {
                ktest_assert_eq!(read(0)?, 0);
                // Stored before the pages were dropped, or after.
                ktest_assert!(read(8)? <= 1);
                mm.munmap(pages(0, TABLE))?;
                ktest_assert_eq!(mm.linked_table_bytes(), LEFT_TABLES * PAGE_SIZE as u64);
                Ok(())
            },
        }
        .repeat(t, &mm, COLLISIONS)?;
    }

    /// `DONTNEED` has emptied a table and finds its PMD lock taken, so it lets go of the PTE lock and waits (R7). Before it
    /// gets both, a fault fills the table: it stays (R8).
    fn a_table_that_is_filled_again_stays(t: &TestContext) {
        let mm = Mm::create(memory())?;
        Collision {
            lock: TableLock::Pmd,
            prepare: &|mm| {
                map_anonymous(mm, pages(0, 2 * TABLE))?;
                Ok(write(0, 1)?)
            },
            first: &|mm| Ok(mm.madvise_dontneed(pages(0, TABLE))?),
            second: &|_| {
                write(9, 7)?;
                // Needs a table, so the PMD lock.
                Ok(write(TABLE, 1)?)
            },
            judge: &|mm| {
                ktest_assert_eq!(read(0)?, 0);
                let filled = read(9)?;
                // With one lock for all, both waited for that one.
                ktest_assert!(filled == 7 || (!USE_SPLIT_PTE_PTLOCKS && filled == 0), "page 9 reads {filled}");
                ktest_assert_eq!(read(TABLE)?, 1);
                ktest_assert_eq!(mm.linked_table_bytes(), (LINKED_UPPER + 2) * PAGE_SIZE as u64);
                mm.munmap(pages(0, 2 * TABLE))?;
                ktest_assert_eq!(mm.linked_table_bytes(), LEFT_TABLES * PAGE_SIZE as u64);
                Ok(())
            },
        }
        .repeat(t, &mm, COLLISIONS)?;
    }
}

/// Maps the table of page 0, says so, and looks at it until all is over. The map's own read section is all that keeps it.
fn hold_while_dropped(mm: &Mm, is_mapped: &AtomicBool, is_over: &AtomicBool) -> TestResult {
    let pte = {
        let rcu = rcu::read_lock(X86);
        let pmds = pmd_offset(mm, &rcu, page(0)).ok_or("no PMD table")?;
        pte_offset_map(mm, pmds.slot(page(0)), page(0)).ok_or("no PTE table")?
    };
    let descriptor = memory().memmap().page(pte.pmd().pfn());
    is_mapped.store(true, Ordering::Release);
    while !is_over.load(Ordering::Acquire) {
        ktest_assert!(descriptor.page_type() == PageType::Table, "a table was freed under its walker");
    }
    ktest_assert!(descriptor.is_detached() && pte.load().is_none(), "the table has another use");
    Ok(())
}

/// CPU 0 does `change` time and again, the others `use_it` between any two and meanwhile, with a number that rises.
fn play(
    t: &TestContext,
    mm: &MmRef,
    change: &(dyn Fn(&MmRef) -> TestResult + Sync),
    use_it: &(dyn Fn(u64, usize) + Sync),
) -> TestResult {
    let turns = Turns::new();
    let seed = t.random().next_u64();
    let outcomes = crew::run(online(), &|member| {
        let mut random = Random::new(seed ^ member.index as u64);
        let _user = enter(mm);
        if member.index > 0 {
            return turns.take(member, |turn| {
                use_it(turn + 1, member.index);
                Ok(())
            });
        }
        turns.change(member, ROUNDS, |_| {
            dawdle(&mut random, 4_000);
            change(mm)
        })?;
        Ok(ROUNDS)
    })?;
    let used = outcomes.into_iter().skip(1).collect::<Result<Vec<u64>, Stop>>()?;
    let least = used.iter().copied().min().unwrap_or(0);
    t.note(format_args!("{} uses during {ROUNDS} changes, no CPU fewer than {least}", used.iter().sum::<u64>()));
    ktest_assert!(least > 2 * ROUNDS, "a CPU has missed changes");
    Ok(())
}

/// Writes a page of its own in one of two tables and reads it back.
fn write_and_read(t: &TestContext, value: u64, own: usize) {
    let number = own as u64 + value % 2 * TABLE;
    t.check(write(number, value).is_ok(), format_args!("page {number} cannot be written"));
    let found = read(number);
    t.check(found == Ok(value) || found == Ok(0), format_args!("page {number} reads {found:?} after {value}"));
}
