//! Entries nobody may have written: reported once, cleared once, and then none (spec 1.3).

use crate::address::VirtAddr;
use crate::address_space::{CollapseError, MmRef};
use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{
    Entry, FourLevel, Level, PagingMode, Protection, Table, pmd_offset, pte_at, pte_offset_map, pte_offset_map_lock,
    pte_offset_map_ro_nolock, pte_offset_map_rw_nolock,
};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::rcu;
use crate::testing::{World, map_anonymous, page, pages};
use crate::vma::Access;

/// In the same PMD table as the page that is touched, which keeps that table.
const TOUCHED: u64 = 0x200;
const CORRUPT: u64 = 0x400;

fn corrupted(world: &World<FourLevel>, entry: Entry) -> MmRef<Sim<FourLevel>> {
    let mm = world.mm();
    map_anonymous(&mm, pages(TOUCHED, CORRUPT + 1));
    handle_mm_fault(&mm, page(TOUCHED), Access::Write).unwrap();
    corrupt(world, &mm, entry);
    mm
}

fn corrupt(world: &World<FourLevel>, mm: &MmRef<Sim<FourLevel>>, entry: Entry) {
    let rcu = rcu::read_lock(mm.machine());
    let table = pmd_offset(mm, &rcu, page(CORRUPT)).unwrap();
    world.machine.handle().set_frame_word(table.pfn(), FourLevel::index(Level::Pmd, page(CORRUPT)), entry.0);
}

fn reports(world: &World<FourLevel>) -> u64 {
    StatsSnapshot::sum(world.machine.handle().cpus())[Counter::BadEntries]
}

fn bad(world: &World<FourLevel>) -> Entry {
    // A page where a table pointer belongs: no write access, no execution.
    Entry::page(world.memory.zero_page(), Protection::READ)
}

/// I18: each of the four lookups refuses a bad entry and leaves no read section; whichever comes first reports and clears.
#[test]
fn every_lookup_refuses_a_bad_entry_and_the_first_clears_it() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = corrupted(&world, Entry::NONE);
        for lookup in 0..4 {
            corrupt(&world, &mm, bad(&world));
            let before = reports(&world);
            {
                let rcu = rcu::read_lock(mm.machine());
                let table = pmd_offset(&mm, &rcu, page(CORRUPT)).unwrap();
                let (pmd, address) = (table.slot(page(CORRUPT)), page(CORRUPT));
                let find = |lookup| match lookup {
                    0 => pte_offset_map(&mm, pmd, address).is_some(),
                    1 => pte_offset_map_lock(&mm, pmd, address).is_some(),
                    2 => pte_offset_map_ro_nolock(&mm, pmd, address).is_some(),
                    _ => pte_offset_map_rw_nolock(&mm, pmd, address).is_some(),
                };
                assert!(!find(lookup));
                assert_eq!((pmd.load(), reports(&world)), (Entry::NONE, before + 1));
                assert!(!find(0) && !find(1) && !find(2) && !find(3));
                assert_eq!(reports(&world), before + 1, "reported again");
            }
            assert!(!rcu::in_read_section(mm.machine()));
            assert_eq!(mm.machine().local().held.count(), 0);
        }
    });
}

/// The kernel's entries of a top table would pass for bad ones, which users cannot reach: no lookup of an address comes by them.
#[test]
fn no_lookup_comes_by_the_kernel_s_half() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = corrupted(&world, Entry::NONE);
        // A table, present and writable, for the kernel alone.
        let kernel = 0x1003;
        for address in [FourLevel::USER_END, VirtAddr(0xffff_8880_0000_0000), VirtAddr(0xffff_ffff_ffff_f000)] {
            let index = FourLevel::index(Level::Pgd, address);
            world.machine.handle().set_frame_word(mm.pgd().pfn(), index, kernel);
            assert_eq!(pte_at(&mm, address), None);
            assert!(!mm.split_huge_page(address));
            assert_eq!(mm.collapse_huge_page(address), Err(CollapseError::NotAnonymous));
            assert_eq!(Table::top(&mm).slot(address).load(), Entry(kernel));
            assert_eq!(reports(&world), 0);
            world.machine.handle().set_frame_word(mm.pgd().pfn(), index, 0);
        }
    });
}

/// A huge page, and an entry that is just being changed, are none of a lookup's business, but not bad: they stay.
#[test]
fn what_is_huge_or_not_present_is_refused_and_stays() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let huge = Entry(Entry::page(world.memory.zero_page(), Protection::READ).0 | 1 << 7);
        let changing = Entry(huge.0 & !1);
        let mm = corrupted(&world, Entry::NONE);
        for entry in [huge, changing] {
            corrupt(&world, &mm, entry);
            let rcu = rcu::read_lock(mm.machine());
            let table = pmd_offset(&mm, &rcu, page(CORRUPT)).unwrap();
            assert!(pte_offset_map(&mm, table.slot(page(CORRUPT)), page(CORRUPT)).is_none());
            assert_eq!((table.slot(page(CORRUPT)).load(), reports(&world)), (entry, 0));
        }
        corrupt(&world, &mm, Entry::NONE);
    });
}

/// After the report the slot serves again: the next fault puts a table there.
#[test]
fn a_fault_gets_over_a_bad_entry() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = corrupted(&world, bad(&world));
        handle_mm_fault(&mm, page(CORRUPT), Access::Write).unwrap();
        assert!(pte_at(&mm, page(CORRUPT)).unwrap().is_writable());
        assert_eq!(reports(&world), 1);
    });
}

/// Whoever clears a range comes upon it too: it goes, at whatever level, and the tables above it.
#[test]
fn munmap_and_advice_get_over_a_bad_entry() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = corrupted(&world, bad(&world));
        mm.madvise_dontneed(pages(TOUCHED, CORRUPT + 1)).unwrap();
        assert_eq!(reports(&world), 1);
        corrupt(&world, &mm, bad(&world));
        mm.munmap(pages(TOUCHED, CORRUPT + 1)).unwrap();
        assert_eq!((reports(&world), mm.linked_table_bytes()), (2, 0));
    });
}

/// The same a level up, where the walk to the PMD table finds it.
#[test]
fn a_bad_entry_above_is_reported_and_cleared_too() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = corrupted(&world, Entry::NONE);
        let elsewhere = page(1 << 27);
        let top = world.machine.handle();
        top.set_frame_word(mm.pgd().pfn(), FourLevel::index(Level::Pgd, elsewhere), bad(&world).0);
        let rcu = rcu::read_lock(mm.machine());
        assert!(pmd_offset(&mm, &rcu, elsewhere).is_none());
        assert!(pmd_offset(&mm, &rcu, elsewhere).is_none());
        assert_eq!(reports(&world), 1);
    });
}

/// All CPUs come upon it at once: one reports.
#[test]
fn a_bad_entry_is_reported_once_however_many_find_it() {
    for seed in 0..8 {
        let world = World::<FourLevel>::new(SimConfig::racy(256, 4, seed));
        let mm = world.alone(|| corrupted(&world, bad(&world)));
        world.machine.run_all(|_| {
            let rcu = rcu::read_lock(mm.machine());
            let table = pmd_offset(&mm, &rcu, page(CORRUPT)).unwrap();
            assert!(pte_offset_map(&mm, table.slot(page(CORRUPT)), page(CORRUPT)).is_none());
        });
        assert_eq!(reports(&world), 1);
        world.alone(|| drop(mm));
    }
}
