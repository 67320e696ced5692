//! Collapse and split on the simulated machine.

use super::CollapseError;
use crate::address_space::Mapping;
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::object::Object;
use crate::pgtable::{
    FourLevel, Level, PagingMode, Protection, leaf_at, pmd_offset, pte_offset_map, pte_offset_map_lock,
};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::rcu;
use crate::testing::{Process, Small, World, in_each_small_mode, map_anonymous, page, pages};
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
    in_each_small_mode!(collapse_while_adding, 0..8);
}

fn collapse_while_adding<Mode: PagingMode>(seed: u64) {
    const CPUS: u64 = 4;
    let world: World<Mode> = World::new(SimConfig::racy(256, CPUS as usize, seed));
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

/// A lockless walker holds on to the old table while it is collapsed: it sees an entry of before, or none of a table that
/// waits for it, never one of a table in its next life. So collapse waits for the walker before it empties the table.
#[test]
fn collapse_waits_for_lockless_walkers() {
    in_each_small_mode!(collapse_under_walkers, 0..8);
}

fn collapse_under_walkers<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = World::new(SimConfig::racy(256, 3, seed));
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
