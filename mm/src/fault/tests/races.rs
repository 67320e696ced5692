//! Faults of all CPUs at once, and against those who take their pages and rights away.

use crate::address::VirtRange;
use crate::address_space::Mapping;
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::object::Object;
use crate::pgtable::{Pae, PagingMode, Protection, Tiny, pte_at};
use crate::stats::{Counter, StatsSnapshot};
use crate::testing::{Process, World, frame_at, in_each_mode, map_anonymous, page, pages};
use std::sync::atomic::{AtomicU64, Ordering};

const CPUS: u64 = 4;

fn racy<Mode: PagingMode>(frames: usize, seed: u64) -> World<Mode> {
    World::new(SimConfig::racy(frames, CPUS as usize, seed))
}

/// R1, R2, I15: every CPU touches every page of every table first.
fn all_touch_all<Mode: PagingMode>(frames: usize, first: u64, count: u64, seed: u64) {
    let world: World<Mode> = racy(frames, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        // Whatever tables there are from the start go with it.
        map_anonymous(&mm, pages(first, first + count));
        mm.munmap(pages(first, first + count)).unwrap();
        map_anonymous(&mm, pages(first, first + count));
        mm
    });
    world.machine.run_all(|_| {
        let process = Process::enter(&world, &mm);
        for number in first..first + count {
            process.fetch_add(page(number), 1).unwrap();
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        let mut frames = std::collections::BTreeSet::new();
        for number in first..first + count {
            assert_eq!(process.read(page(number)), Ok(CPUS), "an increment is lost");
            let pfn = frame_at(&world, &mm, page(number)).expect("a mapped page");
            assert!(frames.insert(pfn), "{pfn:?} is mapped twice");
            let descriptor = world.memory.memmap().page(pfn);
            assert_eq!((descriptor.refcount(), descriptor.mapcount()), (1, 1));
        }
        world.settle();
        assert_eq!(world.tables_of(&mm), world.memory.page_tables(), "a spare table was kept (I7)");
        drop(process);
        drop(mm);
    });
}

#[test]
fn first_faults_on_the_same_pages_agree_on_one_frame() {
    in_each_mode!(all_touch_two_tables, 0..9);
}

fn all_touch_two_tables<Mode: PagingMode>(seed: u64) {
    all_touch_all::<Mode>(256, 0x1f0, 32, seed);
}

/// R31 besides: the first touches lie in two GiB, whose PMD tables an unmapping has taken away.
#[test]
fn first_faults_on_the_same_pages_agree_on_one_frame_in_three_levels() {
    (0..6).for_each(|seed| all_touch_all::<Pae>(256, (1 << 18) - 0x10, 32, seed));
}

#[test]
fn first_faults_on_the_same_pages_agree_on_one_frame_in_two_levels() {
    (0..16).for_each(|seed| all_touch_all::<Tiny>(128, 1, 14, seed));
}

#[test]
fn disjoint_slices_are_filled_by_their_owners() {
    in_each_mode!(fill_slices, 3..6);
}

fn fill_slices<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(2048, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x200 * (CPUS + 1)));
        mm
    });
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        let slice = 0x200 * (u64::from(cpu.0) + 1);
        for number in slice..slice + 64 {
            process.write(page(number), number).unwrap();
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        for slice in 1..=CPUS {
            for number in 0x200 * slice..0x200 * slice + 64 {
                assert_eq!(process.read(page(number)), Ok(number));
            }
        }
        drop(process);
        drop(mm);
    });
}

#[test]
fn an_object_shared_by_two_address_spaces_counts_every_increment() {
    in_each_mode!(share_an_object, 3..6);
}

fn share_an_object<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(512, seed);
    let (object, spaces) = world.alone(|| {
        let object = Object::create(world.memory, 100).unwrap();
        let spaces = [world.mm(), world.mm()];
        for mm in &spaces {
            for at in [0x1f0, 0x800] {
                let mapping = Mapping::Object { object: object.clone(), first_page: 10 };
                mm.mmap(pages(at, at + 32), Protection::READ_WRITE, mapping).unwrap();
            }
        }
        (object, spaces)
    });
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &spaces[cpu.index() % 2]);
        for number in 0..32 {
            process.fetch_add(page(0x1f0 + number), 1).unwrap();
            process.fetch_add(page(0x800 + number), 1).unwrap();
        }
    });
    world.alone(|| {
        for number in 0..32 {
            let pfn = object.resident(10 + number).expect("a touched page");
            assert_eq!(world.machine.handle().frame_words(pfn)[0], 2 * CPUS);
            let descriptor = world.memory.memmap().page(pfn);
            assert_eq!((descriptor.mapcount(), descriptor.refcount()), (4, 5));
        }
        drop((object, spaces));
    });
}

/// R3, R20, R41, I29: pages come and go under the feet of writers; no write goes astray, and nothing is translated
/// once `munmap` has returned. The simulated machine names any use of a stale translation or freed table.
#[test]
fn munmap_races_with_faults() {
    in_each_mode!(unmap_two_tables, 0..9);
}

fn unmap_two_tables<Mode: PagingMode>(seed: u64) {
    unmap_while_touching::<Mode>(pages(0x1f8, 0x208), seed);
}

/// The design's rule for none slots: the region has no tables when the fault begins.
#[test]
fn munmap_races_with_the_first_fault_of_a_region_without_tables() {
    in_each_mode!(unmap_all_tables, 0..12);
}

fn unmap_all_tables<Mode: PagingMode>(seed: u64) {
    unmap_while_touching::<Mode>(pages(0x4_0000, 0x4_0001), seed);
}

fn unmap_while_touching<Mode: PagingMode>(range: VirtRange, seed: u64) {
    const ROUNDS: u64 = 40;
    let world: World<Mode> = racy(512, seed);
    let mm = world.alone(|| world.mm());
    // Those of the other entries of the top table, where they are there from the start.
    let elsewhere = mm.linked_table_bytes().saturating_sub(4096);
    let round = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 0 {
            for _ in 0..ROUNDS {
                map_anonymous(&mm, range);
                // Something may have been written by now, or not; what is read is zero or a writer's number.
                assert!(process.read(range.start).unwrap() <= CPUS);
                mm.munmap(range).unwrap();
                world.machine.assert_no_translation(mm.pgd(), range);
                assert_eq!(mm.linked_table_bytes(), elsewhere, "tables of an empty address space");
                round.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        let mut touched = 0;
        while round.load(Ordering::Relaxed) < ROUNDS {
            let number = range.start.0 + (touched % range.pages()) * 4096;
            match process.write(crate::address::VirtAddr(number), u64::from(cpu.0)) {
                Ok(()) | Err(FaultError::NotMapped) => touched += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    world.alone(|| drop(mm));
}

/// Once `mprotect` has taken the right to write, no write lands any more.
#[test]
fn mprotect_races_with_writes() {
    in_each_mode!(protect_while_writing, 0..6);
}

fn protect_while_writing<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(512, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x208));
        mm
    });
    let done = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 0 {
            for _ in 0..40 {
                mm.mprotect(pages(0x202, 0x206), Protection::READ).unwrap();
                let seen: Vec<_> = (0x202..0x206).map(|number| process.read(page(number))).collect();
                for _ in 0..16 {
                    world.machine.handle().pause();
                }
                let later: Vec<_> = (0x202..0x206).map(|number| process.read(page(number))).collect();
                assert_eq!(seen, later, "a write landed after the right was gone");
                mm.mprotect(pages(0x202, 0x206), Protection::READ_WRITE).unwrap();
            }
            done.store(1, Ordering::Relaxed);
            return;
        }
        while done.load(Ordering::Relaxed) == 0 {
            for number in 0x200..0x208 {
                match process.fetch_add(page(number), 1) {
                    Ok(_) | Err(FaultError::Forbidden) => (),
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    });
    world.alone(|| drop(mm));
}

/// R41's shape where the entry is there already: `mprotect` takes a right away, and no fault gives it back. T2 finds its region
/// while that grants stores, and the entry before `mprotect` has come to it; T1 takes the right from region and entry; T2 locks
/// the entry.
#[test]
fn a_right_to_store_that_was_taken_is_not_given_back() {
    in_each_mode!(give_and_take, 0..3);
}

fn give_and_take<Mode: PagingMode>(seed: u64) {
    const FIRST: u64 = 0x200;
    const PAGES: u64 = 8;
    let range = pages(FIRST, FIRST + PAGES);
    let world: World<Mode> = World::new(SimConfig { delay: 3, ..SimConfig::racy(512, CPUS as usize, seed) });
    let mm = world.alone(|| {
        let mm = world.mm();
        let object = Object::create(world.memory, PAGES).unwrap();
        mm.mmap(range, Protection::READ_WRITE, Mapping::Object { object, first_page: 0 }).unwrap();
        mm
    });
    let done = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 0 {
            (FIRST..FIRST + PAGES).for_each(|number| assert!(process.read(page(number)).is_ok()));
            for _ in 0..30 {
                mm.mprotect(range, Protection::READ).unwrap();
                (0..16).for_each(|_| world.machine.handle().pause());
                for number in FIRST..FIRST + PAGES {
                    let entry = pte_at(&mm, page(number)).expect("a table with pages in it");
                    assert!(!entry.is_writable(), "page {number:#x} has its right back");
                }
                mm.mprotect(range, Protection::READ_WRITE).unwrap();
            }
            done.store(1, Ordering::Relaxed);
            return;
        }
        // From the end, where `mprotect` comes last.
        let mut number = 0;
        while done.load(Ordering::Relaxed) == 0 {
            number = (number + PAGES - 1) % PAGES;
            match process.fetch_add(page(FIRST + number), 1) {
                Ok(_) | Err(FaultError::Forbidden) => (),
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    world.alone(|| drop(mm));
}

/// Two CPUs store to a page that shows the zero page: one copy, nobody reads the old page afterwards (R18's shape).
#[test]
fn the_zero_page_is_replaced_once() {
    in_each_mode!(replace_the_zero_page, 0..9);
}

fn replace_the_zero_page<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(256, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x210));
        mm
    });
    world.machine.run_all(|_| {
        let process = Process::enter(&world, &mm);
        for number in 0x200..0x210 {
            process.read(page(number)).unwrap();
        }
        for number in 0x200..0x210 {
            let before = process.fetch_add(page(number), 1).unwrap();
            assert!(process.read(page(number)).unwrap() > before, "a read went to the old page");
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        assert!((0x200..0x210).all(|number| process.read(page(number)) == Ok(CPUS)));
        drop(process);
        drop(mm);
    });
    let raced = StatsSnapshot::sum(world.machine.handle().cpus())[Counter::ZeroPageUpgrade];
    assert_eq!(raced, 16, "each zero page is replaced once");
}

/// Spec 7.3: once a store to a fresh page is visible, no CPU reads the zero page in its place, whatever its TLB holds.
#[test]
fn nobody_reads_the_zero_page_after_its_replacement() {
    in_each_mode!(read_after_a_replacement, 0..6);
}

fn read_after_a_replacement<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(256, seed);
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x210));
        mm
    });
    let (readers, written) = (AtomicU64::new(0), AtomicU64::new(0));
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        let wait_for = |count: &AtomicU64, least| {
            while count.load(Ordering::Acquire) < least {
                world.machine.handle().pause();
            }
        };
        for number in 0..16 {
            if cpu.0 == 0 {
                wait_for(&readers, (number + 1) * (CPUS - 1));
                process.write(page(0x200 + number), 1).unwrap();
                written.fetch_add(1, Ordering::Release);
            } else {
                assert_eq!(process.read(page(0x200 + number)), Ok(0));
                readers.fetch_add(1, Ordering::Release);
                wait_for(&written, number + 1);
                assert_eq!(process.read(page(0x200 + number)), Ok(1), "the zero page is read");
            }
        }
    });
    world.alone(|| drop(mm));
}
