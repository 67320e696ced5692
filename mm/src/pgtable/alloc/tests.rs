//! Constructors and destructors by themselves: what they count, what they undo, and what a debug build does not let pass.

use super::{
    UnpublishedTable, pagetable_dtor, pagetable_pmd_ctor, pagetable_pte_ctor, pmd_alloc_one, pmd_free, pte_alloc_one,
    pte_free,
};
use crate::address::Pfn;
use crate::address_space::MmRef;
use crate::config::{ALLOC_SPLIT_PTLOCKS, USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use crate::cpu::CpuId;
use crate::fault::{FaultError, handle_mm_fault};
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::memory::Memory;
use crate::page::PageType;
use crate::pgtable::{Entry, FourLevel, Level, PagingMode, pmd_install, pmd_offset, pte_offset_map};
use crate::sync::rcu;
use crate::testing::{World, frame_at, map_anonymous, page, pages};
use crate::vma::Access;
use std::collections::BTreeSet;

type TestWorld = World<FourLevel>;

fn calm() -> TestWorld {
    World::new(SimConfig::calm(256, 1, 1))
}

/// A frame as the allocator hands it out.
fn frame(world: &TestWorld) -> Pfn {
    world.memory.frames().alloc_zeroed(world.machine.handle()).unwrap()
}

/// An address space of pages 0x200 and 0x400, one PTE table apart. The first has its tables; the second lacks the last.
fn with_one_pte_table(world: &TestWorld) -> MmRef<Sim<FourLevel>> {
    let mm = world.mm();
    map_anonymous(&mm, pages(0x200, 0x201));
    map_anonymous(&mm, pages(0x400, 0x401));
    handle_mm_fault(&mm, page(0x200), Access::Write).unwrap();
    mm
}

/// A PMD table in the place of a PTE table would be read as one.
#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "a table of another level"))]
fn a_table_of_another_level_is_not_installed() {
    let world = calm();
    world.alone(|| {
        let mm = with_one_pte_table(&world);
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(&mm, &rcu, page(0x400)).unwrap();
        let vma = mm.find_vma(&rcu, page(0x400)).unwrap();
        let mut spare = Some(pmd_alloc_one(world.memory).unwrap());
        let _ = pmd_install(&mm, pmds.slot(page(0x400)), &mut spare, vma);
    });
}

/// Pages and PTE tables come from high memory as long as there is some, all other tables never (design decision 7).
#[test]
fn only_pages_and_pte_tables_lie_in_high_memory() {
    let world = TestWorld::new(SimConfig { low_frames: Some(64), ..SimConfig::calm(256, 1, 1) });
    let machine = world.machine.handle();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x400));
        let write = |number| handle_mm_fault(&mm, page(number), Access::Write);
        write(0x200).unwrap();
        {
            let rcu = rcu::read_lock(machine);
            let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
            let pmd = pmds.slot(page(0x200));
            assert!(machine.is_high(pmd.load().pfn()) && !machine.is_high(pmd.table().pfn()));
            let pte = pte_offset_map(&mm, pmd, page(0x200)).unwrap();
            assert!(machine.is_high(pte.load().pfn()));
            assert_eq!(machine.mapped(), 1);
        }
        assert!(!machine.is_high(mm.pgd().pfn()));
        // High memory ends, low memory goes on, and then there is an error.
        let failed = (0x201..0x400).find(|number| write(*number).is_err()).expect("an end of memory");
        assert_eq!(write(failed), Err(FaultError::OutOfMemory));
        assert_eq!(world.free_frames(), 0);
        assert!(!machine.is_high(frame_at(&world, &mm, page(failed - 1)).unwrap()));
    });
    world.assert_books_balance();
}

/// I4, I5: at each level a constructor makes one table of the frame, the destructor makes it a frame again.
#[test]
fn every_constructor_counts_one_table_and_the_destructor_takes_it_back() {
    let world = calm();
    world.alone(|| {
        for level in [Level::Pte, Level::Pmd, Level::Pud, Level::P4d, Level::Pgd] {
            let table = UnpublishedTable::allocate(world.memory, level).unwrap();
            let descriptor = world.memory.memmap().page(table.pfn());
            assert_eq!((descriptor.page_type(), world.memory.page_tables()), (PageType::Table, 1));
            let has_lock = match level {
                Level::Pte => USE_SPLIT_PTE_PTLOCKS,
                Level::Pmd => USE_SPLIT_PMD_PTLOCKS,
                _ => false,
            };
            assert_eq!(!descriptor.ptl.is_empty(), has_lock && ALLOC_SPLIT_PTLOCKS, "{level:?}: names a lock");
            drop(table);
            assert!(descriptor.page_type() != PageType::Table && world.memory.page_tables() == 0, "{level:?}");
            assert!(descriptor.ptl.is_empty());
        }
        pte_free(pte_alloc_one(world.memory).unwrap());
        pmd_free(pmd_alloc_one(world.memory).unwrap());
        assert_eq!(world.memory.page_tables(), 0);
    });
}

/// I4, spec 3.1: a constructor that fails has changed nothing, so that its frame goes back without a destructor.
#[test]
fn a_constructor_that_fails_changes_nothing() {
    let world = calm();
    world.alone(|| {
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        for (constructor, has_lock) in [
            (pagetable_pte_ctor as fn(&_, _) -> _, USE_SPLIT_PTE_PTLOCKS),
            (pagetable_pmd_ctor as fn(&_, _) -> _, USE_SPLIT_PMD_PTLOCKS),
        ] {
            let pfn = frame(&world);
            let descriptor = world.memory.memmap().page(pfn);
            injection.fail_nth(1);
            let constructed: Result<(), _> = constructor(world.memory, pfn);
            injection.stop();
            assert_eq!(constructed.is_err(), has_lock);
            if constructed.is_ok() {
                pagetable_dtor(world.memory, pfn);
            }
            assert_eq!((descriptor.page_type(), world.memory.page_tables()), (PageType::Data, 0));
            assert!(descriptor.ptl.is_empty());
            world.memory.frames().free(world.machine.handle(), pfn);
        }
    });
}

/// I4.
#[test]
#[should_panic(expected = "which is in use")]
fn a_second_constructor_is_caught() {
    let world = calm();
    world.alone(|| {
        let pfn = frame(&world);
        assert!(pagetable_pte_ctor(world.memory, pfn).is_ok());
        // Its lock alone would be caught too (I9), so the second is of a level without one.
        super::pagetable_pud_ctor(world.memory, pfn);
    });
}

/// I4.
#[test]
#[should_panic(expected = "which is no table")]
fn a_second_destructor_is_caught() {
    let world = calm();
    world.alone(|| {
        let pfn = frame(&world);
        assert!(pagetable_pte_ctor(world.memory, pfn).is_ok());
        pagetable_dtor(world.memory, pfn);
        pagetable_dtor(world.memory, pfn);
    });
}

/// I8: a frame that a slab has cannot become a table: the lock's word is the slab's.
#[test]
#[should_panic(expected = "which is in use")]
fn a_slab_frame_does_not_become_a_table() {
    let world = calm();
    world.alone(|| {
        let _mm = world.mm();
        let memmap = world.memory.memmap();
        let mut frames = (memmap.first().0..memmap.end().0).map(Pfn);
        let slab = frames.find(|pfn| memmap.page(*pfn).page_type() == PageType::Slab).unwrap();
        super::pagetable_pud_ctor(world.memory, slab);
    });
}

/// A debug build does not free a table frame whose destructor has not run (I4, I8).
#[test]
#[should_panic(expected = "but it is Table")]
fn a_table_without_its_destructor_is_not_freed() {
    let world = calm();
    world.alone(|| {
        let pfn = pte_alloc_one(world.memory).unwrap().into_pfn();
        world.memory.frames().free(world.machine.handle(), pfn);
    });
}

/// A debug build does not use a table whose constructor has not run (I3).
#[test]
#[should_panic(expected = "used as a table without a constructor")]
fn a_table_without_its_constructor_is_not_used() {
    let world = calm();
    world.alone(|| {
        let mm = with_one_pte_table(&world);
        let machine = mm.machine();
        let rcu = rcu::read_lock(machine);
        let pmds = pmd_offset(&mm, &rcu, page(0x400)).unwrap();
        let index = FourLevel::index(Level::Pmd, page(0x400));
        machine.set_frame_word(pmds.pfn(), index, Entry::table(frame(&world)).0);
        pte_offset_map(&mm, pmds.slot(page(0x400)), page(0x400));
    });
}

/// The same after the destructor (R5, I11).
#[test]
#[should_panic(expected = "used as a table without a constructor")]
fn a_table_after_its_destructor_is_not_used() {
    let world = calm();
    world.alone(|| {
        let mm = with_one_pte_table(&world);
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
        pagetable_dtor(world.memory, pmds.slot(page(0x200)).load().pfn());
        pte_offset_map(&mm, pmds.slot(page(0x200)), page(0x200));
    });
}

/// I12.
#[test]
#[should_panic(expected = "I12")]
#[cfg(not(feature = "single-lock"))]
fn a_table_whose_lock_is_held_is_not_destroyed() {
    let world = calm();
    world.alone(|| {
        let mm = with_one_pte_table(&world);
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
        let pmd = pmds.slot(page(0x200));
        let _locked = crate::pgtable::pte_offset_map_lock(&mm, pmd, page(0x200)).unwrap();
        pagetable_dtor(world.memory, pmd.load().pfn());
    });
}

/// The frames of all tables below `table`, which must each come up once.
fn collect_tables(memory: &'static Memory<Sim<FourLevel>>, table: Entry, level: Level, found: &mut BTreeSet<u64>) {
    assert!(found.insert(table.pfn().0), "{table:?} hangs in two slots");
    let Some(below) = FourLevel::below(level) else { return };
    let words = memory.machine().frame_words(table.pfn());
    for entry in words.into_iter().map(Entry).filter(|entry| entry.is_table()) {
        collect_tables(memory, entry, below, found);
    }
}

/// I2, I5: after faults of all CPUs and a fork, and after an unmapping, each table hangs in one slot of one address space, and
/// all that are counted hang somewhere.
#[test]
fn each_table_hangs_in_one_slot() {
    let world = World::<FourLevel>::new(SimConfig::racy(512, 4, 7));
    let mm = world.alone(|| world.mm());
    world.alone(|| map_anonymous(&mm, pages(0x1f8, 0x808)));
    world.machine.run_all(|_| {
        for number in [0x1f8, 0x200, 0x3ff, 0x400, 0x600, 0x800] {
            handle_mm_fault(&mm, page(number), Access::Write).unwrap();
        }
    });
    world.alone(|| {
        let child = mm.fork().unwrap();
        let look = || {
            let mut found = BTreeSet::new();
            for space in [&mm, &child] {
                collect_tables(world.memory, Entry::table(space.pgd().pfn()), Level::Pgd, &mut found);
            }
            assert_eq!(found.len() as u64, world.memory.page_tables());
        };
        look();
        child.munmap(pages(0x400, 0x600)).unwrap();
        world.settle();
        look();
        drop((mm, child));
    });
}

/// I7, I15: a spare is taken by a none slot alone; it is counted from where it is linked to where it is unlinked.
#[test]
fn a_spare_table_is_taken_only_by_a_none_slot_and_counted_while_linked() {
    let world = calm();
    world.alone(|| {
        let mm = with_one_pte_table(&world);
        let linked = mm.linked_table_bytes();
        let mut spare = Some(pte_alloc_one(world.memory).unwrap());
        assert_eq!(mm.linked_table_bytes(), linked, "counted before it is linked");
        {
            let rcu = rcu::read_lock(mm.machine());
            let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
            let vma = mm.find_vma(&rcu, page(0x400)).unwrap();
            assert_eq!(pmd_install(&mm, pmds.slot(page(0x200)), &mut spare, vma), Ok(()));
            assert!(spare.is_some(), "a slot that has a table took another");
            assert_eq!(pmd_install(&mm, pmds.slot(page(0x400)), &mut spare, vma), Ok(()));
            assert!(spare.is_none() && mm.linked_table_bytes() == linked + 4096);
        }
        mm.munmap(pages(0x400, 0x401)).unwrap();
        assert_eq!(mm.linked_table_bytes(), linked, "counted until it was freed, not until it was unlinked");
    });
}
