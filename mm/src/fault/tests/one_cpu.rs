//! What a fault finds, does and counts, with nobody beside it.

use crate::address_space::Mapping;
use crate::config::{ALLOC_SPLIT_PTLOCKS, USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use crate::cpu::CpuId;
use crate::fault::{FaultError, Resolution, handle_mm_fault};
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::object::Object;
use crate::pgtable::{FourLevel, Protection};
use crate::stats::{Counter, LockCounter, StatsSnapshot};
use crate::sync::LockClass;
use crate::testing::{Process, World, frame_at, map_anonymous, page, pages};
use crate::vma::Access;

fn calm() -> World<FourLevel> {
    World::new(SimConfig::calm(512, 2, 1))
}

#[test]
fn a_read_of_untouched_memory_shows_the_zero_page() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 32));
        let process = Process::enter(&world, &mm);
        assert_eq!(process.read(page(20)), Ok(0));
        assert_eq!(frame_at(&world, &mm, page(20)), Some(world.memory.zero_page()));
    });
}

#[test]
fn a_write_gets_a_frame_of_its_own() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 32));
        let process = Process::enter(&world, &mm);
        process.write(page(16), 7).unwrap();
        process.write(page(17), 8).unwrap();
        assert_eq!((process.read(page(16)), process.read(page(17))), (Ok(7), Ok(8)));
        assert_ne!(frame_at(&world, &mm, page(16)), frame_at(&world, &mm, page(17)));
    });
}

#[test]
fn a_write_after_a_read_replaces_the_zero_page_and_leaves_it_zero() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 32));
        let process = Process::enter(&world, &mm);
        assert_eq!(process.read(page(18)), Ok(0));
        process.write(page(18), 9).unwrap();
        assert_eq!(process.read(page(18)), Ok(9));
        assert_eq!(process.read(page(19)), Ok(0));
    });
}

#[test]
fn an_unmapped_address_is_an_error() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 32));
        let process = Process::enter(&world, &mm);
        assert_eq!(process.read(page(15)), Err(FaultError::NotMapped));
        assert_eq!(process.read(page(32)), Err(FaultError::NotMapped));
    });
}

#[test]
fn a_write_to_read_only_memory_is_an_error_and_changes_nothing() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        mm.mmap(pages(16, 17), Protection::READ, Mapping::Anonymous).unwrap();
        let process = Process::enter(&world, &mm);
        assert_eq!(process.write(page(16), 1), Err(FaultError::Forbidden));
        assert_eq!(process.read(page(16)), Ok(0));
    });
}

#[test]
fn an_object_mapped_twice_shows_one_frame() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        let object = Object::create(world.memory, 8).unwrap();
        for at in [16, 64] {
            let mapping = Mapping::Object { object: object.clone(), first_page: 0 };
            mm.mmap(pages(at, at + 8), Protection::READ_WRITE, mapping).unwrap();
        }
        let process = Process::enter(&world, &mm);
        process.write(page(19), 5).unwrap();
        assert_eq!(process.read(page(67)), Ok(5));
        assert_eq!(frame_at(&world, &mm, page(19)), object.resident(3));
        assert_eq!(frame_at(&world, &mm, page(67)), object.resident(3));
    });
}

/// The contents of every frame that holds address spaces, regions, tree nodes and objects, but not those of locks.
fn books_of_mm(world: &World<FourLevel>) -> Vec<Vec<u64>> {
    let memmap = world.memory.memmap();
    let frames = (memmap.first().0..memmap.end().0).map(crate::address::Pfn);
    let slab = frames.filter(|pfn| memmap.page(*pfn).page_type() == crate::page::PageType::Slab);
    let slab = slab.filter(|pfn| memmap.page(*pfn).slab_cache() != crate::slab::SlabKind::PtlLock as usize);
    slab.map(|pfn| world.machine.frame_words(pfn)).collect()
}

/// The design's sentence: one lock of any kind, the PTE table's, and no store to a line of the address space or region.
#[test]
fn a_fault_on_a_present_table_takes_one_lock_of_any_kind() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x400));
        let object = Object::create(world.memory, 8).unwrap();
        object.page(2).unwrap();
        mm.mmap(pages(0x400, 0x408), Protection::READ_WRITE, Mapping::Object { object, first_page: 0 }).unwrap();
        let process = Process::enter(&world, &mm);
        process.write(page(0x200), 1).unwrap();
        process.write(page(0x401), 1).unwrap();
        for (what, address, access) in [
            ("anonymous write", page(0x201), Access::Write),
            ("anonymous read", page(0x202), Access::Read),
            ("zero page replaced", page(0x202), Access::Write),
            ("object page", page(0x402), Access::Read),
        ] {
            // The sentence is about a CPU whose reserve holds a frame.
            let frame = world.memory.frames().alloc(world.machine.handle()).unwrap();
            world.memory.frames().free(world.machine.handle(), frame);
            let before = StatsSnapshot::sum(world.machine.handle().cpus());
            let books = books_of_mm(&world);
            handle_mm_fault(&mm, address, access).unwrap();
            // With the single lock, the lock itself is in the address space. Whoever replaces a page has to flush it,
            // and a flush raises the generation.
            let untouched = books.len() >= 4 && books == books_of_mm(&world);
            let may_touch = !USE_SPLIT_PTE_PTLOCKS || what == "zero page replaced";
            assert!(untouched || may_touch, "{what}: a store to shared books");
            let taken = StatsSnapshot::sum(world.machine.handle().cpus()).since(&before);
            assert_eq!(taken.locks(LockClass::ALL, LockCounter::Acquired), 1, "{what}: locks of any kind");
            assert_eq!(taken[Counter::MmapLockTaken], 0, "{what}: mmap_lock");
            assert_eq!(taken.locks(&[LockClass::Pte], LockCounter::Acquired), 1, "{what}: the PTE lock");
        }
    });
}

#[test]
fn a_fault_that_is_resolved_already_is_spurious() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 17));
        assert_eq!(handle_mm_fault(&mm, page(16), Access::Write), Ok(Resolution::AnonymousPage));
        assert_eq!(handle_mm_fault(&mm, page(16), Access::Write), Ok(Resolution::Spurious));
    });
}

/// R34 for the fault path: each allocation fails once, on its own and for good; nothing leaks (I6), and without
/// injection the same fault succeeds.
#[test]
fn every_allocation_of_a_fault_may_fail() {
    let world = calm();
    let points = world.alone(|| {
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        let mut nth = 1;
        loop {
            let mm = world.mm();
            map_anonymous(&mm, pages(16, 17));
            injection.fail_from(nth);
            let outcome = handle_mm_fault(&mm, page(16), Access::Write);
            let failed = injection.stop().failed;
            match outcome {
                Err(error) => assert_eq!(error, FaultError::OutOfMemory),
                Ok(_) => {
                    assert_eq!(failed, None, "a fault succeeds although an allocation failed for good");
                    break nth - 1;
                }
            }
            drop(mm);
            world.settle();
            assert_eq!(world.memory.page_tables(), 0);
            nth += 1;
        }
    });
    // PUD, PMD and PTE table: a frame and, where it has one of its own, a lock; the page.
    let locks = u32::from(USE_SPLIT_PMD_PTLOCKS) + u32::from(USE_SPLIT_PTE_PTLOCKS);
    let frame_of_locks = u32::from(ALLOC_SPLIT_PTLOCKS && locks > 0);
    assert_eq!(points, 4 + locks + frame_of_locks);
}

#[test]
fn an_allocation_that_fails_once_is_tried_again() {
    let world = calm();
    world.alone(|| {
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        for nth in 1..=4 {
            let mm = world.mm();
            map_anonymous(&mm, pages(16, 17));
            injection.fail_nth(nth);
            assert_eq!(handle_mm_fault(&mm, page(16), Access::Write), Ok(Resolution::AnonymousPage));
            injection.stop();
        }
    });
}

#[test]
fn memory_that_runs_out_is_an_error_and_all_of_it_comes_back() {
    let world: World<FourLevel> = World::new(SimConfig::calm(64, 1, 1));
    world.alone(|| {
        let (mm, other) = (world.mm(), world.mm());
        map_anonymous(&mm, pages(0x200, 0x400));
        map_anonymous(&other, pages(0x200, 0x210));
        let process = Process::enter(&world, &other);
        (0x200..0x210).for_each(|number| process.write(page(number), number).unwrap());
        drop(process);
        let process = Process::enter(&world, &mm);
        let fill =
            |from: u64| (from..0x400).take_while(|number| process.write(page(*number), *number).is_ok()).count() as u64;
        let written = fill(0x200);
        assert!((16..64).contains(&written), "{written} pages of 64 frames");
        assert_eq!(process.write(page(0x200 + written), 1), Err(FaultError::OutOfMemory));
        for number in 0x200..0x200 + written {
            assert_eq!(process.read(page(number)), Ok(number), "what was written stays");
        }
        drop(other);
        assert!(fill(0x200 + written) >= 16, "freed memory serves again");
    });
}
