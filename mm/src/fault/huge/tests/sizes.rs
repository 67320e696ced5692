//! The moment between two sizes: what faults may put where `DONTNEED` or `munmap` have just taken the other size away (I34).

use super::small;
use crate::cpu::CpuId;
use crate::fault::{Resolution, handle_mm_fault};
use crate::gather::MmuGather;
use crate::pgtable::{Regions, leaf_at, unmap_page_range};
use crate::testing::{Process, map_anonymous, map_huge, page, pages};
use crate::vma::Access;

/// I34, while one CPU's `DONTNEED` has taken a table with small pages away and not flushed it:
///
/// 1. CPU 0 has cached the small page 3.
/// 2. CPU 1 clears the entries, takes the empty table out of the PMD entry, and has not flushed yet.
/// 3. CPU 2's store finds the PMD entry none. A huge page there would be translated beside the small page 3.
#[test]
fn no_huge_page_comes_in_the_place_of_small_ones_that_are_not_flushed() {
    let world = small();
    world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0, 4));
        let process = Process::enter(&world, &mm);
        assert_eq!(process.read(page(3)), Ok(0));
        let mut gather = MmuGather::new(&mm);
        let held = mm.mmap_lock().read(world.machine.handle());
        unmap_page_range(&mm, &held, pages(0, 4), Regions::Kept, &mut gather);
        assert_eq!(leaf_at(&mm, page(0)), None, "the table has not gone");
        assert_eq!(handle_mm_fault(&mm, page(0), Access::Write), Ok(Resolution::HugePage));
        // The machine reports a walk that caches a second size.
        assert_eq!((process.read(page(1)), process.write(page(3), 1)), (Ok(0), Ok(())));
        let garbage = gather.finish();
        drop(held);
        world.memory.defer(garbage);
    });
}

/// I34 the other way round: `DONTNEED` takes a huge page away, and before it has flushed a fault puts a table with small
/// pages there. By then no CPU knows the huge page, lazy ones included: their walkers go on.
#[test]
fn no_small_pages_come_in_the_place_of_a_huge_one_that_is_not_flushed() {
    for lazy in [false, true] {
        let world = small();
        let mm = world.alone(|| world.mm());
        world.alone(|| map_huge(&mm, pages(0, 4)));
        let mut process = world.machine.run_cpu(CpuId(1), || {
            let process = Process::enter(&world, &mm);
            process.write(page(3), 1).unwrap();
            process
        });
        if lazy {
            world.machine.run_cpu(CpuId(1), || process.enter_lazy());
        }
        world.alone(|| {
            let mut gather = MmuGather::new(&mm);
            let held = mm.mmap_lock().read(world.machine.handle());
            unmap_page_range(&mm, &held, pages(0, 4), Regions::Kept, &mut gather);
            assert_eq!(leaf_at(&mm, page(0)), None);
            world.machine.run_cpu(CpuId(1), || {
                assert_eq!(world.machine.handle().translation_of(page(3)), None, "still known; lazy: {lazy}");
            });
            let garbage = gather.finish();
            drop(held);
            world.memory.defer(garbage);
        });
        world.machine.run_cpu(CpuId(1), || drop(process));
        world.alone(|| drop(mm));
    }
}

/// I34 on a lazy CPU: the huge page that it has cached goes by `munmap`, the PMD table stays for a neighbour's sake, and
/// small pages may be mapped there next.
#[test]
fn an_unmapped_huge_page_is_unknown_to_lazy_cpus() {
    let world = small();
    let mm = world.alone(|| world.mm());
    world.alone(|| {
        map_huge(&mm, pages(0, 4));
        map_anonymous(&mm, pages(4, 5));
        handle_mm_fault(&mm, page(4), Access::Write).unwrap();
    });
    let mut process = world.machine.run_cpu(CpuId(1), || {
        let process = Process::enter(&world, &mm);
        process.write(page(3), 1).unwrap();
        process
    });
    world.machine.run_cpu(CpuId(1), || process.enter_lazy());
    world.alone(|| mm.munmap(pages(0, 4)).unwrap());
    world.machine.run_cpu(CpuId(1), || {
        assert_eq!(world.machine.handle().translation_of(page(3)), None);
        drop(process);
    });
    world.alone(|| drop(mm));
}
