//! The helpers that make missing tables, each by itself: what they make, and what they say when they cannot (spec 1.4).

use super::{TableError, get_locked_pte, pmd_alloc, pte_alloc, pte_alloc_map, pte_alloc_map_lock};
use crate::address::VirtAddr;
use crate::address_space::Mm;
use crate::config::PAGE_SIZE;
use crate::cpu::CpuId;
use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{Entry, FourLevel, Level, PagingMode, Protection, pmd_offset, pte_offset_map};
use crate::sync::rcu;
use crate::testing::{World, map_anonymous, page, pages};
use crate::vma::{Access, Vma};

type Space = Mm<Sim<FourLevel>>;
type Region = Vma<Sim<FourLevel>>;

/// A page whose tables are missing, and one that has all but the PTE table in common with it.
const NUMBER: u64 = 0x200;
const NEIGHBOUR: u64 = 0x400;

/// The entry found by a helper that makes what is missing on the way to it.
type Helper = fn(&Space, &Region, VirtAddr) -> Result<Entry, TableError>;

const HELPERS: [(&str, Helper); 4] = [
    ("pte_alloc", |mm, vma, address| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_alloc(mm, &rcu, vma, address)?;
        pte_alloc(mm, pmds.slot(address), vma)?;
        Ok(pte_offset_map(mm, pmds.slot(address), address).expect("a table, just made").load())
    }),
    ("pte_alloc_map", |mm, vma, address| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_alloc(mm, &rcu, vma, address)?;
        let map = pte_alloc_map(mm, pmds.slot(address), vma, address)?;
        assert_eq!(mm.machine().local().held.count(), 0);
        Ok(map.load())
    }),
    ("pte_alloc_map_lock", |mm, vma, address| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_alloc(mm, &rcu, vma, address)?;
        let locked = pte_alloc_map_lock(mm, pmds.slot(address), vma, address)?;
        assert_eq!(mm.machine().local().held.count(), 1);
        Ok(locked.load())
    }),
    ("get_locked_pte", |mm, vma, address| {
        let locked = get_locked_pte(mm, vma, address)?;
        assert_eq!(mm.machine().local().held.count(), 1);
        Ok(locked.load())
    }),
];

/// Runs `body` for each helper in a fresh address space; no lock, read section or table may be left behind.
fn with_each(
    touched: &[u64],
    body: impl Fn(&World<FourLevel>, &Space, &Region, &dyn Fn() -> Result<Entry, TableError>),
) {
    for (name, helper) in HELPERS {
        println!("{name}");
        let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
        world.alone(|| {
            let mm = world.mm();
            map_anonymous(&mm, pages(NUMBER, NEIGHBOUR + 1));
            for number in touched {
                handle_mm_fault(&mm, page(*number), Access::Write).unwrap();
            }
            {
                let rcu = rcu::read_lock(mm.machine());
                let vma = mm.find_vma(&rcu, page(NUMBER)).unwrap();
                body(&world, &mm, vma, &|| helper(&mm, vma, page(NUMBER)));
            }
            assert_eq!(mm.machine().local().held.count(), 0);
            assert!(!rcu::in_read_section(mm.machine()));
        });
    }
}

fn linked(mm: &Space) -> u64 {
    mm.linked_table_bytes() / PAGE_SIZE as u64
}

#[test]
fn missing_tables_are_made_once() {
    with_each(&[], |_, mm, _, reach| {
        for _ in 0..2 {
            assert_eq!((reach(), linked(mm)), (Ok(Entry::NONE), 3));
        }
    });
}

/// R34: whichever allocation fails, memory is said to be missing and nothing else; the next call finds what was made.
#[test]
fn no_memory_is_told_apart_from_a_lost_race() {
    // Three frames at least, and more where locks need memory; the last round fails nothing.
    for nth in 1..=10 {
        with_each(&[], |world, mm, _, reach| {
            let injection = &world.machine.cpus().of(CpuId(0)).injection;
            injection.fail_nth(nth);
            let outcome = reach();
            let failed = injection.stop().failed.is_some();
            assert!(failed || nth > 3, "allocation {nth} is not seen");
            assert_eq!(outcome, if failed { Err(TableError::OutOfTables) } else { Ok(Entry::NONE) });
            assert_eq!(linked(mm) < 3, failed);
            assert_eq!((reach(), linked(mm)), (Ok(Entry::NONE), 3));
        });
    }
}

/// A region that has gone, with no table on the way and with all but the last.
#[test]
fn nothing_is_made_for_a_region_that_has_gone() {
    for (touched, tables) in [(&[][..], 0), (&[NEIGHBOUR][..], 3)] {
        with_each(touched, |_, mm, vma, reach| {
            vma.detach();
            assert_eq!((reach(), linked(mm)), (Err(TableError::Raced), tables));
            vma.attach_again();
        });
    }
}

/// A huge page that came where the table was to go is a lost race, whatever there is of memory.
#[test]
fn a_huge_page_in_the_way_is_a_lost_race() {
    with_each(&[NEIGHBOUR], |world, mm, _, reach| {
        let huge = Entry(Entry::page(world.memory.zero_page(), Protection::READ).0 | 1 << 7);
        let set = |entry: Entry| {
            let rcu = rcu::read_lock(mm.machine());
            let pmds = pmd_offset(mm, &rcu, page(NUMBER)).unwrap();
            let index = FourLevel::index(Level::Pmd, page(NUMBER));
            world.machine.handle().set_frame_word(pmds.pfn(), index, entry.0);
        };
        set(huge);
        assert_eq!((reach(), linked(mm)), (Err(TableError::Raced), 3));
        set(Entry::NONE);
    });
}
