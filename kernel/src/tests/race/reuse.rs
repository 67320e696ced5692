//! Frames that go from one user to the next while CPUs still know the way to the first (R20, I30).

use core::sync::atomic::{AtomicBool, Ordering};

use alloc::vec::Vec;

use crate::harness::{AtomicCount, Random, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, enter, memory};
use crate::smp::online;
use crate::tests::support::{add, dawdle, map_anonymous, pages, read, write};
use crate::workload::crew;

/// More pages than the remover's CPU keeps in reserve, so that others get them at once.
const PAGES: u64 = 128;
const ROUNDS: u64 = 12;
/// Pages a taker holds at a time.
const HELD: u64 = 48;
const MARK: u64 = 0x5eed_0fa1_1c0f_fee5;

ktest! {
    /// While one CPU unmaps pages that others write to, frames are taken by CPUs of other address spaces: none of them
    /// finds a write of the former user in its frames.
    fn a_frame_is_not_given_out_again_before_everyone_has_flushed(t: &TestContext) {
        if t.cpus() < 3 {
            return Err(Stop::skipped(format_args!("needs one CPU to unmap, one to write, one to take")));
        }
        let mm = Mm::create(memory())?;
        let rounds_begun = AtomicCount::new(0);
        let done = AtomicBool::new(false);
        let swept: Vec<AtomicCount> = (0..t.cpus()).map(|_| AtomicCount::new(0)).collect();
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| {
            let mut random = Random::new(seed ^ member.index as u64);
            match member.index {
                0 => {
                    let outcome = remove(&mm, &rounds_begun, &swept);
                    done.store(true, Ordering::Release);
                    outcome
                }
                index if index % 2 == 1 => {
                    let _user = enter(&mm);
                    while !done.load(Ordering::Acquire) {
                        let round = rounds_begun.load(Ordering::Acquire);
                        let reached = (0..PAGES).filter(|&number| write(number, 1).is_ok()).count() as u64;
                        if let Some(swept) = swept.get(index).filter(|_| reached == PAGES) {
                            swept.store(round, Ordering::Relaxed);
                        }
                    }
                    Ok(())
                }
                _ => take(&done, &mut random),
            }
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
    }
}

/// Maps the pages, and unmaps them when every writer has reached all of them.
fn remove(mm: &MmRef, rounds_begun: &AtomicCount, swept: &[AtomicCount]) -> TestResult {
    for round in 1..=ROUNDS {
        map_anonymous(mm, pages(0, PAGES))?;
        rounds_begun.store(round, Ordering::Release);
        for writer in swept.iter().skip(1).step_by(2) {
            while writer.load(Ordering::Relaxed) < round {
                core::hint::spin_loop();
            }
        }
        mm.munmap(pages(0, PAGES))?;
    }
    Ok(())
}

/// Takes frames and looks whether they stay as they are.
fn take(done: &AtomicBool, random: &mut Random) -> TestResult {
    let mm = Mm::create(memory())?;
    let _user = enter(&mm);
    while !done.load(Ordering::Acquire) {
        map_anonymous(&mm, pages(0, HELD))?;
        for number in 0..HELD {
            ktest_assert_eq!(add(number, MARK)?, 0);
        }
        dawdle(random, 4_000);
        for number in 0..HELD {
            let found = read(number)?;
            ktest_assert!(found == MARK, "a former user wrote to page {number}: {found:#x}");
        }
        mm.munmap(pages(0, HELD))?;
    }
    Ok(())
}
