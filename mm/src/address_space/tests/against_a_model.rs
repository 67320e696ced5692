//! Any sequence of operations on address spaces, by two CPUs in turn, against the reference model.
//!
//! The number of cases scales with `PROPTEST_CASES`, 256 standing for what a test run does by itself.

use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::pgtable::{FiveLevel, FourLevel, HugeSize, Pae, PagingMode};
use crate::stats::{Counter, StatsSnapshot};
use crate::testing::operations::{
    Action, Backing, CPUS, OBJECT_PAGES, OBJECTS, SPACES, Shortage, Step, border, config, near, run, table,
};
use crate::testing::{Small, World};
use proptest::prelude::{BoxedStrategy, ProptestConfig, Strategy, prop_oneof};
use proptest::test_runner::{TestCaseError, TestCaseResult, TestError, TestRunner};
use std::cell::Cell;
use std::ops::Range;

/// A page near a border of tables, seldom another one of the two tables around that of all levels.
fn place<Mode: PagingMode>() -> BoxedStrategy<u64> {
    let (table, border) = (table::<Mode>(), border::<Mode>());
    let near = |reach: u64| (0..3_u64, 0..2 * reach).prop_map(move |(side, at)| near::<Mode>(side, reach, at));
    // Mostly the same few pages, so that steps have to do with each other.
    prop_oneof![4 => near(1), 3 => near(4), 1 => border - table..border + table].boxed()
}

fn range<Mode: PagingMode>() -> BoxedStrategy<Range<u64>> {
    let (table, border) = (table::<Mode>(), border::<Mode>());
    let short = (place::<Mode>(), 1..9_u64).prop_map(|(first, count)| first..first + count);
    let long = (place::<Mode>(), place::<Mode>()).prop_map(|(one, other)| one.min(other)..one.max(other) + 1);
    let whole = (0..4_u64, 1..3_u64).prop_map(move |(first, count)| {
        let first = border + first * table - 2 * table;
        first..first + count * table
    });
    prop_oneof![5 => short, 1 => long, 2 => whole].boxed()
}

fn backing() -> impl Strategy<Value = Backing> {
    prop_oneof![
        3 => proptest::strategy::Just(Backing::Anonymous),
        3 => proptest::strategy::Just(Backing::AnonymousHuge),
        2 => proptest::bool::weighted(0.3).prop_map(|large| Backing::Huge(if large { HugeSize::Pud } else { HugeSize::Pmd })),
        2 => (0..OBJECTS, 0..OBJECT_PAGES).prop_map(|(number, first)| Backing::Object(number, first)),
    ]
}

fn action<Mode: PagingMode>() -> impl Strategy<Value = Action> {
    let place = place::<Mode>;
    let range = range::<Mode>;
    prop_oneof![
        3 => (0..SPACES).prop_map(Action::Enter),
        3 => proptest::strategy::Just(Action::Lazy),
        1 => proptest::strategy::Just(Action::Idle),
        16 => (place(), 1..1000_u64).prop_map(|(at, value)| Action::Write(at, value)),
        6 => place().prop_map(Action::Read),
        6 => (range(), proptest::bool::weighted(0.7), proptest::bool::weighted(0.85), backing())
            .prop_map(|(range, instead, write, backing)| Action::Map { range, instead, write, backing }),
        2 => range().prop_map(Action::Unmap),
        2 => (range(), proptest::bool::weighted(0.7)).prop_map(|(range, write)| Action::Protect(range, write)),
        3 => (range(), proptest::option::weighted(0.7, place()), 1..9_u64).prop_map(|(old, to, count)| {
            let first = to.unwrap_or(old.start);
            Action::Remap(old, first..first + count)
        }),
        2 => range().prop_map(Action::Discard),
        3 => place().prop_map(Action::Collapse),
        1 => place().prop_map(Action::Split),
        3 => (0..SPACES).prop_map(Action::Fork),
        1 => (0..SPACES).prop_map(Action::Replace),
    ]
}

fn shortage() -> impl Strategy<Value = Option<Shortage>> {
    prop_oneof![
        6 => proptest::strategy::Just(None),
        1 => (1..12_u32).prop_map(|nth| Some(Shortage::Once(nth))),
        1 => (1..12_u32).prop_map(|nth| Some(Shortage::ForGood(nth))),
    ]
}

/// Steps of a program at most.
const STEPS: usize = 160;
/// What fails is made shorter by so many attempts at most: each step may have to be tried more than once, alone and with others.
const SHRINKING: u32 = 32 * STEPS as u32;
/// And for so long at most, in milliseconds.
const SHRINKING_TIME: u32 = 120_000;

/// The machines of attempts that failed are never freed; these are their frames at most, 4 GiB. So a program on a machine of 8192
/// frames loses 128 steps, and only one that had nearly [`STEPS`] is left with more than it needs.
const SHRINKING_FRAMES: usize = 1 << 20;

/// Runs so many programs; the shortest one found that fails.
fn search<Mode: PagingMode>(
    cases: u32,
    test: impl Fn(Vec<Step>) -> TestCaseResult,
) -> Result<(), TestError<Vec<Step>>> {
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: SHRINKING,
        max_shrink_time: SHRINKING_TIME,
        ..ProptestConfig::default()
    });
    runner.run(&proptest::collection::vec((0..CPUS, shortage(), action::<Mode>()), 1..STEPS), test)
}

/// Runs `share` of every 256 cases that are asked for, and says what happened in them.
fn check<Mode: PagingMode>(share: u32, config: SimConfig) -> StatsSnapshot {
    let cases = (u64::from(ProptestConfig::default().cases) * u64::from(share)).div_ceil(256);
    // A machine's memory is never freed, so one serves until a case fails; its books balance after each.
    let (spare, made) = (Cell::new(None), Cell::new(0));
    let outcome = search::<Mode>(cases.try_into().unwrap_or(u32::MAX), |steps| {
        let world: World<Mode> = match spare.take() {
            Some(world) => world,
            // No further: what fails is as short as it is by now.
            None if made.get() * config.frames > SHRINKING_FRAMES => return Ok(()),
            None => {
                made.set(made.get() + 1);
                World::new(config)
            }
        };
        run(&world, config.seed, steps);
        spare.set(Some(world));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let world = spare.take().expect("the last case has passed");
    StatsSnapshot::sum(world.machine.cpus())
}

#[test]
fn four_levels_behave_as_a_map() {
    check::<FourLevel>(16, config(8192, 6));
}

#[test]
fn pae_behaves_as_a_map() {
    check::<Pae>(16, config(8192, 1));
}

#[test]
fn five_levels_behave_as_a_map() {
    check::<FiveLevel>(4, config(8192, 2));
}

/// Tables of four entries: huge pages of two sizes, and far more of everything in as many steps. So this is where to see that
/// the cases come by all that makes a difference.
#[test]
fn small_tables_behave_as_a_map() {
    let happened = check::<Small>(192, SimConfig { gigabyte_pages: true, ..config(512, 6) });
    // Not when fewer cases are asked for.
    if ProptestConfig::default().cases >= 256 {
        for event in [
            Counter::PageCopied,
            Counter::PageReused,
            Counter::ZeroPageUpgrade,
            Counter::ObjectFault,
            Counter::HugeFault,
            Counter::HugeSplits,
            Counter::HugeCollapses,
            Counter::LazyLeft,
            Counter::AsidCurrent,
            Counter::AsidBehind,
            Counter::FlushesRanged,
            Counter::FlushesServed,
        ] {
            assert!(happened[event] > 0, "no case of {}", event.name());
        }
    }
}

/// What fails is made as short as it can be, if memory for attempts does not run out before: here one with a fork and a later
/// unmapping fails, whatever else it does.
#[test]
fn a_program_that_fails_is_made_short() {
    fn planted(steps: Vec<Step>) -> TestCaseResult {
        let mut after_fork = steps.iter().skip_while(|(_, _, action)| !matches!(action, Action::Fork(_)));
        match after_fork.any(|(_, _, action)| matches!(action, Action::Unmap(_))) {
            true => Err(TestCaseError::fail("planted")),
            false => Ok(()),
        }
    }
    fn shortest<Mode: PagingMode>() -> usize {
        match search::<Mode>(16, planted) {
            Err(TestError::Fail(_, steps)) => steps.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!([shortest::<FourLevel>(), shortest::<Pae>(), shortest::<Small>()], [2; 3]);
}
