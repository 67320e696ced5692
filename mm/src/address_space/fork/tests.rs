//! `fork` and the copies after it, on the simulated machine.

mod races;

use crate::address_space::{MapError, Mapping, Mm, MmRef};
use crate::cpu::CpuId;
use crate::fault::{Resolution, handle_mm_fault};
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::object::Object;
use crate::pgtable::{Entry, FourLevel, PagingMode, Protection, pte_at};
use crate::stats::{LockCounter, StatsSnapshot};
use crate::sync::LockClass;
use crate::testing::{Process, World, frame_at, map_anonymous, page, pages};
use crate::vma::Access;

fn calm() -> World<FourLevel> {
    World::new(SimConfig::calm(2048, 2, 1))
}

/// References to and mappings of the frame that page `number` shows.
fn counts<Mode: PagingMode>(world: &World<Mode>, mm: &Mm<Sim<Mode>>, number: u64) -> (u32, u32) {
    let pfn = frame_at(world, mm, page(number)).expect("a mapped page");
    let descriptor = world.memory.memmap().page(pfn);
    (descriptor.refcount(), descriptor.mapcount())
}

fn entry(mm: &Mm<Sim<FourLevel>>, number: u64) -> Entry {
    pte_at(mm, page(number)).unwrap_or(Entry::NONE)
}

/// Pages 16 to 20 of anonymous memory; 16 and 17 hold their number, 18 shows the zero page.
fn parent(world: &World<FourLevel>) -> MmRef<Sim<FourLevel>> {
    let mm = world.mm();
    map_anonymous(&mm, pages(16, 21));
    let process = Process::enter(world, &mm);
    process.write(page(16), 16).unwrap();
    process.write(page(17), 17).unwrap();
    process.read(page(18)).unwrap();
    drop(process);
    mm
}

#[test]
fn both_show_one_page_that_neither_may_write() {
    let world = calm();
    world.alone(|| {
        let mm = parent(&world);
        let child = mm.fork().unwrap();
        for number in [16, 17] {
            assert_eq!(frame_at(&world, &mm, page(number)), frame_at(&world, &child, page(number)));
            assert_eq!(counts(&world, &mm, number), (2, 2));
            assert!(!entry(&mm, number).is_writable() && !entry(&child, number).is_writable());
            assert!(entry(&mm, number).is_dirty(), "what the walker noted is lost (I35)");
        }
        assert_eq!(entry(&child, 18), entry(&mm, 18), "the zero page is shared as it is");
        assert!(entry(&child, 19).is_none());
        assert_eq!(mm.linked_table_bytes(), child.linked_table_bytes());
    });
}

#[test]
fn a_store_on_either_side_stays_there() {
    let world = calm();
    world.alone(|| {
        let mm = parent(&world);
        let process = Process::enter(&world, &mm);
        // The TLB holds the right to store when the fork begins.
        process.write(page(16), 1).unwrap();
        let child = mm.fork().unwrap();
        process.write(page(16), 2).unwrap();
        process.write(page(19), 3).unwrap();
        drop(process);
        let process = Process::enter(&world, &child);
        assert_eq!([16, 17, 18, 19].map(|number| process.read(page(number)).unwrap()), [1, 17, 0, 0]);
        process.write(page(17), 4).unwrap();
        process.write(page(18), 5).unwrap();
        drop(process);
        let process = Process::enter(&world, &mm);
        assert_eq!([16, 17, 18, 19].map(|number| process.read(page(number)).unwrap()), [2, 17, 0, 3]);
    });
}

#[test]
fn the_first_to_store_copies_and_the_last_has_the_page_to_itself() {
    let world = calm();
    world.alone(|| {
        let mm = parent(&world);
        let shared = frame_at(&world, &mm, page(16));
        let child = mm.fork().unwrap();
        assert_eq!(handle_mm_fault(&child, page(16), Access::Write), Ok(Resolution::PageCopied));
        assert_ne!(frame_at(&world, &child, page(16)), shared);
        assert_eq!((counts(&world, &mm, 16), counts(&world, &child, 16)), ((1, 1), (1, 1)));
        assert_eq!(handle_mm_fault(&mm, page(16), Access::Write), Ok(Resolution::PageReused));
        assert_eq!(frame_at(&world, &mm, page(16)), shared);
        assert!(entry(&mm, 16).is_writable() && entry(&mm, 16).is_dirty());
    });
}

#[test]
fn a_page_is_one_s_own_again_when_the_other_side_is_gone() {
    let world = calm();
    world.alone(|| {
        let mm = parent(&world);
        let child = mm.fork().unwrap();
        let grandchild = child.fork().unwrap();
        assert_eq!(counts(&world, &mm, 16), (3, 3));
        drop(mm);
        child.munmap(pages(16, 18)).unwrap();
        assert_eq!(counts(&world, &grandchild, 16), (1, 1));
        assert_eq!(handle_mm_fault(&grandchild, page(16), Access::Write), Ok(Resolution::PageReused));
        drop(child);
        let process = Process::enter(&world, &grandchild);
        assert_eq!((process.read(page(16)), process.read(page(17))), (Ok(16), Ok(17)));
    });
}

#[test]
fn mprotect_gives_no_right_to_store_to_a_shared_page() {
    let world = calm();
    world.alone(|| {
        let mm = parent(&world);
        let child = mm.fork().unwrap();
        for space in [&mm, &child] {
            space.mprotect(pages(16, 18), Protection::READ).unwrap();
            space.mprotect(pages(16, 18), Protection::READ_WRITE).unwrap();
            assert!(!entry(space, 16).is_writable() && !entry(space, 17).is_writable());
        }
        let process = Process::enter(&world, &child);
        process.write(page(16), 1).unwrap();
        drop(process);
        assert_eq!(Process::enter(&world, &mm).read(page(16)), Ok(16));
    });
}

#[test]
fn an_object_stays_shared() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        let object = Object::create(world.memory, 4).unwrap();
        mm.mmap(pages(32, 36), Protection::READ_WRITE, Mapping::Object { object: object.clone(), first_page: 0 })
            .unwrap();
        Process::enter(&world, &mm).write(page(33), 1).unwrap();
        let child = mm.fork().unwrap();
        assert!(entry(&mm, 33).is_writable(), "a shared page loses no right");
        let process = Process::enter(&world, &child);
        assert_eq!(process.read(page(33)), Ok(1));
        process.write(page(34), 2).unwrap();
        drop(process);
        assert_eq!(Process::enter(&world, &mm).read(page(34)), Ok(2));
    });
}

#[test]
fn an_empty_address_space_has_an_empty_child() {
    let world = calm();
    world.alone(|| {
        let child = world.mm().fork().unwrap();
        assert_eq!(child.linked_table_bytes(), 0);
        map_anonymous(&child, pages(16, 17));
    });
}

/// Spec 2.3: four pages copied or 32 none entries passed, and both locks are dropped; what comes after is copied all the
/// same, tables and holes between them included.
#[test]
fn the_locks_are_dropped_every_32_units_and_nothing_is_skipped() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x1f0, 0x1000));
        let process = Process::enter(&world, &mm);
        let written: Vec<u64> = (0x1f0..0x210).chain([0x3ff, 0x400, 0x777, 0xfff]).collect();
        written.iter().for_each(|number| process.write(page(*number), *number).unwrap());
        drop(process);
        let taken =
            || StatsSnapshot::sum(world.machine.handle().cpus()).locks(&[LockClass::Pte], LockCounter::Acquired);
        let before = taken();
        let child = mm.fork().unwrap();
        if crate::config::USE_SPLIT_PTE_PTLOCKS {
            // The first table's last 16 pages: 4 holds. The second: 16 pages and 495 none entries and a page: 4 and 16.
            // The third, with one page at the start: 17 and the rest; the fourth, one page amid: the same; the last.
            let holds = (taken() - before) / 2;
            assert!((4 + 19..=4 + 20 + 4 * 18).contains(&holds), "{holds} holds of both locks");
        }
        let process = Process::enter(&world, &child);
        written.iter().for_each(|number| assert_eq!(process.read(page(*number)), Ok(*number)));
        assert_eq!(process.read(page(0x778)), Ok(0));
    });
}

/// R34, I6: each allocation of a fork fails once, and from then on. Nothing leaks, and the parent has lost nothing.
#[test]
fn every_allocation_of_a_fork_may_fail() {
    let world = calm();
    let points = world.alone(|| {
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        let mut nth = 1;
        loop {
            let mm = parent(&world);
            map_anonymous(&mm, pages(0x4_0000, 0x4_0001));
            Process::enter(&world, &mm).write(page(0x4_0000), 9).unwrap();
            world.settle();
            let before = (world.free_frames(), world.memory.page_tables());
            injection.fail_from(nth);
            let outcome = mm.fork();
            let failed = injection.stop().failed;
            let outcome = outcome.map(drop);
            world.settle();
            assert_eq!((world.free_frames(), world.memory.page_tables()), before, "allocation {nth} leaks");
            let process = Process::enter(&world, &mm);
            for (number, value) in [(16, 16), (17, 17), (18, 0), (0x4_0000, 9)] {
                assert_eq!(process.fetch_add(page(number), 1), Ok(value), "allocation {nth}");
                assert_eq!(counts(&world, &mm, number), (1, 1));
            }
            match outcome {
                Err(error) => assert!(failed.is_some() && error == MapError::OutOfMemory, "{error:?}, {failed:?}"),
                Ok(()) => {
                    assert_eq!(failed, None, "a fork succeeds although an allocation failed for good");
                    break nth - 1;
                }
            }
            nth += 1;
        }
    });
    // The top table; the address space; two regions twice, two nodes twice; PUD, PMD twice, PTE twice, with their locks.
    assert!(points >= 15, "{points} injection points");
}
