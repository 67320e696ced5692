//! A mapping moves to and fro while other CPUs store to wherever it is.

use arch_x86::user_access::AccessFault;
use mm::pgtable::{Protection, pte_at};

use super::held::{Collision, TableLock};
use crate::harness::{Random, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mapping, Mm, Object, enter, memory};
use crate::smp::online;
use crate::tests::support::{TABLE, add, dawdle, frame_at, map_anonymous, page, pages, read, write};
use crate::tests::turns::Turns;
use crate::workload::crew;

const PAGES: u64 = 8;
const MOVES: u64 = 20;

/// Moves pages between two places, while every other CPU increments them in either. Each increment that succeeded is there
/// in the end, each page is one frame with one mapping, and a place that was left shows nothing.
fn move_while_storing(t: &TestContext, places: [u64; 2]) -> TestResult {
    let mm = Mm::create(memory())?;
    map_anonymous(&mm, pages(places[0], places[0] + PAGES))?;
    let user = enter(&mm);
    (places[0]..places[0] + PAGES).try_for_each(|number| write(number, 0))?;
    let turns = Turns::new();
    let place = |number: u64| places[(number % 2) as usize];
    let outcomes = crew::run(online(), &|member| -> Result<u64, Stop> {
        let _user = enter(&mm);
        let mut stores = 0;
        if member.index > 0 {
            turns.take(member, |turn| {
                if add(place(turn) + turn % PAGES, 1).is_ok() {
                    stores += 1;
                }
                Ok(())
            })?;
            return Ok(stores);
        }
        turns.change(member, MOVES, |turn| {
            let [old, new] = [place(turn), place(turn + 1)].map(|at| pages(at, at + PAGES));
            mm.mremap(old, new)?;
            let left = read(place(turn));
            t.check(left == Err(AccessFault::Fault), format_args!("the old place shows {left:?}"));
            Ok(())
        })?;
        Ok(stores)
    })?;
    let stores: u64 = outcomes.into_iter().sum::<Result<u64, Stop>>()?;
    let mut found = 0;
    for number in places[0]..places[0] + PAGES {
        found += read(number)?;
        let frame = frame_at(&mm, number).ok_or("a page is lost")?;
        let descriptor = memory().memmap().page(frame);
        ktest_assert_eq!((descriptor.refcount(), descriptor.mapcount()), (1, 1));
    }
    ktest_assert_eq!(found, stores);
    drop(user);
    Ok(())
}

ktest! {
    /// R15: old and new entry are in one table: one lock, taken once; no entry is lost or doubled, and the old place is
    /// flushed before the lock drops.
    fn pages_move_within_one_table(t: &TestContext) {
        move_while_storing(t, [16, 16 + PAGES])?;
    }

    /// R15: the entries are in two tables each, of one PMD table and of two.
    fn pages_move_between_tables(t: &TestContext) {
        move_while_storing(t, [TABLE - 3, 2 * TABLE - 5])?;
        move_while_storing(t, [TABLE - 3, TABLE * TABLE - 1])?;
    }

    /// R15, I1: entries are stored under the lock of their new table, though nobody knows the new region yet: a fault beside
    /// it waits for the same lock.
    fn a_move_waits_for_the_lock_of_the_table_it_fills(t: &TestContext) {
        let mm = Mm::create(memory())?;
        let (from, to) = (pages(2 * TABLE, 2 * TABLE + PAGES), pages(16, 16 + PAGES));
        Collision {
            lock: TableLock::Pte,
            prepare: &|mm| {
                map_anonymous(mm, pages(0, PAGES))?;
                map_anonymous(mm, from)?;
                write(0, 1)?;
                Ok(write(2 * TABLE, 5)?)
            },
            first: &|mm| Ok(mm.mremap(from, to)?),
            second: &|_| Ok(write(3, 7)?),
            judge: &|mm| {
                ktest_assert_eq!((read(0)?, read(3)?, read(16)?), (1, 7, 5));
                Ok(mm.munmap(pages(0, 16 + PAGES))?)
            },
        }
        .repeat(t, &mm, 8)?;
    }

    /// R19, I35: walkers set D in an entry that just moves, or loses the right to be stored to. A page that was stored to is
    /// dirty in the end.
    fn no_dirty_mark_is_lost(t: &TestContext) {
        const PAGES: u64 = 96;
        const FROM: u64 = TABLE - 48;
        const TO: u64 = 2 * TABLE + 24;
        let mm = Mm::create(memory())?;
        let object = Object::create(memory(), PAGES)?;
        mm.mmap(pages(FROM, FROM + PAGES), Protection::READ, Mapping::Object { object, first_page: 0 })?;
        let _user = enter(&mm);
        for number in FROM..FROM + PAGES {
            ktest_assert_eq!(read(number)?, 0);
        }
        // May be written from here on, and nobody has.
        mm.mprotect(pages(FROM, FROM + PAGES), Protection::READ_WRITE)?;
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            let _user = enter(&mm);
            let mut random = Random::new(seed ^ member.index as u64);
            let mut outcome = Ok(());
            for number in 0..PAGES {
                member.meet();
                let (old, new) = (pages(FROM + number, FROM + number + 1), pages(TO + number, TO + number + 1));
                let changed = match (member.index, number % 2) {
                    (0, 0) => mm.mremap(old, new),
                    (0, _) => mm.mprotect(old, Protection::READ),
                    _ => {
                        // Before that, in its middle, or too late.
                        dawdle(&mut random, 20_000);
                        let _ = write(FROM + number, 1);
                        Ok(())
                    }
                };
                outcome = outcome.and(changed);
            }
            Ok(outcome?)
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        let mut stored = 0;
        for number in (0..PAGES).map(|number| number + if number % 2 == 0 { TO } else { FROM }) {
            if read(number)? == 1 {
                stored += 1;
                let dirty = pte_at(&mm, page(number)).is_some_and(|entry| entry.is_dirty());
                ktest_assert!(dirty, "page {number} was stored to and is not dirty");
            }
        }
        ktest_assert!(stored > 0 || online().iter().count() == 1, "nobody has stored anything");
    }
}
