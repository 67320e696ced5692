//! An address space is forked again and again while the other CPUs go on storing to it.

use super::held::{Collision, TableLock};
use crate::harness::{Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, Object, enter, memory};
use crate::smp::online;
use crate::tests::support::{TABLE, add, frame_at, map_anonymous, map_object, pages, read, write};
use crate::tests::turns::Turns;
use crate::workload::crew::{self, Member};

const FORKS: u64 = 12;

/// Lets CPU 0 fork `mm` and judge each child, while every other CPU does `work` with the number of its turn, from 0. Returns
/// how many turns all of them have had.
fn fork_while(
    mm: &MmRef,
    work: &(dyn Fn(&Member<'_>, u64) -> TestResult + Sync),
    judge: &(dyn Fn(&MmRef) -> TestResult + Sync),
) -> Result<u64, Stop> {
    let turns = Turns::new();
    let outcomes = crew::run(online(), &|member| -> Result<u64, Stop> {
        let _user = enter(mm);
        if member.index > 0 {
            return turns.take(member, |turn| work(member, turn));
        }
        turns.change(member, FORKS, |_| judge(&mm.fork()?))?;
        Ok(0)
    })?;
    outcomes.into_iter().sum()
}

ktest! {
    /// R14: one CPU faults on a page the fork has shared and copies it, another stores to the old page through its TLB, the
    /// first replaces that by its copy: the store would be gone. The parent's faults wait until the fork has flushed.
    fn no_store_of_the_parent_is_lost(_t: &TestContext) {
        const PAGES: u64 = 8;
        let mm = Mm::create(memory())?;
        let first = TABLE - PAGES / 2;
        map_anonymous(&mm, pages(first, first + PAGES))?;
        let turns = fork_while(
            &mm,
            &|_, turn| Ok(add(first + turn % PAGES, 1).map(|_| ())?),
            &|_| Ok(()),
        )?;
        let _user = enter(&mm);
        let mut found = 0;
        for number in first..first + PAGES {
            found += read(number)?;
            if let Some(frame) = frame_at(&mm, number) {
                let page = memory().memmap().page(frame);
                ktest_assert!(page.refcount() == 1 || frame == memory().zero_page(), "a child's reference is left");
            }
        }
        ktest_assert_eq!(found, turns);
    }

    /// R14: what a thread of the parent stored first is in the child if what it stored later is. A thread stores to one page
    /// after the other of the first table, where it faults, and each time to its page of the last, where it does not. With
    /// many pages between, the first table is shared long before the last: a fault that went on meanwhile would be missing
    /// while the store after it is there.
    fn a_child_is_a_snapshot(_t: &TestContext) {
        const SLOTS: u64 = 48;
        const BETWEEN: u64 = 2 * TABLE;
        const LATE: u64 = 4 * TABLE;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, LATE + TABLE))?;
        let user = enter(&mm);
        (TABLE..TABLE + BETWEEN).try_for_each(|number| write(number, 1))?;
        drop(user);
        let cpus = online().iter().count() as u64;
        let slot = |own: u64, turn: u64| own * SLOTS + turn % SLOTS;
        fork_while(
            &mm,
            &|member, turn| {
                let own = member.index as u64;
                write(slot(own, turn + 1), turn + 1)?;
                write(LATE + own, turn + 1)?;
                Ok(())
            },
            &|child| {
                let _user = enter(child);
                for own in 1..cpus {
                    let late = read(LATE + own)?;
                    let early = read(slot(own, late))?;
                    ktest_assert!(early >= late, "{late} is there, and what was stored before it is not: {early}");
                }
                Ok(())
            },
        )?;
    }

    /// R14, I1: a fork looks at the parent's entries under the lock of their table, which a fault may just hold:
    ///
    /// ```text
    ///   CPU 2: store to a page that an earlier child has left; under the lock, the entry's is its only reference
    ///                                             CPU 1: shares the page, takes the right to store away
    ///   CPU 2: gives the entry the right to store: parent and child store to one page
    /// ```
    fn a_fork_waits_for_the_lock_of_the_table_it_copies(t: &TestContext) {
        let mm = Mm::create(memory())?;
        Collision {
            lock: TableLock::Pte,
            prepare: &|mm| {
                map_anonymous(mm, pages(0, TABLE))?;
                Ok(write(0, 1)?)
            },
            first: &|mm| {
                let child = mm.fork()?;
                let _user = enter(&child);
                ktest_assert_eq!(read(0)?, 1);
                // Stored before the table was copied, or after.
                ktest_assert!([0, 7].contains(&read(9)?));
                Ok(())
            },
            second: &|_| Ok(write(9, 7)?),
            judge: &|mm| {
                ktest_assert_eq!((read(0)?, read(9)?), (1, 7));
                Ok(mm.munmap(pages(0, TABLE))?)
            },
        }
        .repeat(t, &mm, 8)?;
    }

    /// R14: the parent's CPUs store to an object in the table that is just being shared, across its lock breaks. Every
    /// increment is there, and each child has every page of its own.
    fn other_mappings_go_on_during_a_fork(_t: &TestContext) {
        const OWN: u64 = 96;
        const PAGES: u64 = 16;
        let mm = Mm::create(memory())?;
        let object = Object::create(memory(), PAGES)?;
        map_anonymous(&mm, pages(0, OWN))?;
        map_object(&mm, pages(OWN, OWN + PAGES), &object, 0)?;
        let _user = enter(&mm);
        (0..OWN).try_for_each(|number| write(number, number))?;
        let turns = fork_while(
            &mm,
            &|_, turn| Ok(add(OWN + turn % PAGES, 1).map(|_| ())?),
            &|child| {
                let _user = enter(child);
                for number in (0..OWN).step_by(7) {
                    ktest_assert_eq!(read(number)?, number);
                    write(number, 1000)?;
                }
                Ok(())
            },
        )?;
        let mut found = 0;
        for number in OWN..OWN + PAGES {
            found += read(number)?;
        }
        ktest_assert_eq!(found, turns);
        for number in 0..OWN {
            ktest_assert_eq!(read(number)?, number);
        }
    }
}
