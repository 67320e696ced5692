//! Fault against detach: the whole of `handle_mm_fault` and of `munmap`, every interleaving within a bound of
//! preemptions. The region rule of `mm::vma`, the rechecks under every lock, and the PMD recheck (R3, R41).
//!
//! Two levels of four entries, one CPU that faults, one that unmaps. What must hold whoever is faster: nothing stays mapped
//! in the removed region, no table is left or lost, no frame is walked as a table that is none, and the books balance.
#![cfg(loom)]

mod loom_machine;

use loom_machine::Cpu;
use loom_machine::world::explore;
use mm::address::{VirtAddr, VirtRange};
use mm::address_space::{Mapping, Mm};
use mm::fault::{FaultError, handle_mm_fault};
use mm::pgtable::{Protection, pmd_offset, pte_at, pte_offset_map_lock};
use mm::sync::rcu;
use mm::vma::Access;

/// Enough for the zero page, the slabs, four tables and a page, and nothing to spare for a leak.
const FRAMES: usize = 16;

/// The region under test: the second PMD entry, pages 4 and 5.
fn region() -> VirtRange {
    VirtRange::new(0x4000, 0x6000).unwrap()
}

/// CPU 0 removes the region, which has its PTE table if `with_table`, while CPU 1 does `other`.
fn against_munmap(with_table: bool, other: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static) {
    explore(
        FRAMES,
        move |mm| {
            mm.mmap(region(), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
            if with_table {
                handle_mm_fault(mm, region().start, Access::Write).unwrap();
            }
        },
        move |mm, cpu| if cpu == 0 { mm.munmap(region()).unwrap() } else { other(mm) },
        |mm| {
            assert_eq!(mm.linked_table_bytes(), 0, "a table is left in a removed region");
            assert_eq!(pte_at(mm, region().start), None);
        },
    );
}

fn fault(mm: &Mm<Cpu>, address: VirtAddr) {
    match handle_mm_fault(mm, address, Access::Write) {
        Ok(_) | Err(FaultError::NotMapped) => (),
        Err(error) => panic!("{error:?}"),
    }
}

/// The fault has to make the PTE table while the region goes: checks under the PMD lock.
#[test]
fn a_fault_without_tables_against_munmap() {
    against_munmap(false, |mm| fault(mm, region().start));
}

/// The table is there: checks under the PTE lock.
#[test]
fn a_fault_on_a_present_table_against_munmap() {
    against_munmap(true, |mm| fault(mm, VirtAddr(region().start.0 + 0x1000)));
}

/// I16 by itself: whoever gets the lock from `pte_offset_map_lock` has a table that is still hooked.
#[test]
fn a_locked_table_is_hooked() {
    against_munmap(true, |mm| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(mm, &rcu, region().start).unwrap();
        let pmd = pmds.slot(region().start);
        if let Some(locked) = pte_offset_map_lock(mm, pmd, region().start) {
            assert!(!mm.memory().memmap().page(locked.pmd().pfn()).is_detached(), "a detached table is held");
            assert_eq!(pmd.load(), locked.pmd());
        }
    });
}
