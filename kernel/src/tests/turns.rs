//! CPUs that take turns at something while one of them changes it.
//!
//! Rule: no change is made before every other CPU has begun and ended a turn since the one before. A host with fewer CPUs runs
//! some of them for long stretches; without the rule a whole series of changes can go by while nobody else runs.

use core::sync::atomic::{AtomicBool, Ordering};

use mm::config::NR_CPUS;

use super::support::needs_a_second_cpu;
use crate::harness::{AtomicCount, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::smp::online;
use crate::workload::crew::{self, Member};

/// What the members of a crew share.
pub struct Turns {
    /// Turns each member has ended; [`GONE`] once it takes no more.
    ended: [AtomicCount; NR_CPUS],
    over: AtomicBool,
}

const GONE: u64 = AtomicCount::MAX;

impl Turns {
    pub fn new() -> Self {
        Self { ended: [const { AtomicCount::new(0) }; NR_CPUS], over: AtomicBool::new(false) }
    }

    /// Takes turns, which are numbered from 0, until the changes are over or a turn fails. Returns how many it were.
    pub fn take(&self, member: &Member<'_>, mut turn: impl FnMut(u64) -> TestResult) -> Result<u64, Stop> {
        let ended = &self.ended[member.index];
        let mut number = 0;
        // Acquire: pairs with the end of `change`.
        while !self.over.load(Ordering::Acquire) {
            if let Err(stop) = turn(number) {
                // Nobody shall wait for a member that has given up.
                ended.store(GONE, Ordering::Release);
                return Err(stop);
            }
            number += 1;
            // Release: pairs with `await_all`.
            ended.store(number, Ordering::Release);
        }
        Ok(number)
    }

    /// Makes `changes` changes, which are numbered from 0, or those before one that fails, and ends the turns.
    pub fn change(&self, member: &Member<'_>, changes: u64, mut change: impl FnMut(u64) -> TestResult) -> TestResult {
        let outcome = (0..changes).try_for_each(|number| {
            self.await_all(member);
            change(number)
        });
        if outcome.is_ok() {
            // What the last change has left.
            self.await_all(member);
        }
        self.over.store(true, Ordering::Release);
        outcome
    }

    /// Waits until each other member has begun and ended a turn since the call. For whoever makes the changes.
    pub fn await_all(&self, member: &Member<'_>) {
        let mut wanted = [0; NR_CPUS];
        for index in others(member) {
            wanted[index] = match self.ended[index].load(Ordering::Acquire) {
                GONE => GONE,
                // The one it may be in has begun before.
                ended => ended + 2,
            };
        }
        for index in others(member) {
            while self.ended[index].load(Ordering::Acquire) < wanted[index] {
                core::hint::spin_loop();
            }
        }
    }
}

fn others(member: &Member<'_>) -> impl Iterator<Item = usize> {
    let me = member.index;
    (0..member.count).filter(move |index| *index != me)
}

ktest! {
    /// Whoever makes changes does not wait for a member that has given up.
    fn changes_go_on_without_who_has_given_up(t: &TestContext) {
        const CHANGES: u64 = 4;
        needs_a_second_cpu(t)?;
        let (turns, made) = (Turns::new(), AtomicCount::new(0));
        // It gives up long before the last change: whoever makes that finds it gone.
        let turn = |number| if number < 2 { Ok(()) } else { Err(Stop::failed(format_args!("on purpose"))) };
        let outcomes = crew::run(online(), &|member| match member.index {
            0 => turns.change(member, CHANGES, |_| {
                made.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }),
            1 => turns.take(member, turn).map(drop),
            _ => turns.take(member, |_| Ok(())).map(drop),
        })?;
        ktest_assert_eq!(made.into_inner(), CHANGES);
        ktest_assert!(outcomes[1].is_err(), "the failure of a turn is lost");
    }
}
