//! Address spaces that end while CPUs still have them loaded for nobody (R37, I36).

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use arch_x86::user_access::AccessFault;
use mm::stats::Counter;
use spin::Mutex;

use crate::harness::{AtomicCount, Random, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, enter, memory, statistics};
use crate::smp::online;
use crate::tests::support::{
    PATIENCE_NANOS, await_within, dawdle, map_anonymous, needs_a_second_cpu, pages, read, write,
};
use crate::tests::turns::Turns;
use crate::workload::crew::{self, Member};

const ROUNDS: u64 = 40;

ktest! {
    /// CPUs use an address space and keep it lazily, while its last reference goes: each has left it before its top table is
    /// freed. In every other round they stay lazy until it has gone, so that all must be told; in the others they come back at
    /// any moment, and the last reference may be theirs. Mostly it has no pages, whose removal would have told them.
    fn an_address_space_ends_under_lazy_cpus(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let reached = (0..t.cpus()).map(|_| AtomicCount::new(0)).collect();
        let stage = Stage { t, current: Mutex::new(None), gone: AtomicCount::new(0), reached, turns: Turns::new() };
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| {
            let mut random = Random::new(seed ^ member.index as u64);
            if member.index == 0 {
                return stage.begin_and_end(member, &mut random);
            }
            stage.turns.take(member, |_| stage.visit(member, &mut random)).map(drop)
        })?;
        // The first member only sees that a visitor which has failed does not come.
        outcomes.into_iter().rev().try_for_each(|outcome| outcome)?;
    }
}

/// What the CPUs share.
struct Stage<'a> {
    t: &'a TestContext,
    /// The address space of a round, which are numbered from 1.
    current: Mutex<Option<(u64, MmRef)>>,
    /// The last round whose address space has lost the reference above.
    gone: AtomicCount,
    /// The last round in which each CPU kept its address space lazily.
    reached: Vec<AtomicCount>,
    turns: Turns,
}

impl Stage<'_> {
    fn begin_and_end(&self, member: &Member<'_>, random: &mut Random) -> TestResult {
        self.turns.change(member, ROUNDS, |change| {
            let round = change + 1;
            let mm = Mm::create(memory())?;
            if has_pages(round) {
                map_anonymous(&mm, pages(0, member.count as u64))?;
            }
            *self.current.lock() = Some((round, mm));
            // Acquire: pairs with `visit`, so that what a visit has counted is in `before`.
            let all = || self.reached.iter().skip(1).all(|reached| reached.load(Ordering::Acquire) == round);
            let reached = await_within(PATIENCE_NANOS, all);
            if !is_still(round) {
                dawdle(random, 4_000);
            }
            let before = statistics();
            // Taken out under the lock, dropped without it.
            let last = self.current.lock().take();
            drop(last);
            let told = statistics().since(&before)[Counter::LazyLeft];
            // Whatever happened, nobody shall wait for ever. Release: pairs with `visit`.
            self.gone.store(round, Ordering::Release);
            ktest_assert!(reached, "round {round}: not every CPU came");
            if is_still(round) {
                ktest_assert_eq!(told, member.count as u64 - 1);
            }
            Ok(())
        })
    }

    fn visit(&self, member: &Member<'_>, random: &mut Random) -> TestResult {
        let current = self.current.lock().clone();
        let Some((round, mm)) = current else {
            dawdle(random, 64);
            return Ok(());
        };
        let (own, value) = (member.index as u64, random.next_u64());
        let user = enter(&mm);
        let found = write(own, value).and_then(|()| read(own));
        ktest_assert_eq!(found, if has_pages(round) { Ok(value) } else { Err(AccessFault::Fault) });
        user.leave_lazily();
        drop(mm);
        // Release: pairs with `begin_and_end`.
        self.reached[member.index].store(round, Ordering::Release);
        if !is_still(round) {
            dawdle(random, 4_000);
            return Ok(());
        }
        // Acquire: pairs with `begin_and_end`.
        let gone = await_within(PATIENCE_NANOS, || self.gone.load(Ordering::Acquire) >= round);
        self.t.check(gone, format_args!("round {round} does not end"));
        Ok(())
    }
}

/// Whether all are lazy when the address space of this round goes.
fn is_still(round: u64) -> bool {
    round.is_multiple_of(2)
}

/// Whether there is a page for each CPU.
fn has_pages(round: u64) -> bool {
    round.is_multiple_of(5)
}
