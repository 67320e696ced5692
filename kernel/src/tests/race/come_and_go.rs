//! A region that one CPU maps and unmaps while all others hammer its addresses.
//!
//! The remover counts an epoch: even from before it maps to after it has unmapped, odd while the region is surely gone. An
//! access that succeeds with the same odd epoch before and after went through a translation that must not exist. What
//! such an access would hit is the frame freed last: the remover takes it for another page and looks after a mark in it.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use mm::pgtable::pte_at;

use crate::harness::{AtomicCount, Random, TestContext, TestResult, ktest_assert};
use crate::memory::{Mm, MmRef, enter, memory};
use crate::smp::online;
use crate::tests::support::{self, dawdle, far, map_anonymous, page, pages, read, write};
use crate::tests::turns::Turns;
use crate::workload::crew::{self, Member};

/// Where the remover puts its marks: far from everything else.
const MARKS: u64 = far(700);
const MARK: u64 = 0x5eed_0fa1_1c0f_fee5;

/// What is done how often.
pub struct Scenario {
    /// The region.
    pub region: Range<u64>,
    /// A page that stays mapped, and with it the tables it needs.
    pub kept: Option<u64>,
    /// How often the region comes and goes.
    pub rounds: u64,
    /// Whether the region stays until every other CPU has reached it and so has cached how to.
    pub until_reached: bool,
}

/// What the CPUs share.
struct Stage<'a> {
    t: &'a TestContext,
    mm: &'a MmRef,
    scenario: &'a Scenario,
    epoch: AtomicCount,
    turns: Turns,
    /// The epoch in which each CPU reached the region last.
    reached: Vec<AtomicCount>,
}

/// Plays the scenario on all CPUs.
pub fn play(t: &TestContext, scenario: &Scenario) -> TestResult {
    let mm = Mm::create(memory())?;
    if let Some(kept) = scenario.kept {
        map_anonymous(&mm, pages(kept, kept + 1))?;
        let _user = enter(&mm);
        write(kept, 1)?;
    }
    // With PAE, the PMD tables that were there from the start.
    let count = scenario.region.end - scenario.region.start;
    for first in [scenario.region.start, MARKS] {
        support::come_and_go(&mm, pages(first, first + count))?;
    }
    let reached = (0..t.cpus()).map(|_| AtomicCount::new(0)).collect();
    let stage = Stage { t, mm: &mm, scenario, epoch: AtomicCount::new(1), turns: Turns::new(), reached };
    let seed = t.random().next_u64();
    let outcomes = crew::run(online(), &|member| {
        let mut random = Random::new(seed ^ member.index as u64);
        let _user = enter(&mm);
        if member.index > 0 {
            return stage.turns.take(member, |_| stage.hammer(member.index, &mut random)).map(|_| ());
        }
        stage.come_and_go(member, &mut random)
    })?;
    outcomes.into_iter().collect()
}

impl Stage<'_> {
    fn come_and_go(&self, member: &Member<'_>, random: &mut Random) -> TestResult {
        let Scenario { region, rounds, .. } = self.scenario;
        let range = pages(region.start, region.end);
        let tables = self.mm.linked_table_bytes();
        self.turns.change(member, *rounds, |round| {
            // Release, both times: who sees the new epoch comes after what was done in the old one.
            let epoch = self.epoch.fetch_add(1, Ordering::Release) + 1;
            map_anonymous(self.mm, range)?;
            if self.scenario.until_reached {
                self.await_everyone(epoch);
            } else {
                dawdle(random, 4_000);
            }
            self.mm.munmap(range)?;
            self.epoch.fetch_add(1, Ordering::Release);

            ktest_assert!(self.mm.linked_table_bytes() == tables, "round {round}: tables of a region that is gone");
            for number in region.clone() {
                let entry = pte_at(self.mm, page(number)).filter(|entry| !entry.is_none());
                ktest_assert!(entry.is_none(), "round {round}: page {number} still has {entry:?}");
            }
            self.guard_marks(round, random)
        })
    }

    /// Takes as many frames as the region had, which are likely the same, and sees that nobody else writes to them.
    fn guard_marks(&self, round: u64, random: &mut Random) -> TestResult {
        let count = self.scenario.region.end - self.scenario.region.start;
        let marks = MARKS..MARKS + count;
        map_anonymous(self.mm, pages(marks.start, marks.end))?;
        for number in marks.clone() {
            write(number, MARK)?;
        }
        dawdle(random, 4_000);
        for number in marks.clone() {
            let found = read(number)?;
            ktest_assert!(found == MARK, "round {round}: a write went astray: {found:#x}");
        }
        self.mm.munmap(pages(marks.start, marks.end))?;
        Ok(())
    }

    fn await_everyone(&self, epoch: u64) {
        for reached in self.reached.iter().skip(1) {
            while reached.load(Ordering::Relaxed) < epoch {
                core::hint::spin_loop();
            }
        }
    }

    fn hammer(&self, index: usize, random: &mut Random) -> TestResult {
        let region = &self.scenario.region;
        let number = region.start + random.below(region.end - region.start);
        let before = self.epoch.load(Ordering::Acquire);
        let succeeded = write(number, index as u64).is_ok();
        let after = self.epoch.load(Ordering::Acquire);
        if !succeeded {
            dawdle(random, 64);
        } else if before == after {
            self.t.check(
                before.is_multiple_of(2),
                format_args!("page {number} was reached in epoch {before}, while it was gone"),
            );
            if let Some(reached) = self.reached.get(index) {
                reached.store(before, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
