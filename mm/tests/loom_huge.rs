//! Huge entries, every interleaving within a bound of preemptions: a split under the eyes of a lockless walker
//! (R12, I28), faults that race for huge pages below one PMD table, with a zap among them (R13, I14), and a collapse against who
//! walks the table or faults in it (R11).
//!
//! Two levels of four entries: a huge page is four frames.
#![cfg(loom)]

mod loom_machine;

use loom_machine::Cpu;
use loom_machine::world::explore;
use mm::address::{VirtAddr, VirtRange};
use mm::address_space::{Mapping, Mm};
use mm::fault::{FaultError, handle_mm_fault};
use mm::pgtable::{
    Level, Protection, SeenPte, deposited_tables, leaf_at, pmd_offset, pte_offset_map, pte_offset_map_rw_nolock,
};
use mm::sync::rcu;
use mm::vma::{Access, Vma};

/// Enough for the zero page, the slabs, tables and four blocks.
const FRAMES: usize = 32;

/// The pages that PMD entry `number` covers.
fn span(number: u64) -> VirtRange {
    VirtRange::new(number * 0x4000, (number + 1) * 0x4000).unwrap()
}

/// CPU 0 does `first`, CPU 1 `second`, in an address space with a region for each of two huge pages; the first `touched` of
/// them are there. At the end there are as many deposits as huge entries (I14).
fn race(
    touched: u64,
    first: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
    second: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
    judge: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
) {
    explore(
        FRAMES,
        move |mm| {
            for number in 0..2 {
                mm.mmap(span(number), Protection::READ_WRITE, Mapping::AnonymousHuge).unwrap();
            }
            for number in 0..touched {
                handle_mm_fault(mm, span(number).start, Access::Write).unwrap();
            }
        },
        move |mm, cpu| if cpu == 0 { first(mm) } else { second(mm) },
        move |mm| {
            judge(mm);
            let level = |number| leaf_at(mm, span(number).start).map(|(level, _)| level);
            let huge = (0..2).filter(|number| level(*number) == Some(Level::Pmd)).count();
            let rcu = rcu::read_lock(mm.machine());
            let deposits = deposited_tables(mm, pmd_offset(mm, &rcu, VirtAddr(0)).unwrap().slot(VirtAddr(0)));
            assert_eq!(deposits, huge, "deposits and huge entries differ (I14)");
        },
    );
}

/// R12, I28: whoever tests the entry without a lock sees it huge or a table, never none, and what it leads to is filled.
#[test]
fn an_entry_in_split_is_never_none() {
    race(
        1,
        |mm| assert!(mm.split_huge_page(VirtAddr(0))),
        |mm| {
            let (level, entry) = leaf_at(mm, VirtAddr(0x3000)).expect("an entry in split is none");
            assert!(entry.is_present() || level == Level::Pmd, "a table in split is not filled");
        },
        |_| (),
    );
}

/// R12, I28, the other change: rights that are taken and given.
#[test]
fn an_entry_under_protection_change_is_never_none() {
    race(
        1,
        |mm| mm.mprotect(span(0), Protection::READ).unwrap(),
        |mm| {
            let (level, entry) = leaf_at(mm, VirtAddr(0)).expect("an entry under protection change is none");
            assert!(level == Level::Pmd && entry.is_huge());
        },
        |_| (),
    );
}

fn fault(mm: &Mm<Cpu>, address: VirtAddr) {
    match handle_mm_fault(mm, address, Access::Write) {
        Ok(_) | Err(FaultError::NotMapped) => (),
        Err(error) => panic!("{error:?}"),
    }
}

/// R13: two faults for one huge page; the loser gives back block and deposit.
#[test]
fn two_faults_for_one_huge_page() {
    race(0, |mm| fault(mm, VirtAddr(0)), |mm| fault(mm, VirtAddr(0x1000)), |_| ());
}

/// R13: a huge fault and the zap of another huge page below the same PMD table share the list of deposits.
#[test]
fn a_huge_fault_against_a_zap_of_its_neighbour() {
    race(1, |mm| mm.munmap(span(0)).unwrap(), |mm| fault(mm, span(1).start), |_| ());
}

/// CPU 0 makes one huge page of the small ones below the first PMD entry, of which the first is there, while CPU 1 does `other`.
fn against_collapse(other: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static) {
    explore(
        FRAMES,
        |mm| {
            mm.mmap(span(0), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
            handle_mm_fault(mm, VirtAddr(0), Access::Write).unwrap();
        },
        move |mm, cpu| if cpu == 0 { mm.collapse_huge_page(VirtAddr(0)).unwrap() } else { other(mm) },
        |mm| assert!(leaf_at(mm, VirtAddr(0)).is_some_and(|(level, _)| level == Level::Pmd)),
    );
}

/// R11, I10: whoever walks the table without a lock finds it as it was, until he is through.
#[test]
fn a_collapse_against_a_lockless_walker() {
    against_collapse(|mm| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(mm, &rcu, VirtAddr(0)).unwrap();
        if let Some(pte) = pte_offset_map(mm, pmds.slot(VirtAddr(0)), VirtAddr(0)) {
            assert!(pte.load().is_present(), "a table is emptied under its walker");
        }
    });
}

/// Finds the first page's entry as it was before, under the lock of its table, with `proof`.
fn compare_in_a_collapse(proof: impl Fn(&Vma<Cpu>) -> bool + Copy + Send + Sync + 'static) {
    against_collapse(move |mm| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(mm, &rcu, VirtAddr(0)).unwrap();
        let (pmd, vma) = (pmds.slot(VirtAddr(0)), mm.find_vma(&rcu, VirtAddr(0)).unwrap());
        let Some(map) = pte_offset_map_rw_nolock(mm, pmd, VirtAddr(0)) else { return };
        let seen = SeenPte::new(map.load()).expect("a table is emptied under its walker");
        let locked = map.lock_if_pte_same(seen);
        if let Some(locked) = locked.filter(|_| proof(vma)) {
            assert_eq!(pmd.load(), locked.pmd(), "a table that was taken out passes for attached");
        }
    });
}

/// Spec 1.6 c, I21, R11: a collapse takes a table out with all that is in it, but marks its region before.
#[test]
fn an_entry_that_is_the_same_in_a_region_without_a_mark_proves_the_table_attached() {
    compare_in_a_collapse(|vma| !vma.is_detached());
}

/// Without a look at the mark, the same entry proves nothing. The checker must find it.
#[test]
#[should_panic(expected = "a table that was taken out passes for attached")]
fn an_entry_that_is_the_same_in_a_collapse_proves_nothing() {
    compare_in_a_collapse(|_| true);
}

/// R3, R11: a fault on a page that is not there yet, in a table that goes.
#[test]
fn a_collapse_against_a_fault() {
    against_collapse(|mm| fault(mm, VirtAddr(0x1000)));
}

/// The rule of `mm::vma` for a huge fault: a fault against the removal of its own region leaves nothing.
#[test]
fn a_huge_fault_against_munmap() {
    race(
        0,
        |mm| mm.munmap(span(1)).unwrap(),
        |mm| fault(mm, span(1).start),
        |mm| assert!(leaf_at(mm, span(1).start).is_none(), "a page is left in a removed region"),
    );
}
