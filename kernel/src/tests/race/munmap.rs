//! `munmap` while others fault: nothing shows where nothing is mapped, and no write goes astray (R3, R20, R41, I29).

use arch_x86::machine::X86;
use arch_x86::user_access::AccessFault;
use mm::fault::handle_mm_fault;
use mm::page::PageType;
use mm::pgtable::{Entry, pmd_offset, pte_at, pte_offset_map_lock};
use mm::sync::rcu;
use mm::vma::Access;

use super::come_and_go::{Scenario, play};
use super::held::{Collision, TableLock};
use crate::harness::{Random, TestContext, TestResult, ktest, ktest_assert_eq};
use crate::memory::{Mm, enter, memory};
use crate::smp::online;
use crate::tests::support::{LEFT_TABLES, TABLE, dawdle, far, map_anonymous, mm_without_tables, page, pages, write};
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
        table_comes_and_goes(t, &lock_and_look)?;
    }

    /// A PTE table found in a read section, without a lock, is a PTE table until the section ends, though it be unhooked
    /// meanwhile: only a grace period later is it freed (R4, I10, I11).
    fn a_table_that_is_read_is_not_freed(t: &TestContext) {
        table_comes_and_goes(t, &read_and_look)?;
    }
}

/// One CPU makes and removes the PTE table of page 0, the others `look`.
fn table_comes_and_goes(t: &TestContext, look: &(dyn Fn(&TestContext, &Mm, &mut Random) + Sync)) -> TestResult {
    const ROUNDS: u64 = 60;
    let mm = Mm::create(memory())?;
    // Keeps the PMD table, so that only the PTE table comes and goes.
    map_anonymous(&mm, pages(TABLE, TABLE + 1))?;
    {
        let _user = enter(&mm);
        write(TABLE, 1)?;
    }
    let turns = Turns::new();
    let seed = t.random().next_u64();
    let outcomes = crew::run(online(), &|member| -> TestResult {
        let mut random = Random::new(seed ^ member.index as u64);
        if member.index > 0 {
            turns.take(member, |_| {
                look(t, &mm, &mut random);
                Ok(())
            })?;
            return Ok(());
        }
        turns.change(member, ROUNDS, |_| {
            map_anonymous(&mm, pages(0, 1))?;
            handle_mm_fault(&mm, page(0), Access::Write)?;
            Ok(mm.munmap(pages(0, 1))?)
        })
    })?;
    outcomes.into_iter().collect()
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

fn read_and_look(t: &TestContext, mm: &Mm, random: &mut Random) {
    let rcu = rcu::read_lock(X86);
    let Some(pmds) = pmd_offset(mm, &rcu, page(0)) else { return };
    let entry = pmds.slot(page(0)).load();
    if !entry.is_table() {
        return;
    }
    // Long enough for the remover to come by again, which is when it frees what no longer waits.
    dawdle(random, 100_000);
    let found = memory().memmap().page(entry.pfn()).page_type();
    t.check(found == PageType::Table, format_args!("the table of {entry:?} has become {found:?} under its reader"));
}
