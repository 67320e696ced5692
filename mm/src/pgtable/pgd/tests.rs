//! Top tables smaller than a frame, on a machine that has them, and frames on one that has not; and the tables below them that
//! are there from the start.

use super::{OutOfTables, pgd_alloc, pgd_layout};
use crate::address::{PhysAddr, VirtRange};
use crate::cpu::CpuId;
use crate::fault::{FaultError, handle_mm_fault};
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::page::PageType;
use crate::pgtable::{Entry, EntrySlot, FourLevel, Pae, PagingMode, Table, Tiny};
use crate::slab::SlabKind;
use crate::stats::Counter;
use crate::testing::{Process, World, map_anonymous, page, pages};
use crate::vma::Access;
use std::collections::BTreeSet;

/// I8, I41: small tables lie in a frame of the slab's, each at a multiple of its size, and count as no page tables. They own no
/// lock. The user half's entries point to PMD tables, which do, and have no bit set that is reserved there (I39).
#[test]
fn small_top_tables_share_a_frame_of_the_slab() {
    let world = World::<Pae>::new(SimConfig::calm(256, 1, 1));
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
            let raw: Vec<_> = Table::top(mm).slots().iter().map(EntrySlot::load).collect();
            for entry in &raw[..3] {
                assert_eq!(entry.0, entry.pfn().address() | 1);
                assert_eq!(world.memory.memmap().page(entry.pfn()).page_type(), PageType::Table);
            }
            assert_eq!((raw[3], mm.linked_table_bytes()), (Entry::NONE, 3 * 4096));
        }
        assert_eq!(world.memory.page_tables(), 3 * 40);
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
    let layout = pgd_layout::<Sim<Pae>>().unwrap();
    assert_eq!((layout.size(), layout.align()), (32, 32));
}

/// What was in an object before is gone from the table made of it.
#[test]
fn a_small_top_table_is_used_again_as_new() {
    let world = World::<Pae>::new(SimConfig::calm(256, 1, 1));
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

/// I43, R34 for `pgd_alloc`: whichever allocation fails, from there on or once, there is no address space, nothing is left
/// behind, and the tables after the one that failed have been made nonetheless (spec 3.5).
#[test]
fn every_allocation_of_a_top_table_may_fail() {
    let world = World::<Pae>::new(SimConfig::calm(64, 1, 1));
    world.alone(|| {
        let machine = world.machine.handle();
        let local = world.machine.cpus().of(CpuId(0));
        // The object and the slab's frame for it come first.
        const OBJECT: u32 = 2;
        let books = || (world.free_frames(), world.memory.page_tables(), local.stats.snapshot());
        for once in [false, true] {
            for nth in 1.. {
                world.settle();
                let before = books();
                if once {
                    local.injection.fail_nth(nth)
                } else {
                    local.injection.fail_from(nth)
                }
                let made = pgd_alloc(world.memory);
                let failed = local.injection.stop().failed;
                let Err(error) = made else {
                    assert!(failed.is_none() && nth > OBJECT + 3, "a top table without allocation {nth}");
                    break;
                };
                assert_eq!(error, OutOfTables);
                let tables = books().2.since(&before.2)[Counter::TablesAllocated];
                match once {
                    _ if nth <= OBJECT => assert_eq!(tables, 0),
                    true => assert_eq!(tables, 2, "the loop ends at its first failure"),
                    false => assert!(tables < 3),
                }
                assert_eq!(world.memory.slab().objects(machine, SlabKind::Pgd), 0);
                world.settle();
                assert_eq!((books().0, books().1), (before.0, before.1), "allocation {nth} leaves something behind");
            }
        }
        assert_eq!(world.mm().linked_table_bytes(), 3 * 4096);
    });
}

/// Tables that nobody has ever used go with the top table; those that an unmapping takes go with that, and come again. What is
/// counted is what is there (I6, I7).
#[test]
fn tables_below_a_small_top_table_come_and_go() {
    let world = World::<Pae>::new(SimConfig::calm(256, 2, 1));
    world.alone(|| {
        let mm = world.mm();
        let far = 2 << 18;
        for round in 0..3 {
            map_anonymous(&mm, pages(far, far + 1));
            assert_eq!(mm.linked_table_bytes(), if round == 0 { 3 } else { 2 } * 4096);
            let process = Process::enter(&world, &mm);
            process.write(page(far), round).unwrap();
            assert_eq!((process.read(page(far)), mm.linked_table_bytes()), (Ok(round), 4 * 4096));
            mm.munmap(pages(far, far + 1)).unwrap();
            assert_eq!((process.read(page(far)), mm.linked_table_bytes()), (Err(FaultError::NotMapped), 2 * 4096));
            drop(process);
        }
        drop(mm);
    });
}

/// The whole of it at work: all CPUs of two address spaces with top tables in one frame fault, unmap and come again.
#[test]
fn address_spaces_with_small_top_tables_keep_apart() {
    let world = World::<Pae>::new(SimConfig::racy(512, 4, 3));
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
}
