//! First faults that all need the same missing table: one is linked, the losers free theirs at once (R1, I15).
//!
//! One CPU holds the lock under which the table is to be linked until all others have made one and wait.

use core::sync::atomic::{AtomicBool, Ordering};

use mm::address::VirtRange;
use mm::config::PAGE_SIZE;
use mm::stats::{Counter, StatsSnapshot};

use super::held::{TableLock, await_waiting};
use crate::harness::{AtomicCount, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{MmRef, enter, memory, statistics};
use crate::smp::online;
use crate::tests::support::{PMD_TABLE, TABLE, add, map_anonymous, mm_without_tables, pages, read, write};
use crate::workload::crew::{self, Member};

const ROUNDS: u64 = 16;

/// The pages below the contested tables.
const CONTESTED: VirtRange = pages(0, TABLE);

ktest! {
    /// All CPUs need one PTE table that is not there: they agree on one, and each spare is freed.
    fn first_faults_agree_on_one_missing_pte_table(t: &TestContext) {
        // The PMD table stays, for a page next to the contested table needs it.
        first_faults(t, TABLE, TableLock::Pmd, 1)?;
    }

    /// All CPUs need one PMD table and a PTE table below it that are not there: they agree on one of each.
    fn first_faults_agree_on_one_missing_pmd_table(t: &TestContext) {
        first_faults(t, PMD_TABLE, TableLock::Upper, 2)?;
    }

    /// All CPUs need a table of each level.
    #[only("4-level", "5-level")]
    fn first_faults_agree_on_one_table_of_each_level(t: &TestContext) {
        // 512 GiB on: nothing but the top table is shared with the contested page.
        first_faults(t, PMD_TABLE * 512, TableLock::Upper, 3)?;
    }
}

/// What the CPUs share.
struct Contest<'a> {
    t: &'a TestContext,
    mm: &'a MmRef,
    /// The lock under which the first missing table is linked.
    lock: TableLock,
    /// Tables that are missing at the beginning of each round.
    missing: u64,
    /// A page of everyone; those below belong to one CPU each.
    everyones: u64,
    /// Tables that lost a race.
    spares: AtomicCount,
    /// A round has failed, and there will be no more. Set and looked at between two meetings.
    lost: AtomicBool,
}

/// Lets all CPUs take the first fault of a table at once, time and again. Page `kept` keeps the tables alive that are not
/// contested; `missing` are. The first of them is linked under `lock`.
fn first_faults(t: &TestContext, kept: u64, lock: TableLock, missing: u64) -> TestResult {
    let mm = mm_without_tables()?;
    map_anonymous(&mm, pages(kept, kept + 1))?;
    {
        let _user = enter(&mm);
        write(kept, 1)?;
    }
    let contest = Contest {
        t,
        mm: &mm,
        lock,
        missing,
        everyones: t.cpus() as u64,
        spares: AtomicCount::new(0),
        lost: AtomicBool::new(false),
    };
    let outcomes = crew::run(online(), &|member| {
        let _user = enter(&mm);
        contest.take_part(member)
    })?;
    t.note(format_args!("{} spare tables freed in {ROUNDS} rounds", contest.spares.load(Ordering::Relaxed)));
    outcomes.into_iter().collect()
}

impl Contest<'_> {
    /// One CPU's part in all rounds. Member 0 begins and judges them.
    fn take_part(&self, member: &Member<'_>) -> TestResult {
        let is_judge = member.index == 0;
        let mut outcome = Ok(());
        for round in 0..ROUNDS {
            if is_judge {
                outcome = outcome.and_then(|()| self.begin());
                self.lost.store(outcome.is_err(), Ordering::Relaxed);
            }
            member.meet();
            if self.lost.load(Ordering::Relaxed) {
                break;
            }
            let (before, linked) = (statistics(), self.mm.linked_table_bytes());
            let held = if is_judge { self.hold_up(member) } else { self.begin_together(member) };
            self.touch(round, member);
            member.meet();
            if is_judge {
                outcome = held.and_then(|()| self.judge(round, &before, linked));
            }
        }
        outcome
    }

    fn begin(&self) -> TestResult {
        map_anonymous(self.mm, CONTESTED)?;
        // So that no table of an earlier round is freed meanwhile and counted.
        memory().drain_deferred();
        Ok(())
    }

    /// Holds the others up until each has a table to link.
    fn hold_up(&self, member: &Member<'_>) -> TestResult {
        let others = online().without(member.cpu);
        let came = self.lock.hold(self.mm, || {
            member.meet_awake();
            await_waiting(others)
        })?;
        self.t.check(came, format_args!("not every CPU came to wait for the lock"));
        Ok(())
    }

    fn begin_together(&self, member: &Member<'_>) -> TestResult {
        member.meet_awake();
        Ok(())
    }

    fn touch(&self, round: u64, member: &Member<'_>) {
        let own = add(member.index as u64, round + 1);
        self.t.check(own == Ok(0), format_args!("round {round}: a fresh page gave {own:?}"));
        let everyones = add(self.everyones, 1);
        self.t.check(everyones.is_ok(), format_args!("round {round}: the page of all cannot be written"));
    }

    /// Whether all agreed on one of each missing table.
    fn judge(&self, round: u64, before: &StatsSnapshot, linked: u64) -> TestResult {
        let counted = statistics().since(before);
        let (made, freed, missing) = (counted[Counter::TablesAllocated], counted[Counter::TablesFreed], self.missing);
        ktest_assert!(made == freed + missing, "round {round}: {made} tables made, {freed} freed, {missing} missing");
        // All others had a table to link, and one of them was first.
        ktest_assert!(freed + 2 >= self.t.cpus() as u64, "round {round}: only {freed} spare tables");
        ktest_assert_eq!(self.mm.linked_table_bytes() - linked, missing * PAGE_SIZE as u64);
        for number in 0..self.everyones {
            ktest_assert_eq!(read(number)?, round + 1);
        }
        ktest_assert_eq!(read(self.everyones)?, self.everyones);
        self.mm.munmap(CONTESTED)?;
        ktest_assert_eq!(self.mm.linked_table_bytes(), linked);
        self.spares.fetch_add(freed, Ordering::Relaxed);
        Ok(())
    }
}
