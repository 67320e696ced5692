//! Top tables smaller than a frame, on a machine that has them, and frames on one that has not.

use super::{pgd_alloc, pgd_layout};
use crate::address::{PhysAddr, VirtRange};
use crate::address_space::Mm;
use crate::cpu::CpuId;
use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::memory::OutOfMemory;
use crate::page::PageType;
use crate::pgtable::{Entry, FourLevel, Level, PagingMode, SmallTop, Table, Tiny};
use crate::slab::SlabKind;
use crate::testing::{Process, World, map_anonymous, page, pages};
use crate::vma::Access;
use std::collections::BTreeSet;

/// I8, I41: small tables lie in a frame of the slab's, each at a multiple of its size, are zero at first, and count as no
/// page tables. They own no lock.
#[test]
fn small_top_tables_share_a_frame_of_the_slab() {
    let world = World::<SmallTop>::new(SimConfig::calm(64, 1, 1));
    world.alone(|| {
        let spaces: Vec<_> = (0..40).map(|_| world.mm()).collect();
        let addresses: BTreeSet<PhysAddr> = spaces.iter().map(|mm| mm.pgd()).collect();
        assert_eq!(addresses.len(), 40, "two address spaces have one top table");
        let frames: BTreeSet<_> = addresses.iter().map(|address| address.pfn()).collect();
        assert_eq!(frames.len(), 1, "40 tables of 32 bytes");
        for mm in &spaces {
            let descriptor = world.memory.memmap().page(mm.pgd().pfn());
            assert_eq!((mm.pgd().0 % 32, descriptor.page_type()), (0, PageType::Slab));
            assert!(descriptor.ptl.is_empty());
            assert!(Table::top(mm).slots().iter().all(|slot| crate::pgtable::EntrySlot::load(slot) == Entry::NONE));
        }
        assert_eq!(world.memory.page_tables(), 0);
        let handle = world.machine.handle();
        assert_eq!(world.memory.slab().objects(handle, SlabKind::Pgd), 40);
        drop(spaces);
        assert_eq!(world.memory.slab().objects(handle, SlabKind::Pgd), 0);
    });
}

/// I8: a top table of a frame's size is a frame, and so is a smaller one that owns a lock, being a PMD table.
#[test]
fn other_top_tables_are_frames() {
    fn check<Mode: PagingMode>() {
        let world = World::<Mode>::new(SimConfig::calm(64, 1, 1));
        world.alone(|| {
            let mm = world.mm();
            let descriptor = world.memory.memmap().page(mm.pgd().pfn());
            assert_eq!((mm.pgd().offset(), descriptor.page_type()), (0, PageType::Table));
            assert_eq!(world.memory.page_tables(), 1);
        });
    }
    check::<FourLevel>();
    check::<Tiny>();
    assert!(pgd_layout::<Sim<FourLevel>>().is_none() && pgd_layout::<Sim<Tiny>>().is_none());
    let layout = pgd_layout::<Sim<SmallTop>>().unwrap();
    assert_eq!((layout.size(), layout.align()), (32, 32));
}

/// What was in an object before is gone from the table made of it.
#[test]
fn a_small_top_table_is_used_again_as_new() {
    let world = World::<SmallTop>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mut used = BTreeSet::new();
        for _ in 0..4 {
            let mm = world.mm();
            used.insert(mm.pgd());
            let everywhere = [0x200, 1 << 18, 2 << 18];
            for number in everywhere {
                map_anonymous(&mm, pages(number, number + 1));
                assert!(world.machine.handle().peek(mm.pgd(), page(number)).is_none());
                handle_mm_fault(&mm, page(number), Access::Write).unwrap();
            }
            assert_eq!(mm.linked_table_bytes(), 6 * 4096);
        }
        assert_eq!(used.len(), 1);
    });
}

/// R34 for `pgd_alloc`: without an object there is no address space, and nothing is left behind.
#[test]
fn no_memory_for_a_small_top_table_is_an_error() {
    let world = World::<SmallTop>::new(SimConfig::calm(64, 1, 1));
    world.alone(|| {
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        let mut nth = 1;
        loop {
            injection.fail_from(nth);
            let made = Mm::create(world.memory);
            let failed = injection.stop().failed;
            match made {
                Ok(_) => break assert!(failed.is_none() && nth > 2, "an address space without its allocations"),
                Err(error) => assert_eq!(error, OutOfMemory),
            }
            assert_eq!(world.memory.slab().objects(world.machine.handle(), SlabKind::Pgd), 0);
            nth += 1;
        }
        drop(pgd_alloc(world.memory).ok());
    });
}

/// The whole of it at work: all CPUs of two address spaces with top tables in one frame fault, unmap and come again.
#[test]
fn address_spaces_with_small_top_tables_keep_apart() {
    let world = World::<SmallTop>::new(SimConfig::racy(512, 4, 3));
    let spaces = world.alone(|| [world.mm(), world.mm()]);
    assert_eq!(spaces[0].pgd().pfn(), spaces[1].pgd().pfn());
    let shared: VirtRange = pages(0x1f8, 0x208);
    world.alone(|| spaces.iter().for_each(|mm| map_anonymous(mm, shared)));
    world.machine.run_all(|cpu| {
        for round in 0..4 {
            let process = Process::enter(&world, &spaces[(cpu.index() + round) % 2]);
            for number in 0x1f8..0x208 {
                process.fetch_add(page(number), 1 << (16 * ((cpu.index() + round) % 2))).unwrap();
            }
        }
    });
    world.alone(|| {
        for (which, mm) in spaces.iter().enumerate() {
            let process = Process::enter(&world, mm);
            for number in 0x1f8..0x208 {
                assert_eq!(process.read(page(number)), Ok(8 << (16 * which)));
            }
        }
        drop(spaces);
    });
    assert_eq!(SmallTop::entries(Level::Pgd), 4);
}
