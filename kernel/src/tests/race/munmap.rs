//! `munmap` while others fault: nothing shows where nothing is mapped, and no write goes astray (R3, R20, R41, I29).

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch_x86::machine::X86;
use arch_x86::user_access::AccessFault;
use mm::address::Pfn;
use mm::fault::handle_mm_fault;
use mm::page::PageType;
use mm::pgtable::{Entry, pmd_offset, pte_at, pte_offset_map_lock};
use mm::sync::rcu;
use mm::vma::Access;

use super::come_and_go::{Scenario, play};
use super::held::{Collision, TableLock};
use crate::harness::{Random, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, enter, memory};
use crate::smp::online;
use crate::tests::support::{
    LEFT_TABLES, TABLE, dawdle, far, map_anonymous, mm_without_tables, needs_a_second_cpu, page, pages, write,
};
use crate::tests::turns::Turns;
use crate::workload::crew;

const COLLISIONS: u32 = 24;

ktest! {
    /// Pages of a table that stays come and go while all CPUs fault on them.
    fn munmap_races_with_faults_on_a_table_that_stays(t: &TestContext) {
        let region = 8..16;
        play(t, &Scenario { region, kept: Some(0), rounds: 24, until_reached: false })?;
    }

    /// Pages of two tables come and go; one of the tables goes with them.
    fn munmap_races_with_faults_on_a_table_that_goes(t: &TestContext) {
        let region = TABLE - 4..TABLE + 4;
        play(t, &Scenario { region, kept: Some(0), rounds: 24, until_reached: false })?;
    }

    /// A region without any table comes and goes while all CPUs take its first fault: no table is left behind.
    fn munmap_races_with_the_first_fault_of_a_region_without_tables(t: &TestContext) {
        let region = far(3)..far(3) + 1;
        play(t, &Scenario { region, kept: None, rounds: 30, until_reached: false })?;
    }

    /// A fault and `munmap` wait for the lock of one PTE table, `munmap` having published that the region is gone: whoever
    /// comes first, the fault gives up and nothing shows at the address.
    fn a_fault_that_waits_for_its_table_gives_up_a_region_that_is_gone(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        {
            let _user = enter(&mm);
            write(0, 1)?;
        }
        Collision {
            lock: TableLock::Pte,
            prepare: &|mm| Ok(map_anonymous(mm, pages(8, 9))?),
            first: &|_| {
                ktest_assert_eq!(write(8, 1), Err(AccessFault::Fault));
                Ok(())
            },
            second: &|mm| Ok(mm.munmap(pages(8, 9))?),
            judge: &|mm| {
                ktest_assert_eq!(pte_at(mm, page(8)), Some(Entry::NONE));
                Ok(())
            },
        }
        .repeat(t, &mm, COLLISIONS)?;
    }

    /// The same for a region that has no tables yet: the fault has made one and waits to link it.
    fn a_fault_that_waits_to_link_a_table_gives_up_a_region_that_is_gone(t: &TestContext) {
        let mm = mm_without_tables()?;
        Collision {
            lock: TableLock::Upper,
            prepare: &|mm| Ok(map_anonymous(mm, pages(8, 9))?),
            first: &|_| {
                ktest_assert_eq!(write(8, 1), Err(AccessFault::Fault));
                Ok(())
            },
            second: &|mm| Ok(mm.munmap(pages(8, 9))?),
            judge: &|mm| {
                ktest_assert_eq!(mm.linked_table_bytes(), LEFT_TABLES * 4096);
                Ok(())
            },
        }
        .repeat(t, &mm, COLLISIONS)?;
    }

    /// Whoever holds the lock of a PTE table that `pte_offset_map_lock` gave finds the table in its slot: nobody unhooks
    /// it meanwhile, and nobody is given one that was unhooked before (R3, I16).
    fn a_locked_table_stays_in_its_slot(t: &TestContext) {
        const ROUNDS: u64 = 60;
        let mm = mm_with_a_pmd_table()?;
        let turns = Turns::new();
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            let mut random = Random::new(seed ^ member.index as u64);
            if member.index == 0 {
                return turns.change(member, ROUNDS, |_| {
                    put_in_table(&mm)?;
                    Ok(mm.munmap(pages(0, 1))?)
                });
            }
            turns.take(member, |_| {
                lock_and_look(t, &mm, &mut random);
                Ok(())
            })?;
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
    }

    /// R4, I10, I11: a PTE table that is found in a read section, without a lock, stays that table until the section ends, though
    /// others take its place meanwhile. It is not freed, so it does not come back into its slot, where a reader would take it for
    /// what it has found before.
    ///
    /// ```text
    ///   the others: read section; find table A in the slot
    ///                                             CPU 0: takes A out; puts another in and takes it out, time and again
    ///   the others: A is still a table, in no slot
    ///                                             CPU 0: destroys and frees A
    /// ```
    fn a_table_that_is_read_is_not_freed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = mm_with_a_pmd_table()?;
        for _ in 0..READ_TABLES {
            // Nobody waits for a grace period here: CPU 0 would, if too much were waiting already.
            memory().drain_deferred();
            put_in_table(&mm)?;
            let (readers, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
            let outcomes = crew::run(online(), &|member| -> TestResult {
                if member.index > 0 {
                    let read = hold_while_replaced(&mm, &readers, &is_over);
                    // Whatever happened, the other must not wait for ever.
                    readers.fetch_add(1, Ordering::Release);
                    return read;
                }
                while readers.load(Ordering::Acquire) + 1 < member.count {
                    spin_loop();
                }
                let outcome = replace_table(&mm);
                is_over.store(true, Ordering::Release);
                outcome
            })?;
            outcomes.into_iter().collect::<TestResult>()?;
        }
    }
}

/// Tables that are read in turn, and how often each is replaced meanwhile: more often than it takes for what no longer waits to
/// be freed and used again.
const READ_TABLES: u32 = 4;
const REPLACED: u32 = 4;

/// An address space whose PMD table stays, so that only the PTE table of page 0 comes and goes.
fn mm_with_a_pmd_table() -> Result<MmRef, Stop> {
    let mm = Mm::create(memory())?;
    map_anonymous(&mm, pages(TABLE, TABLE + 1))?;
    let user = enter(&mm);
    write(TABLE, 1)?;
    drop(user);
    Ok(mm)
}

/// Maps page 0, and so makes its PTE table.
fn put_in_table(mm: &Mm) -> TestResult {
    map_anonymous(mm, pages(0, 1))?;
    handle_mm_fault(mm, page(0), Access::Write)?;
    Ok(())
}

/// The frame of page 0's PTE table.
fn table_of_page_0(mm: &Mm) -> Result<Pfn, Stop> {
    let rcu = rcu::read_lock(X86);
    let pmds = pmd_offset(mm, &rcu, page(0)).ok_or("no PMD table")?;
    let entry = pmds.slot(page(0)).load();
    ktest_assert!(entry.is_table(), "no PTE table, but {entry:?}");
    Ok(entry.pfn())
}

/// Takes out the PTE table of page 0, which others read, and has others in its place.
fn replace_table(mm: &Mm) -> TestResult {
    let read = table_of_page_0(mm)?;
    for round in 0..REPLACED {
        mm.munmap(pages(0, 1))?;
        put_in_table(mm)?;
        ktest_assert!(table_of_page_0(mm)? != read, "round {round}: {read:?} is back under its readers");
    }
    Ok(mm.munmap(pages(0, 1))?)
}

/// Finds the PTE table of page 0, tells `readers`, and looks at it until all is over. This read section is all that keeps it.
fn hold_while_replaced(mm: &Mm, readers: &AtomicUsize, is_over: &AtomicBool) -> TestResult {
    let _rcu = rcu::read_lock(X86);
    let table = table_of_page_0(mm)?;
    let descriptor = memory().memmap().page(table);
    readers.fetch_add(1, Ordering::Release);
    while !is_over.load(Ordering::Acquire) {
        let found = descriptor.page_type();
        ktest_assert!(found == PageType::Table, "the table in {table:?} has become {found:?} under its reader");
        spin_loop();
    }
    ktest_assert!(descriptor.is_detached(), "the table in {table:?} is in a slot");
    Ok(())
}

fn lock_and_look(t: &TestContext, mm: &Mm, random: &mut Random) {
    let rcu = rcu::read_lock(X86);
    let Some(pmds) = pmd_offset(mm, &rcu, page(0)) else { return };
    let pmd = pmds.slot(page(0));
    let Some(locked) = pte_offset_map_lock(mm, pmd, page(0)) else { return };
    for _ in 0..3 {
        let is_there = pmd.load() == locked.pmd() && !memory().memmap().page(locked.pmd().pfn()).is_detached();
        t.check(
            is_there,
            format_args!("the slot holds {:?}, but the table of {:?} is locked", pmd.load(), locked.pmd()),
        );
        dawdle(random, 200);
    }
}
