//! Collapse and split on the simulated machine.

use super::CollapseError;
use crate::address_space::{MapError, Mapping, MmRef};
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::object::Object;
use crate::pgtable::{FourLevel, Level, Protection, leaf_at, pmd_offset, pte_offset_map, pte_offset_map_lock};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::rcu;
use crate::testing::{Process, Small, World, map_anonymous, page, pages};
use proptest::prelude::{ProptestConfig, Strategy, prop_oneof, proptest};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

fn small() -> World<Small> {
    World::new(SimConfig::calm(256, 2, 1))
}

#[test]
fn small_pages_become_one_huge_page_with_the_same_contents() {
    let world: World<FourLevel> = World::new(SimConfig::calm(0x900, 1, 1));
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x1f0, 0x410));
        let process = Process::enter(&world, &mm);
        // A third is written, a third shows the zero page, a third is not there.
        for number in 0x200..0x400 {
            match number % 3 {
                0 => process.write(page(number), number).unwrap(),
                1 => assert_eq!(process.read(page(number)), Ok(0)),
                _ => (),
            }
        }
        let bytes = mm.linked_table_bytes();
        mm.collapse_huge_page(page(0x345)).unwrap();
        assert_eq!(leaf_at(&mm, page(0x200)).map(|(level, _)| level), Some(Level::Pmd));
        assert_eq!(mm.linked_table_bytes(), bytes, "the old table is the deposit (I7)");
        for number in 0x200..0x400 {
            assert_eq!(process.read(page(number)), Ok(if number % 3 == 0 { number } else { 0 }));
        }
        world.machine.assert_coherent();
        // And back, out of the table it was before.
        assert!(mm.split_huge_page(page(0x200)));
        assert!((0x200..0x400).step_by(3).all(|number| process.read(page(number + 1)) == Ok(number + 1)));
        mm.collapse_huge_page(page(0x200)).unwrap();
        assert_eq!(mm.collapse_huge_page(page(0x200)), Err(CollapseError::NoSmallPages));
    });
}

#[test]
fn what_cannot_be_collapsed_is_left_alone() {
    let world = small();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(1, 12));
        let object = Object::create(world.memory, 4).unwrap();
        mm.mmap(pages(16, 20), Protection::READ_WRITE, Mapping::Object { object, first_page: 0 }).unwrap();
        let process = Process::enter(&world, &mm);
        process.write(page(1), 1).unwrap();
        process.write(page(16), 1).unwrap();
        assert_eq!(process.read(page(5)), Ok(0));
        assert_eq!(mm.collapse_huge_page(page(1)), Err(CollapseError::NotAnonymous));
        assert_eq!(mm.collapse_huge_page(page(16)), Err(CollapseError::NotAnonymous));
        assert_eq!(mm.collapse_huge_page(page(60)), Err(CollapseError::NotAnonymous));
        assert_eq!(mm.collapse_huge_page(page(4)), Err(CollapseError::NoSmallPages));
        assert_eq!(mm.collapse_huge_page(page(8)), Err(CollapseError::NoSmallPages));
        process.write(page(5), 5).unwrap();
        let machine = world.machine.handle();
        let injection = &machine.local().injection;
        injection.fail_from(1);
        assert_eq!(mm.collapse_huge_page(page(4)), Err(CollapseError::OutOfMemory));
        injection.stop();
        mm.collapse_huge_page(page(4)).unwrap();
        assert_eq!((process.read(page(1)), process.read(page(5)), process.read(page(16))), (Ok(1), Ok(5), Ok(1)));
    });
}

/// A collapse, a split and increments race: none is lost, whichever size of page it went to, and nobody reads what was
/// there before it (I29, I34, and the exclusion of faults that the module describes).
#[test]
fn collapse_and_split_race_with_increments() {
    const CPUS: u64 = 4;
    for seed in 0..8 {
        let world: World<Small> = World::new(SimConfig::racy(256, CPUS as usize, seed));
        let mm = world.alone(|| {
            let mm = world.mm();
            map_anonymous(&mm, pages(0, 8));
            mm
        });
        let added = AtomicU64::new(0);
        let done = AtomicU64::new(0);
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            if cpu.0 == 0 {
                let mut collapsed = 0;
                while collapsed < 12 {
                    match mm.collapse_huge_page(page(0)) {
                        Ok(()) => {
                            collapsed += 1;
                            assert!(mm.split_huge_page(page(0)), "somebody else split it");
                        }
                        Err(CollapseError::NoSmallPages) => world.machine.handle().pause(),
                        Err(error) => panic!("{error:?}"),
                    }
                }
                done.store(1, Ordering::Relaxed);
                return;
            }
            let mut last = [0; 4];
            while done.load(Ordering::Relaxed) == 0 {
                for number in 0..4 {
                    let before = process.fetch_add(page(number), 1).unwrap();
                    assert!(before >= last[number as usize], "an increment was lost");
                    last[number as usize] = before + 1;
                    added.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        world.alone(|| {
            let process = Process::enter(&world, &mm);
            let sum: u64 = (0..4).map(|number| process.read(page(number)).unwrap()).sum();
            assert_eq!(sum, added.load(Ordering::Relaxed));
            drop(process);
            drop(mm);
        });
        assert_eq!(StatsSnapshot::sum(world.machine.handle().cpus())[Counter::HugeCollapses], 12);
    }
}

/// A lockless walker holds on to the old table while it is collapsed: it sees an entry of before, or none of a table that
/// waits for it, never one of a table in its next life. So collapse waits for the walker before it empties the table.
#[test]
fn collapse_waits_for_lockless_walkers() {
    for seed in 0..8 {
        let world: World<Small> = World::new(SimConfig::racy(256, 3, seed));
        let mm = world.alone(|| {
            let mm = world.mm();
            map_anonymous(&mm, pages(0, 4));
            mm
        });
        let done = AtomicU64::new(0);
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            if cpu.0 == 0 {
                for _ in 0..20 {
                    process.write(page(0), 1).unwrap();
                    mm.collapse_huge_page(page(0)).unwrap();
                    assert!(mm.split_huge_page(page(0)));
                }
                done.store(1, Ordering::Relaxed);
                return;
            }
            while done.load(Ordering::Relaxed) == 0 {
                let section = rcu::read_lock(mm.machine());
                let Some(pmds) = pmd_offset(&mm, &section, page(0)) else { continue };
                let Some(pte) = pte_offset_map(&mm, pmds.slot(page(0)), page(0)) else { continue };
                let first = pte.load();
                if first.is_none() {
                    continue;
                }
                (0..8).for_each(|_| world.machine.handle().pause());
                assert_eq!(pte.load().pfn(), first.pfn(), "the table was emptied or filled anew under its reader");
                drop(pte);
                if let Some(locked) = pte_offset_map_lock(&mm, pmds.slot(page(0)), page(0)) {
                    (0..4).for_each(|_| world.machine.handle().pause());
                    assert_eq!(pmds.slot(page(0)).load(), locked.pmd(), "a locked table was unhooked (I16)");
                }
            }
        });
        world.alone(|| drop(mm));
    }
}

/// An operation of the property below, in pages.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map { first: u64, count: u64, huge: bool },
    Unmap { first: u64, count: u64 },
    Protect { first: u64, count: u64, write: bool },
    Write { at: u64, value: u64 },
    Read { at: u64 },
    Collapse { at: u64 },
    Split { at: u64 },
}

const COUNT: u64 = 24;

fn step() -> impl Strategy<Value = Step> {
    let range = (0..COUNT, 1..10_u64);
    let page = 0..COUNT;
    prop_oneof![
        4 => (range.clone(), proptest::bool::ANY).prop_map(|((first, count), huge)| Step::Map { first, count, huge }),
        2 => range.clone().prop_map(|(first, count)| Step::Unmap { first, count }),
        2 => (range, proptest::bool::ANY).prop_map(|((first, count), write)| Step::Protect { first, count, write }),
        8 => (page.clone(), 1..1000_u64).prop_map(|(at, value)| Step::Write { at, value }),
        3 => page.clone().prop_map(|at| Step::Read { at }),
        2 => page.clone().prop_map(|at| Step::Collapse { at }),
        2 => page.prop_map(|at| Step::Split { at }),
    ]
}

/// A page of the reference model: whether it may be written, and what it holds.
type Model = BTreeMap<u64, (bool, u64)>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the sizes of pages, memory behaves as a plain map from page to content and right; and as many tables are
    /// deposited as there are huge entries (I14).
    #[test]
    fn sizes_of_pages_are_invisible(steps in proptest::collection::vec(step(), 1..80)) {
        let world = small();
        world.alone(|| {
            let mm = world.mm();
            let process = Process::enter(&world, &mm);
            let mut model = Model::new();
            for step in steps {
                perform(&mm, &process, &mut model, step);
                world.machine.assert_coherent();
            }
            let huge = (0..COUNT).step_by(4).filter(|at| matches!(leaf_at(&mm, page(*at)), Some((Level::Pmd, _))));
            let (mut huge, mut deposited) = (huge.count(), 0);
            let section = rcu::read_lock(mm.machine());
            for at in (0..COUNT).step_by(if crate::config::USE_SPLIT_PMD_PTLOCKS { 16 } else { 64 }) {
                let pmds = pmd_offset(&mm, &section, page(at));
                deposited += pmds.map_or(0, |pmds| crate::pgtable::deposited_tables(&mm, pmds.slot(page(at))));
            }
            if !crate::config::USE_SPLIT_PMD_PTLOCKS && pmd_offset(&mm, &section, page(0)).is_none() {
                // The one list of the address space is reached through a PMD table, and the first is not there.
                huge = 0;
            }
            assert_eq!(deposited, huge, "deposits and huge entries differ (I14)");
        });
    }
}

fn perform(mm: &MmRef<Sim<Small>>, process: &Process<Small>, model: &mut Model, step: Step) {
    let rights = |write| if write { Protection::READ_WRITE } else { Protection::READ };
    match step {
        Step::Map { first, count, huge } => {
            let taken = model.range(first..first + count).next().is_some();
            let expected = if taken { Err(MapError::Overlap) } else { Ok(()) };
            let mapping = if huge { Mapping::AnonymousHuge } else { Mapping::Anonymous };
            assert_eq!(mm.mmap(pages(first, first + count), rights(true), mapping), expected);
            if !taken {
                model.extend((first..first + count).map(|number| (number, (true, 0))));
            }
        }
        Step::Unmap { first, count } => {
            assert_eq!(mm.munmap(pages(first, first + count)), Ok(()));
            model.retain(|number, _| !(first..first + count).contains(number));
        }
        Step::Protect { first, count, write } => {
            let whole = model.range(first..first + count).count() as u64 == count;
            let expected = if whole { Ok(()) } else { Err(MapError::NotMapped) };
            assert_eq!(mm.mprotect(pages(first, first + count), rights(write)), expected);
            if whole {
                model.range_mut(first..first + count).for_each(|(_, page)| page.0 = write);
            }
        }
        Step::Write { at, value } => {
            let expected = match model.get_mut(&at) {
                None => Err(FaultError::NotMapped),
                Some((false, _)) => Err(FaultError::Forbidden),
                Some(page) => {
                    page.1 = value;
                    Ok(())
                }
            };
            assert_eq!(process.write(page(at), value), expected);
        }
        Step::Read { at } => {
            let expected = model.get(&at).map_or(Err(FaultError::NotMapped), |page| Ok(page.1));
            assert_eq!(process.read(page(at)), expected);
        }
        Step::Collapse { at } => {
            // Whether it may depends on where regions end; in any case nobody notices.
            let _ = mm.collapse_huge_page(page(at));
        }
        Step::Split { at } => {
            mm.split_huge_page(page(at));
        }
    }
}
