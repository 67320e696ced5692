//! Stores of all CPUs to pages that a fork has shared: one copy, and the old page is seen by nobody afterwards (R18).

use core::sync::atomic::Ordering;

use mm::stats::Counter;

use super::pages::{CONTESTED, contest};
use crate::harness::{AtomicCount, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, enter, memory, statistics};
use crate::smp::online;
use crate::tests::support::{TABLE, add, frame_at, map_anonymous, pages, read, write};
use crate::workload::crew;

/// An address space whose first pages hold their number plus 100.
fn numbered(count: u64) -> Result<MmRef, crate::harness::Stop> {
    let mm = Mm::create(memory())?;
    map_anonymous(&mm, pages(0, TABLE))?;
    let user = enter(&mm);
    (0..count).try_for_each(|number| write(number, 100 + number))?;
    drop(user);
    Ok(mm)
}

/// Fails unless page `number` of `mm` shows a frame with so many references, all of them mappings.
fn expect_references(mm: &MmRef, number: u64, count: u32) -> TestResult {
    let frame = frame_at(mm, number).ok_or("a page without a frame")?;
    let page = memory().memmap().page(frame);
    ktest_assert_eq!((page.refcount(), page.mapcount()), (count, count));
    Ok(())
}

ktest! {
    /// R18: all CPUs wait for the lock of the table to store to one shared page: it is copied once, no increment is lost, the
    /// losers give their copies back, and the other side keeps what it had.
    fn a_shared_page_is_copied_once(t: &TestContext) {
        let mm = numbered(CONTESTED)?;
        let child = mm.fork()?;
        for number in 0..CONTESTED {
            expect_references(&mm, number, 2)?;
        }
        let before = statistics();
        contest(t, &child)?;
        let events = statistics().since(&before);
        ktest_assert_eq!((events[Counter::PageCopied], events[Counter::PageReused]), (CONTESTED, 0));
        for number in 0..CONTESTED {
            expect_references(&mm, number, 1)?;
            expect_references(&child, number, 1)?;
        }
        let before = statistics();
        contest(t, &mm)?;
        let events = statistics().since(&before);
        ktest_assert_eq!((events[Counter::PageCopied], events[Counter::PageReused]), (0, CONTESTED));
        for space in [&mm, &child] {
            let _user = enter(space);
            for number in 0..CONTESTED {
                ktest_assert_eq!(read(number)?, 100 + number + t.cpus() as u64);
            }
        }
    }

    /// R18: half of the CPUs are in the parent and half in the child, and all store to the shared pages at once.
    fn parent_and_child_store_at_once(t: &TestContext) {
        const PAGES: u64 = 48;
        let mm = numbered(PAGES)?;
        let spaces = [mm.fork()?, mm];
        let before = statistics();
        crew::run(online(), &|member| {
            let Some(mm) = spaces.get(member.index % 2) else { return };
            let _user = enter(mm);
            for number in 0..PAGES {
                t.check(read(number).is_ok(), format_args!("page {number} cannot be read"));
            }
            for number in 0..PAGES {
                member.meet();
                let old = add(number, 1);
                let later = read(number);
                let grew = matches!((old, later), (Ok(old), Ok(later)) if later > old);
                t.check(grew, format_args!("page {number}: the old page is read after a store to the new one"));
            }
        })?;
        let events = statistics().since(&before);
        let settled = events[Counter::PageCopied] + events[Counter::PageReused];
        let sides = t.cpus().min(2) as u64;
        ktest_assert_eq!(settled, sides * PAGES);
        for (side, mm) in spaces.iter().enumerate() {
            let _user = enter(mm);
            let stores = ((t.cpus() + 1 - side) / 2) as u64;
            for number in 0..PAGES {
                ktest_assert_eq!(read(number)?, 100 + number + stores);
                if sides == 2 {
                    expect_references(mm, number, 1)?;
                }
            }
        }
    }

    /// R18, spec 7.3: CPUs that have cached a shared page see what another CPU of their address space stores to its copy as
    /// soon as that store is over.
    fn nobody_reads_a_page_once_its_copy_shows(t: &TestContext) {
        const PAGES: u64 = 24;
        let mm = numbered(PAGES)?;
        let child = mm.fork()?;
        let written = AtomicCount::new(0);
        crew::run(online(), &|member| {
            let _user = enter(&child);
            for number in 0..PAGES {
                t.check(read(number) == Ok(100 + number), format_args!("page {number} is not the parent's"));
            }
            // Awake: a CPU that sleeps forgets what it has cached.
            member.meet_awake();
            if member.index == 0 {
                for number in 0..PAGES {
                    t.check(write(number, 1).is_ok(), format_args!("page {number} cannot be written"));
                    // Release: whoever sees the number comes after the write.
                    written.store(number + 1, Ordering::Release);
                }
                return;
            }
            let mut seen = 0;
            while seen < PAGES {
                let over = written.load(Ordering::Acquire);
                for number in seen..over {
                    t.check(read(number) == Ok(1), format_args!("page {number} shows the old page after it was copied"));
                }
                seen = over;
            }
        })?;
        let _user = enter(&mm);
        for number in 0..PAGES {
            ktest_assert!(read(number)? == 100 + number, "the parent sees the child's store to page {number}");
        }
    }
}
