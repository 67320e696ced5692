//! What a huge fault finds and does, and what others make of a huge page, with nobody beside it.

use super::{deposits, four_level, level_at, small};
use crate::address::VirtRange;
use crate::address_space::{CollapseError, MapError, Mapping};
use crate::fault::{FaultError, Resolution, handle_mm_fault};
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::pgtable::{
    FourLevel, HugeSize, Level, Pae, PagingMode, Protection, Table, Tiny, huge_pte_lock, huge_pte_lockptr, pmd_lockptr,
    pmd_offset, pud_lockptr,
};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::rcu;
use crate::testing::{Process, Small, World, frame_at, map_huge, page, pages};
use crate::vma::Access;

/// I7, I14: one entry, one deposit, and it counts as a linked table.
#[test]
fn a_write_gets_a_huge_page_and_its_table_is_set_aside() {
    let world = four_level();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0x200, 0x600));
        let process = Process::enter(&world, &mm);
        process.write(page(0x234), 7).unwrap();
        assert_eq!(level_at(&mm, page(0x200)), Some(Level::Pmd));
        assert_eq!(level_at(&mm, page(0x400)), None);
        assert_eq!(deposits(&mm, page(0x200)), 1);
        // PUD and PMD table, and the deposit.
        assert_eq!(mm.linked_table_bytes(), 3 * 4096);
        assert_eq!((process.read(page(0x234)), process.read(page(0x3ff))), (Ok(7), Ok(0)));
        assert_eq!(StatsSnapshot::sum(world.machine.handle().cpus())[Counter::HugeFault], 1);
        mm.munmap(pages(0x200, 0x600)).unwrap();
        assert_eq!(mm.linked_table_bytes(), 0);
    });
}

#[test]
fn a_read_shows_the_zero_page_and_leaves_the_span_to_small_pages() {
    let world = four_level();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0x200, 0x400));
        let process = Process::enter(&world, &mm);
        assert_eq!(process.read(page(0x210)), Ok(0));
        process.write(page(0x210), 1).unwrap();
        assert_eq!(level_at(&mm, page(0x210)), Some(Level::Pte));
    });
}

#[test]
fn a_span_that_the_region_does_not_fill_gets_small_pages() {
    let world = four_level();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0x201, 0x600));
        let process = Process::enter(&world, &mm);
        process.write(page(0x3ff), 1).unwrap();
        process.write(page(0x400), 1).unwrap();
        assert_eq!((level_at(&mm, page(0x3ff)), level_at(&mm, page(0x400))), (Some(Level::Pte), Some(Level::Pmd)));
    });
}

#[test]
fn without_a_block_small_pages_do() {
    // No 512 frames in a row that begin at a multiple of 512.
    let world: World<FourLevel> = World::new(SimConfig::calm(0x200, 1, 1));
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0x200, 0x400));
        assert_eq!(handle_mm_fault(&mm, page(0x200), Access::Write), Ok(Resolution::AnonymousPage));
        // And without one only for a moment.
        let mm = world.mm();
        map_huge(&mm, pages(0, 0x200));
        world.machine.handle().local().injection.fail_nth(4);
        let resolved = handle_mm_fault(&mm, page(0), Access::Write);
        world.machine.handle().local().injection.stop();
        assert_eq!(resolved, Ok(Resolution::AnonymousPage));
    });
}

/// The whole entry goes, or the rest of it survives in small pages with what was written and the same frames.
#[test]
fn unmapping_a_part_splits_and_the_rest_keeps_its_contents() {
    let world = four_level();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0x200, 0x400));
        let process = Process::enter(&world, &mm);
        (0x200..0x400).for_each(|number| process.write(page(number), number).unwrap());
        let frames: Vec<_> = (0x200..0x400).map(|number| frame_at(&world, &mm, page(number)).unwrap().0).collect();
        let first = frames[0];
        let free = world.free_frames();
        mm.munmap(pages(0x280, 0x300)).unwrap();
        assert_eq!((level_at(&mm, page(0x200)), deposits(&mm, page(0x200))), (Some(Level::Pte), 0));
        assert_eq!(mm.linked_table_bytes(), 3 * 4096, "a split changes no count (spec 3.2)");
        world.settle();
        assert!(world.free_frames() >= free + 0x80, "the unmapped part is free");
        for number in 0x200..0x400 {
            if (0x280..0x300).contains(&number) {
                assert_eq!(process.read(page(number)), Err(FaultError::NotMapped));
                continue;
            }
            assert_eq!(process.read(page(number)), Ok(number));
            let frame = frame_at(&world, &mm, page(number)).unwrap();
            assert_eq!(frame.0, first + number - 0x200);
            let descriptor = world.memory.memmap().page(frame);
            assert_eq!((descriptor.refcount(), descriptor.mapcount(), descriptor.order()), (1, 1, 0));
        }
    });
}

#[test]
fn protecting_all_of_it_keeps_it_huge_and_a_part_splits_it() {
    let world = four_level();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0x200, 0x400));
        let process = Process::enter(&world, &mm);
        process.write(page(0x200), 1).unwrap();
        mm.mprotect(pages(0x200, 0x400), Protection::READ).unwrap();
        assert_eq!(process.write(page(0x201), 2), Err(FaultError::Forbidden));
        assert_eq!(process.read(page(0x200)), Ok(1));
        mm.mprotect(pages(0x200, 0x400), Protection::READ_WRITE).unwrap();
        process.write(page(0x201), 2).unwrap();
        assert_eq!(level_at(&mm, page(0x200)), Some(Level::Pmd));
        mm.mprotect(pages(0x300, 0x301), Protection::READ).unwrap();
        assert_eq!(level_at(&mm, page(0x200)), Some(Level::Pte));
        assert_eq!(process.write(page(0x300), 2), Err(FaultError::Forbidden));
        process.write(page(0x2ff), 3).unwrap();
        assert_eq!((process.read(page(0x201)), process.read(page(0x300))), (Ok(2), Ok(0)));
        world.machine.assert_coherent();
    });
}

/// Both sizes: each under the lock of the table that holds the entry, none with a deposit, none ever cut.
#[test]
fn explicit_huge_pages_have_their_size_and_are_never_cut() {
    let world = small();
    world.alone(|| {
        let mm = world.mm();
        let map = |range, size| mm.mmap(range, Protection::READ_WRITE, Mapping::Huge(size));
        assert_eq!(map(pages(1, 5), HugeSize::Pmd), Err(MapError::CutsHugePage));
        assert_eq!(map(pages(16, 28), HugeSize::Pud), Err(MapError::CutsHugePage));
        map(pages(4, 12), HugeSize::Pmd).unwrap();
        map(pages(16, 48), HugeSize::Pud).unwrap();
        let process = Process::enter(&world, &mm);
        for number in [4, 11, 16, 31, 47] {
            process.write(page(number), number).unwrap();
        }
        for number in [4, 11, 16, 31, 47] {
            assert_eq!(process.read(page(number)), Ok(number));
        }
        assert_eq!(process.read(page(40)), Ok(0));
        assert_eq!((level_at(&mm, page(5)), level_at(&mm, page(40))), (Some(Level::Pmd), Some(Level::Pud)));
        assert_eq!((deposits(&mm, page(4)), mm.linked_table_bytes()), (0, 4096));
        for cut in [pages(5, 8), pages(4, 6), pages(20, 32)] {
            assert_eq!(mm.munmap(cut), Err(MapError::CutsHugePage));
            assert_eq!(mm.mprotect(cut, Protection::READ), Err(MapError::CutsHugePage));
        }
        assert!(!mm.split_huge_page(page(4)), "an explicit huge page was split");
        mm.mprotect(pages(16, 32), Protection::READ).unwrap();
        assert_eq!(process.write(page(16), 1), Err(FaultError::Forbidden));
        assert_eq!(process.read(page(16)), Ok(16));
        mm.mprotect(pages(16, 32), Protection::READ_WRITE).unwrap();
        process.write(page(16), 1).unwrap();
        mm.munmap(pages(32, 48)).unwrap();
        assert_eq!(process.read(page(47)), Err(FaultError::NotMapped));
        world.machine.assert_coherent();
    });
}

/// A huge page is one address space's: `fork` shares its small pages, which are copied when written, and the parent's can
/// be collapsed again when they are its alone.
#[test]
fn fork_splits_what_it_shares_and_leaves_explicit_pages_behind() {
    let world = small();
    world.alone(|| {
        let parent = world.mm();
        map_huge(&parent, pages(0, 4));
        parent.mmap(pages(4, 8), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pmd)).unwrap();
        let process = Process::enter(&world, &parent);
        (0..8).for_each(|number| process.write(page(number), number + 1).unwrap());
        let child = parent.fork().unwrap();
        assert_eq!((level_at(&parent, page(0)), level_at(&child, page(0))), (Some(Level::Pte), Some(Level::Pte)));
        assert_eq!((level_at(&parent, page(4)), deposits(&parent, page(0))), (Some(Level::Pmd), 0));
        assert_eq!(parent.collapse_huge_page(page(0)), Err(CollapseError::Shared));
        process.write(page(0), 100).unwrap();
        drop(process);
        let process = Process::enter(&world, &child);
        assert_eq!((process.read(page(0)), process.read(page(3))), (Ok(1), Ok(4)));
        assert_eq!(process.read(page(4)), Err(FaultError::NotMapped));
        drop((process, child));
        parent.collapse_huge_page(page(0)).unwrap();
        let process = Process::enter(&world, &parent);
        assert_eq!((process.read(page(0)), process.read(page(3)), process.read(page(7))), (Ok(100), Ok(4), Ok(8)));
    });
}

#[test]
fn mremap_moves_the_small_pages_and_the_wish_for_huge_ones() {
    let world = small();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0, 8));
        mm.mmap(pages(8, 12), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pmd)).unwrap();
        let process = Process::enter(&world, &mm);
        (0..4).for_each(|number| process.write(page(number), number + 1).unwrap());
        mm.mremap(pages(0, 8), pages(16, 28)).unwrap();
        assert!((0..4).all(|number| process.read(page(16 + number)) == Ok(number + 1)));
        assert_eq!(process.read(page(0)), Err(FaultError::NotMapped));
        process.write(page(24), 1).unwrap();
        assert_eq!((level_at(&mm, page(16)), level_at(&mm, page(24))), (Some(Level::Pte), Some(Level::Pmd)));
        assert_eq!(mm.mremap(pages(8, 12), pages(32, 36)), Err(MapError::CutsHugePage));
        world.machine.assert_coherent();
    });
}

/// DONTNEED of all of it takes it away, of a part splits it.
#[test]
fn dontneed_takes_a_huge_page_away_or_splits_it() {
    let world = small();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0, 8));
        let process = Process::enter(&world, &mm);
        (0..8).for_each(|number| process.write(page(number), number + 1).unwrap());
        mm.madvise_dontneed(pages(0, 6)).unwrap();
        assert_eq!((level_at(&mm, page(0)), level_at(&mm, page(6))), (None, Some(Level::Pte)));
        let seen: Vec<_> = (0..8).map(|number| process.read(page(number)).unwrap()).collect();
        assert_eq!(seen, [0, 0, 0, 0, 0, 0, 7, 8]);
        world.machine.assert_coherent();
    });
}

/// Spec 10: exactly the lock that a walker takes for the table that holds the entry.
#[test]
fn an_explicit_huge_page_has_the_lock_of_its_size() {
    let world = small();
    world.alone(|| {
        let mm = world.mm();
        mm.mmap(pages(0, 4), Protection::READ_WRITE, Mapping::Huge(HugeSize::Pmd)).unwrap();
        handle_mm_fault(&mm, page(0), Access::Write).unwrap();
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(&mm, &rcu, page(0)).unwrap();
        let top = Table::top(&mm);
        let (pmd, pud) = (pmds.slot(page(0)), top.slot(page(0)));
        assert!(core::ptr::eq(huge_pte_lockptr(&mm, HugeSize::Pmd, pmd), pmd_lockptr(&mm, pmd)));
        assert!(core::ptr::eq(huge_pte_lockptr(&mm, HugeSize::Pud, pud), pud_lockptr(&mm, pud)));
        drop(huge_pte_lock(&mm, HugeSize::Pud, pud));
    });
}

#[test]
fn a_size_the_mode_does_not_have_is_refused() {
    fn check<Mode: PagingMode>() {
        let world: World<Mode> = World::new(SimConfig::calm(64, 1, 1));
        world.alone(|| {
            let mm = world.mm();
            let range = VirtRange::new(0, HugeSize::Pud.bytes::<Mode>()).unwrap();
            let mapped = mm.mmap(range, Protection::READ_WRITE, Mapping::Huge(HugeSize::Pud));
            assert_eq!(mapped, Err(MapError::NoSuchPageSize));
        });
    }
    check::<Tiny>();
    // Its PUD is folded into the top table, which is no PUD table.
    check::<Pae>();
}

/// A CPU that knows no entries of 1 GiB takes one for corrupt: the mapping is refused, not the first access to it.
#[test]
fn a_size_the_machine_does_not_have_is_refused() {
    let world: World<Small> = World::new(SimConfig { gigabyte_pages: false, ..SimConfig::calm(256, 1, 1) });
    world.alone(|| {
        let mm = world.mm();
        let map = |size| mm.mmap(pages(16, 32), Protection::READ_WRITE, Mapping::Huge(size));
        assert_eq!(map(HugeSize::Pud), Err(MapError::NoSuchPageSize));
        map(HugeSize::Pmd).unwrap();
        handle_mm_fault(&mm, page(16), Access::Write).unwrap();
    });
}

/// R34: block, deposit and constructor may each fail, for good or once; the fault succeeds or is out of memory.
#[test]
fn every_allocation_of_a_huge_fault_may_fail() {
    let world = small();
    world.alone(|| {
        for from_on in [false, true] {
            for nth in 1..12 {
                let mm = world.mm();
                map_huge(&mm, pages(0, 4));
                let machine = world.machine.handle();
                let injection = &machine.local().injection;
                if from_on {
                    injection.fail_from(nth)
                } else {
                    injection.fail_nth(nth)
                }
                let resolved = handle_mm_fault(&mm, page(0), Access::Write);
                injection.stop();
                assert!(matches!(resolved, Ok(_) | Err(FaultError::OutOfMemory)), "{resolved:?}");
                assert!(from_on || resolved.is_ok(), "one failure is made good");
            }
        }
    });
}
