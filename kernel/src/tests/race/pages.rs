//! First faults on the same page of a table that is there: one frame is installed, the losers free theirs (R2, R18).

use core::sync::atomic::{AtomicU64, Ordering};

use mm::stats::Counter;

use crate::harness::{TestContext, ktest, ktest_assert_eq};
use crate::memory::{Mm, Object, enter, memory, statistics};
use crate::smp::online;
use crate::tests::support::{add, frame_at, map_anonymous, map_object, pages, read, write};
use crate::workload::crew;

const PAGES: u64 = 64;

ktest! {
    /// All CPUs write the same untouched pages: no increment is lost, and each page is one frame mapped once.
    fn first_writes_to_one_page_agree_on_one_frame(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES + 1))?;
        let _user = enter(&mm);
        write(PAGES, 1)?;
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            for number in 0..PAGES {
                member.meet();
                t.check(add(number, 1).is_ok(), format_args!("page {number} cannot be written"));
            }
        })?;
        for number in 0..PAGES {
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

    /// All CPUs write to pages that show the zero page: each is replaced once, and nobody reads the zero page afterwards.
    fn the_zero_page_is_replaced_once(t: &TestContext) {
        const PAGES: u64 = 24;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES))?;
        let before = statistics();
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            for number in 0..PAGES {
                t.check(read(number) == Ok(0), format_args!("page {number} is not zero"));
            }
            member.meet();
            for number in 0..PAGES {
                let (written, seen) = (add(number, 1), read(number));
                let is_newer = matches!((written, seen), (Ok(written), Ok(seen)) if seen > written);
                t.check(is_newer, format_args!("page {number} showed {seen:?} after {written:?} was replaced"));
            }
        })?;
        let _user = enter(&mm);
        for number in 0..PAGES {
            ktest_assert_eq!(read(number)?, t.cpus() as u64);
        }
        ktest_assert_eq!(statistics().since(&before)[Counter::ZeroPageUpgrade], PAGES);
    }

    /// CPUs that have cached the zero page at an address see what another CPU writes there as soon as its write is over.
    fn nobody_reads_the_zero_page_once_it_is_replaced(t: &TestContext) {
        const PAGES: u64 = 24;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES))?;
        let written = AtomicU64::new(0);
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
