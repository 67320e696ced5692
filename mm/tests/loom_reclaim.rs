//! Tables that go while their region stays: the whole of `madvise(DONTNEED)` against faults, walkers and
//! `munmap`, every interleaving within a bound of preemptions (spec 9.1; R3, R7, R8, R35, R41).
//!
//! Two levels of four entries, no TLBs. What must hold whoever is faster: nobody waits for ever, no store goes into a table
//! that was taken away, none is lost or freed while it is walked, and the books balance.
#![cfg(loom)]

mod loom_machine;

use loom_machine::Cpu;
use loom_machine::world::explore;
use mm::address::{VirtAddr, VirtRange};
use mm::address_space::{Mapping, Mm};
use mm::fault::{FaultError, handle_mm_fault};
use mm::pgtable::{
    Protection, pmd_lock, pmd_offset, pte_at, pte_lock_second, pte_offset_map, pte_offset_map_rw_nolock,
};
use mm::sync::rcu;
use mm::vma::Access;

/// Enough for the zero page, the slabs, four tables and a few pages, and nothing to spare for a leak.
const FRAMES: usize = 18;

/// The whole span of one PTE table, the second.
const FIRST: u64 = 0x4000;
const fn range(start: u64, end: u64) -> VirtRange {
    VirtRange { start: VirtAddr(start), end: VirtAddr(end) }
}
const SPAN: VirtRange = range(FIRST, 0x8000);

/// CPU 0 does `first`, CPU 1 `second`, in an address space with `regions`, of which the pages `touched` have been written.
/// At the end, what is linked is what is alive (I7).
fn race(
    regions: &'static [VirtRange],
    touched: &'static [u64],
    first: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
    second: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
) {
    explore(
        FRAMES,
        move |mm| {
            for region in regions {
                mm.mmap(*region, Protection::READ_WRITE, Mapping::Anonymous).unwrap();
            }
            touched.iter().for_each(|address| store(mm, *address));
        },
        move |mm, cpu| if cpu == 0 { first(mm) } else { second(mm) },
        |mm| {
            mm.memory().drain_deferred();
            assert_eq!(mm.linked_table_bytes() / 4096 + 1, mm.memory().page_tables(), "a table is lost (I7)");
        },
    );
}

fn discard(mm: &Mm<Cpu>) {
    mm.madvise_dontneed(SPAN).unwrap();
}

fn store(mm: &Mm<Cpu>, address: u64) {
    handle_mm_fault(mm, VirtAddr(address), Access::Write).unwrap();
}

/// R3, R8: T2 has seen the table, or none in it, and T1 takes it away; or T1 has given its lock up and T2 fills the table.
#[test]
fn a_fault_against_a_table_that_goes() {
    race(&[SPAN], &[FIRST], discard, |mm| store(mm, FIRST + 0x1000));
}

/// R7: T1 holds the PTE lock and wants the PMD lock, which T2 holds to link a table beside it.
#[test]
fn a_table_that_goes_against_one_that_is_linked_beside_it() {
    race(const { &[range(0, 0x8000)] }, &[FIRST], discard, |mm| store(mm, 0x1000));
}

/// R7, R8: T1 has cleared the table, finds its PMD lock taken by T2 and lets go of the PTE lock. Until it has both, T2 fills
/// the table again.
#[test]
fn a_table_that_is_filled_again_stays() {
    race(&[SPAN], &[FIRST], discard, |mm| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(mm, &rcu, SPAN.start).unwrap();
        drop(pmd_lock(mm, pmds.slot(SPAN.start)));
        store(mm, FIRST + 0x1000);
    });
}

/// R7: T1 holds the PTE lock and wants the PMD lock; T2 holds the PMD lock and waits for the PTE lock, as whoever takes a
/// second look at an empty table does.
#[test]
fn a_table_that_goes_against_one_who_holds_its_pmd_lock() {
    race(&[SPAN], &[FIRST], discard, |mm| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(mm, &rcu, SPAN.start).unwrap();
        let pmd = pmds.slot(SPAN.start);
        let parent = pmd_lock(mm, pmd);
        if let Some(map) = pte_offset_map_rw_nolock(mm, pmd, SPAN.start) {
            let _own = pte_lock_second(&parent, map.lockptr());
            assert_eq!(pmd.load(), map.pmd());
        }
    });
}

/// R6, I11: T2 walks the table without a lock while it goes; it finds the page or none, in a table.
#[test]
fn a_lockless_walker_against_a_table_that_goes() {
    race(&[SPAN], &[FIRST], discard, |mm| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(mm, &rcu, SPAN.start).unwrap();
        if let Some(pte) = pte_offset_map(mm, pmds.slot(SPAN.start), SPAN.start) {
            let seen = pte.load();
            assert!(seen.is_none() || seen.is_present());
            let again = pte.load();
            assert!(again.is_none() || again == seen, "a table that goes is filled again");
        }
    });
}

/// R35: the table is half of one region and half of another. One goes with `munmap`, the other's pages are faulted in: the
/// table stays for them.
#[test]
fn a_neighbours_fault_against_munmap_in_one_table() {
    race(
        const { &[range(FIRST, 0x6000), range(0x6000, 0x8000)] },
        &[FIRST],
        |mm| mm.munmap(range(FIRST, 0x6000)).unwrap(),
        |mm| {
            store(mm, 0x6000);
            let _rcu = rcu::read_lock(mm.machine());
            assert!(pte_at(mm, VirtAddr(0x6000)).is_some_and(|entry| entry.is_present()), "the page is gone");
        },
    );
}

/// R41: a fault between the clearing of a table by `munmap` and its freeing.
#[test]
fn a_fault_between_clearing_and_freeing() {
    race(
        &[SPAN],
        &[FIRST],
        |mm| {
            mm.munmap(SPAN).unwrap();
            assert_eq!(pte_at(mm, SPAN.start), None);
            assert_eq!(mm.linked_table_bytes(), 0);
        },
        |mm| match handle_mm_fault(mm, SPAN.start, Access::Write) {
            Ok(_) | Err(FaultError::NotMapped) => (),
            Err(error) => panic!("{error:?}"),
        },
    );
}
