//! First faults on the same page of a table that is there: one frame is installed, the losers free theirs (R2, R18).

use core::sync::atomic::Ordering;

use mm::stats::Counter;

use super::held::{TableLock, await_waiting};
use crate::harness::{AtomicCount, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, Object, enter, memory, statistics};
use crate::smp::online;
use crate::tests::support::{TABLE, add, frame_at, map_anonymous, map_object, pages, read, write};
use crate::workload::crew;

const PAGES: u64 = 64;
/// Pages that all CPUs are made to collide on.
pub(super) const CONTESTED: u64 = 12;

ktest! {
    /// All CPUs have a frame for the same untouched page and wait for the table's lock: one installs its frame, the others
    /// give theirs back. No increment is lost, and the page is one frame mapped once.
    fn first_writes_to_one_page_agree_on_one_frame(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, TABLE))?;
        let _user = enter(&mm);
        write(TABLE - 1, 1)?;
        let before = statistics();
        contest(t, &mm)?;
        let raced = statistics().since(&before)[Counter::RacedFault];
        ktest_assert!(raced + 2 * CONTESTED >= CONTESTED * t.cpus() as u64, "only {raced} faults lost their race");
        for number in 0..CONTESTED {
            ktest_assert_eq!(read(number)?, t.cpus() as u64);
            let frame = frame_at(&mm, number).ok_or("a page without a frame")?;
            let descriptor = memory().memmap().page(frame);
            ktest_assert_eq!((descriptor.mapcount(), descriptor.refcount()), (1, 1));
        }
    }

    /// CPUs of two address spaces race for the pages of one object: there is one frame for each page, with every increment.
    fn two_address_spaces_race_for_one_object(t: &TestContext) {
        let object = Object::create(memory(), PAGES)?;
        let spaces = [Mm::create(memory())?, Mm::create(memory())?];
        for (mm, first) in spaces.iter().zip([0, 1000]) {
            map_object(mm, pages(first, first + PAGES), &object, 0)?;
        }
        crew::run(online(), &|member| {
            let which = member.index % 2;
            let Some(mm) = spaces.get(which) else { return };
            let _user = enter(mm);
            for number in 0..PAGES {
                member.meet();
                t.check(add(which as u64 * 1000 + number, 1).is_ok(), format_args!("page {number} cannot be written"));
            }
        })?;
        let in_use = t.cpus().min(2) as u32;
        let _user = enter(&spaces[0]);
        for number in 0..PAGES {
            ktest_assert_eq!(read(number)?, t.cpus() as u64);
            let frame = object.resident(number).ok_or("a page without a frame")?;
            let descriptor = memory().memmap().page(frame);
            ktest_assert_eq!((descriptor.mapcount(), descriptor.refcount()), (in_use, in_use + 1));
        }
    }

    /// All CPUs have a frame for a page that shows the zero page and wait for the table's lock: it is replaced once.
    fn the_zero_page_is_replaced_once(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, TABLE))?;
        let _user = enter(&mm);
        for number in 0..CONTESTED {
            ktest_assert_eq!(read(number)?, 0);
        }
        let before = statistics();
        contest(t, &mm)?;
        ktest_assert_eq!(statistics().since(&before)[Counter::ZeroPageUpgrade], CONTESTED);
        for number in 0..CONTESTED {
            ktest_assert_eq!(read(number)?, t.cpus() as u64);
        }
    }

    /// CPUs that have cached the zero page at an address see what another CPU writes there as soon as its write is over.
    fn nobody_reads_the_zero_page_once_it_is_replaced(t: &TestContext) {
        const PAGES: u64 = 24;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES))?;
        let written = AtomicCount::new(0);
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            for number in 0..PAGES {
                t.check(read(number) == Ok(0), format_args!("page {number} is not zero"));
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
                    t.check(read(number) == Ok(1), format_args!("page {number} shows the zero page after it was written"));
                }
                seen = over;
            }
        })?;
    }
}

/// Lets all CPUs increment each contested page at once: one holds the table's lock until all others wait for it.
pub(super) fn contest(t: &TestContext, mm: &MmRef) -> TestResult {
    let outcomes = crew::run(online(), &|member| {
        let _user = enter(mm);
        for number in 0..CONTESTED {
            if member.index == 0 {
                let others = online().without(member.cpu);
                let came = TableLock::Pte.hold(mm, || {
                    member.meet_awake();
                    await_waiting(others)
                });
                t.check(matches!(came, Ok(true)), format_args!("page {number}: not every CPU waits for the lock"));
            } else {
                member.meet_awake();
            }
            add(number, 1)?;
            member.meet();
        }
        Ok(())
    })?;
    outcomes.into_iter().collect()
}
