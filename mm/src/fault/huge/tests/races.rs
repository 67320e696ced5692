//! Huge faults, splits and changes of rights on all CPUs at once.

use super::{deposits, level_at};
use crate::address_space::Mapping;
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::pgtable::{HugeSize, Level, PagingMode, Protection, leaf_at};
use crate::stats::{Counter, StatsSnapshot};
use crate::testing::{Process, Small, World, in_each_mode, in_each_small_mode, map_anonymous, map_huge, page, pages};
use std::sync::atomic::{AtomicU64, Ordering};

const CPUS: u64 = 4;

fn racy<Mode: PagingMode>(frames: usize, seed: u64) -> World<Mode> {
    World::new(SimConfig::racy(frames, CPUS as usize, seed))
}

/// R13, I14: all CPUs fault in the four spans below one PMD table while one of them unmaps and maps one of the spans.
/// Deposits and huge entries agree at the end, and nothing leaks.
#[test]
fn huge_faults_of_one_pmd_table_race_with_each_other_and_with_a_zap() {
    in_each_small_mode!(fault_and_zap, 0..12);
}

fn fault_and_zap<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(256, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        (0..4).for_each(|span| map_huge(&mm, pages(4 * span, 4 * span + 4)));
        mm
    });
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        for round in 0..40 {
            if cpu.0 == 0 {
                mm.munmap(pages(4, 8)).unwrap();
                world.machine.assert_no_translation(mm.pgd(), pages(4, 8));
                map_huge(&mm, pages(4, 8));
            }
            for span in 0..4 {
                let number = 4 * span + u64::from(cpu.0) % 4;
                match process.write(page(number), round) {
                    Ok(()) | Err(FaultError::NotMapped) => (),
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        (0..4).for_each(|span| process.write(page(4 * span), 1).unwrap());
        drop(process);
        assert!((0..4).all(|span| level_at(&mm, page(4 * span)) == Some(Level::Pmd)));
        assert_eq!(deposits(&mm, page(0)), 4);
        drop(mm);
    });
}

/// I34: two CPUs drop what faults of both sizes have put there, and the CPUs' walkers look around all the time.
#[test]
fn advice_races_with_faults_of_both_sizes() {
    in_each_small_mode!(advise_and_fault, 0..6);
}

fn advise_and_fault<Mode: PagingMode>(seed: u64) {
    let config = SimConfig { speculation: 4, ..SimConfig::racy(256, CPUS as usize, seed) };
    let world: World<Mode> = World::new(config);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0, 8));
        mm
    });
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        let own = u64::from(cpu.0);
        for round in 0..60 {
            if cpu.0 < 2 {
                mm.madvise_dontneed(pages(0, 8)).unwrap();
            }
            if (round + own) % 3 == 0 {
                process.read(page(own)).unwrap();
            }
            process.write(page(own), round).unwrap();
            let found = process.read(page(own)).unwrap();
            assert!(found == 0 || found == round, "{found} after {round}");
            process.write(page(4 + own), round).unwrap();
        }
    });
    world.alone(|| drop(mm));
}

/// R12, I28, I34: a huge page is split again and again, and has its rights changed as a whole, while others look without
/// a lock and write. Nobody sees none; no increment is lost; no CPU has translations of both sizes.
#[test]
fn splits_and_changes_of_rights_race_with_faults_and_lockless_walkers() {
    in_each_small_mode!(split_and_protect, 0..6);
}

fn split_and_protect<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(256, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0, 4));
        let process = Process::enter(&world, &mm);
        process.write(page(0), 0).unwrap();
        drop(process);
        mm
    });
    let done = AtomicU64::new(0);
    let landed = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 0 {
            for _ in 0..40 {
                mm.mprotect(pages(0, 4), Protection::READ).unwrap();
                mm.mprotect(pages(0, 4), Protection::READ_WRITE).unwrap();
                assert!(mm.split_huge_page(page(0)));
                mm.mprotect(pages(1, 3), Protection::READ).unwrap();
                mm.mprotect(pages(0, 4), Protection::READ_WRITE).unwrap();
                // The range is several regions by now; a new start.
                mm.munmap(pages(0, 4)).unwrap();
                map_huge(&mm, pages(0, 4));
                landed.store(0, Ordering::SeqCst);
                process.write(page(3), 0).unwrap();
                if level_at(&mm, page(0)) != Some(Level::Pmd) {
                    // Somebody read first.
                    mm.collapse_huge_page(page(0)).unwrap();
                }
            }
            done.store(1, Ordering::Relaxed);
            return;
        }
        while done.load(Ordering::Relaxed) == 0 {
            match process.fetch_add(page(u64::from(cpu.0)), 1) {
                Ok(_) | Err(FaultError::Forbidden | FaultError::NotMapped) => (),
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    world.alone(|| drop(mm));
}

/// I28 alone: the entry under split, and under protection change, is never none to a lockless look, and always leads to
/// the same frame.
#[test]
fn an_entry_under_split_or_protection_change_is_never_seen_as_none() {
    in_each_small_mode!(look_without_a_lock, 0..12);
}

fn look_without_a_lock<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(256, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0, 4));
        // Each round has a span of its own: a region, so that protection is changed as a whole.
        (1..4).for_each(|span| map_huge(&mm, pages(4 * span, 4 * span + 4)));
        let process = Process::enter(&world, &mm);
        (0..4).for_each(|span| process.write(page(4 * span), 1).unwrap());
        drop(process);
        mm
    });
    let done = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 0 {
            for span in 0..4 {
                for _ in 0..10 {
                    mm.mprotect(pages(4 * span, 4 * span + 4), Protection::READ).unwrap();
                    mm.mprotect(pages(4 * span, 4 * span + 4), Protection::READ_WRITE).unwrap();
                }
                assert!(mm.split_huge_page(page(4 * span)));
            }
            done.store(1, Ordering::Relaxed);
            return;
        }
        while done.load(Ordering::Relaxed) == 0 {
            for span in 0..4 {
                let (_, entry) = leaf_at(&mm, page(4 * span)).expect("an entry under change was none (I28)");
                assert!(entry.is_present() || entry.is_huge(), "{entry:?}");
                assert_eq!(process.read(page(4 * span)), Ok(1));
            }
        }
    });
    world.alone(|| drop(mm));
}

/// The same with real sizes: 512 entries to fill while others fault on them.
#[test]
fn a_split_of_two_megabytes_races_with_increments() {
    in_each_mode!(split_while_adding, 0..4);
}

fn split_while_adding<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(0xe00, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0x200, 0x400));
        mm
    });
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        for number in 0x200..0x240 {
            process.fetch_add(page(number * 8 % 0x200 + 0x200), 1).unwrap();
            if cpu.0 == 0 && number == 0x210 {
                assert!(mm.split_huge_page(page(0x200)));
            }
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        for number in (0x200..0x400).step_by(8) {
            assert_eq!(process.read(page(number)), Ok(CPUS));
        }
        drop(process);
        drop(mm);
    });
}

/// There are fewer blocks than CPUs that want one for the same page: whoever finds none waits for those who did, and finds
/// the page.
#[test]
fn a_race_for_the_last_block_leaves_nobody_without_memory() {
    for seed in 0..8 {
        let world: World<Small> = racy(64, seed);
        let mm = world.alone(|| {
            let mm = world.mm();
            mm.mmap(pages(16, 32), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pud)).unwrap();
            mm
        });
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            process.write(page(16 + u64::from(cpu.0)), 1).unwrap();
        });
        world.alone(|| drop(mm));
    }
}

/// Explicit pages of both sizes: one page each, whoever is faster, and every increment in it.
#[test]
fn explicit_huge_faults_race() {
    for seed in 0..12 {
        let world: World<Small> = racy(256, seed);
        let mm = world.alone(|| {
            let mm = world.mm();
            mm.mmap(pages(0, 16), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pmd)).unwrap();
            mm.mmap(pages(16, 32), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pud)).unwrap();
            map_anonymous(&mm, pages(32, 33));
            mm
        });
        world.machine.run_all(|_| {
            let process = Process::enter(&world, &mm);
            (0..33).for_each(|number| {
                process.fetch_add(page(number), 1).unwrap();
            });
        });
        world.alone(|| {
            let process = Process::enter(&world, &mm);
            assert!((0..33).all(|number| process.read(page(number)) == Ok(CPUS)));
            drop(process);
            assert_eq!(StatsSnapshot::sum(world.machine.handle().cpus())[Counter::HugeFault], 5);
            drop(mm);
        });
    }
}
