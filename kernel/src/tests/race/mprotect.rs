//! `mprotect` while others write: once the right is gone no write lands, and none that landed is lost.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use arch_x86::user_access::AccessFault;
use mm::pgtable::{Entry, Protection, pte_at};

use super::held::{Collision, TableLock};
use crate::harness::{AtomicCount, Random, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, enter, memory};
use crate::smp::online;
use crate::tests::support::{add, dawdle, map_anonymous, page, pages, read, write};
use crate::tests::turns::Turns;
use crate::workload::crew;

const PAGES: u64 = 8;
/// The pages that are protected; those at both ends stay open, so that the region is cut and joined.
const PROTECTED: Range<u64> = 1..PAGES - 1;
const ROUNDS: u64 = 24;

ktest! {
    /// All CPUs increment pages that one of them protects and opens in turn: no increment lands while they are protected,
    /// every successful one is there at the end.
    fn mprotect_races_with_writes(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES))?;
        // Even while the pages may be written or that is just changing, odd while they surely may not.
        let (epoch, landed, turns) = (AtomicCount::new(0), AtomicCount::new(0), Turns::new());
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| {
            let mut random = Random::new(seed ^ member.index as u64);
            let _user = enter(&mm);
            if member.index == 0 {
                return turns.change(member, ROUNDS, |round| {
                    protect_and_open(&mm, &epoch, round, &|| turns.await_all(member))
                });
            }
            let write = |_| {
                let number = random.below(PAGES);
                let before = epoch.load(Ordering::Acquire);
                if add(number, 1).is_err() {
                    dawdle(&mut random, 64);
                    return Ok(());
                }
                landed.fetch_add(1, Ordering::Relaxed);
                let was_protected =
                    PROTECTED.contains(&number) && before % 2 == 1 && before == epoch.load(Ordering::Acquire);
                t.check(!was_protected, format_args!("a write landed in epoch {before}, while it was forbidden"));
                Ok(())
            };
            turns.take(member, write).map(|_| ())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        let _user = enter(&mm);
        let mut found = 0;
        for number in 0..PAGES {
            found += read(number)?;
        }
        ktest_assert_eq!(found, landed.load(Ordering::Relaxed));
    }

    /// A write fault has seen that the region may be written and the entry may not, and waits to give the right; meanwhile
    /// the region is opened and closed again. Whoever comes first, the entry may not be written in the end.
    fn a_fault_that_waits_to_give_a_right_gives_up_when_it_is_gone(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        Collision {
            lock: TableLock::Pte,
            prepare: &|mm| {
                mm.mprotect(pages(0, 1), Protection::READ_WRITE)?;
                write(0, 1)?;
                Ok(mm.mprotect(pages(0, 1), Protection::READ)?)
            },
            // Waits with the new right published and the entry as it was.
            first: &|mm| {
                mm.mprotect(pages(0, 1), Protection::READ_WRITE)?;
                Ok(mm.mprotect(pages(0, 1), Protection::READ)?)
            },
            // Succeeds in between, or fails.
            second: &|_| {
                let _ = write(0, 2);
                Ok(())
            },
            judge: &|mm| {
                let entry = pte_at(mm, page(0)).unwrap_or(Entry::NONE);
                ktest_assert!(entry.is_present() && !entry.is_writable(), "{entry:?} in a region that may not be written");
                ktest_assert_eq!(write(0, 3), Err(AccessFault::Fault));
                Ok(())
            },
        }
        .repeat(t, &mm, 24)?;
    }

    /// A write fault has a frame to replace the zero page and waits; meanwhile the right to write is taken away, which leaves
    /// the entry as the fault saw it. Whoever comes first, the entry may not be written in the end.
    fn a_fault_that_waits_to_replace_the_zero_page_gives_up_a_right_that_is_gone(t: &TestContext) {
        let mm = Mm::create(memory())?;
        Collision {
            lock: TableLock::Pte,
            prepare: &|mm| {
                map_anonymous(mm, pages(0, 1))?;
                ktest_assert_eq!(read(0)?, 0);
                Ok(())
            },
            // Succeeds if it comes first.
            first: &|_| {
                let _ = write(0, 1);
                Ok(())
            },
            second: &|mm| Ok(mm.mprotect(pages(0, 1), Protection::READ)?),
            judge: &|mm| {
                let entry = pte_at(mm, page(0)).unwrap_or(Entry::NONE);
                ktest_assert!(entry.is_present() && !entry.is_writable(), "{entry:?} in a region that may not be written");
                ktest_assert_eq!(write(0, 3), Err(AccessFault::Fault));
                Ok(mm.munmap(pages(0, 1))?)
            },
        }
        .repeat(t, &mm, 24)?;
    }
}

fn protect_and_open(mm: &Mm, epoch: &AtomicCount, round: u64, await_writers: &dyn Fn()) -> TestResult {
    let range = pages(PROTECTED.start, PROTECTED.end);
    let look = || PROTECTED.map(read).collect::<Result<Vec<u64>, _>>();
    mm.mprotect(range, Protection::READ)?;
    // Release, both times: who sees the new epoch comes after the change before it.
    epoch.fetch_add(1, Ordering::Release);
    let seen = look()?;
    await_writers();
    let later = look()?;
    ktest_assert!(seen == later, "round {round}: protected pages changed from {seen:?} to {later:?}");
    epoch.fetch_add(1, Ordering::Release);
    Ok(mm.mprotect(range, Protection::READ_WRITE)?)
}
