//! The helper family, every interleaving within a bound of preemptions: tables and pages that several CPUs make
//! at once (R1, R2), and lookups of a table that goes (R3 to R6).
//!
//! Two levels of four entries; one CPU looks, one unmaps.
#![cfg(loom)]

mod loom_machine;

use loom_machine::Cpu;
use loom_machine::world::explore;
use mm::address::{VirtAddr, VirtRange};
use mm::address_space::{Mapping, Mm};
use mm::fault::handle_mm_fault;
use mm::pgtable::{
    Entry, Protection, PteLocked, SeenPte, Table, pmd_offset, pte_alloc, pte_at, pte_offset_map_lock,
    pte_offset_map_ro_nolock, pte_offset_map_rw_nolock,
};
use mm::sync::rcu;
use mm::vma::Access;

/// Enough for the zero page, the slabs, tables and pages, and little to spare for a leak.
const FRAMES: usize = 16;

/// The second PMD entry, pages 4 and 5. Page 4 is touched where a table is to be there, page 5 never is.
const TOUCHED: VirtAddr = VirtAddr(0x4000);
const UNTOUCHED: VirtAddr = VirtAddr(0x5000);

fn region() -> VirtRange {
    VirtRange::new(TOUCHED.0, 0x6000).unwrap()
}

fn map(mm: &Mm<Cpu>) {
    mm.mmap(region(), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
}

fn map_and_touch(mm: &Mm<Cpu>) {
    map(mm);
    handle_mm_fault(mm, TOUCHED, Access::Write).unwrap();
}

/// R1, I3, I15: two CPUs find the slot none and make a table each. One is linked, both use it, and the other is freed.
#[test]
fn two_that_make_one_table_agree() {
    explore(
        FRAMES,
        map,
        |mm, _| {
            let rcu = rcu::read_lock(mm.machine());
            let pmds = pmd_offset(mm, &rcu, TOUCHED).unwrap();
            let (pmd, vma) = (pmds.slot(TOUCHED), mm.find_vma(&rcu, TOUCHED).unwrap());
            pte_alloc(mm, pmd, vma).unwrap();
            let locked = pte_offset_map_lock(mm, pmd, TOUCHED).expect("a table that stays");
            assert_eq!(locked.load(), Entry::NONE);
        },
        |mm| {
            assert_eq!((mm.linked_table_bytes(), mm.memory().page_tables()), (4096, 2));
        },
    );
}

/// R2: two CPUs take the first fault of one page. One frame shows there, and the other goes back.
#[test]
fn two_that_fault_on_one_page_agree() {
    explore(
        FRAMES,
        map_and_touch,
        |mm, _| {
            handle_mm_fault(mm, UNTOUCHED, Access::Write).unwrap();
        },
        |mm| {
            let pte = pte_at(mm, UNTOUCHED).unwrap();
            let page = mm.memory().memmap().page(pte.pfn());
            assert_eq!((pte.is_writable(), page.refcount(), page.mapcount()), (true, 1, 1));
        },
    );
}

/// CPU 0 does `look`, CPU 1 takes the table away by `detach`. CPU 0 runs first: the checker spends none of the interruptions it
/// may make on letting the look begin, nor any time on all the places in the longer `detach` where it could.
fn against_detach(
    detach: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
    look: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
) {
    explore(FRAMES, map_and_touch, move |mm, cpu| if cpu == 0 { look(mm) } else { detach(mm) }, |_| ());
}

fn unmap(mm: &Mm<Cpu>) {
    mm.munmap(region()).unwrap();
}

fn unmap_and_free(mm: &Mm<Cpu>) {
    unmap(mm);
    mm.memory().drain_deferred();
}

fn unmap_and_map(mm: &Mm<Cpu>) {
    unmap(mm);
    map_and_touch(mm);
}

fn unmap_free_and_map(mm: &Mm<Cpu>) {
    unmap_and_free(mm);
    map_and_touch(mm);
}

fn assert_attached(mm: &Mm<Cpu>, locked: &PteLocked<'_, Cpu>) {
    assert!(!mm.memory().memmap().page(locked.pmd().pfn()).is_detached(), "a detached table is written to");
}

fn lock_and_look(mm: &Mm<Cpu>) {
    let rcu = rcu::read_lock(mm.machine());
    let pmds = pmd_offset(mm, &rcu, UNTOUCHED).unwrap();
    let pmd = pmds.slot(UNTOUCHED);
    if let Some(locked) = pte_offset_map_lock(mm, pmd, UNTOUCHED) {
        assert_attached(mm, &locked);
        assert_eq!(pmd.load(), locked.pmd(), "the slot moved on under the lock of its table");
    }
}

/// R3, I16: CPU 0 has read the slot when CPU 1 unhooks the table and puts another there. Whatever CPU 0 locks is in the slot.
#[test]
fn a_lookup_survives_a_detach_and_a_new_table() {
    against_detach(unmap_and_map, lock_and_look);
}

/// R4: the frame of the table that CPU 0 has read is not freed, nor reused in the same slot. Without grace periods CPU 1 frees the
/// table between the read and the lock of CPU 0, which then locks a lock that is made anew.
#[test]
fn a_table_is_not_reused_under_a_lookup() {
    against_detach(unmap_free_and_map, lock_and_look);
}

fn lock_what_was_named(mm: &Mm<Cpu>) {
    // As below.
    let pmds = Table::top(mm);
    if let Some(map) = pte_offset_map_ro_nolock(mm, pmds.slot(TOUCHED), TOUCHED) {
        let _guard = map.lock();
        map.load();
    }
}

/// R5, I11: a lock that was named outlives the read section, so that it can be taken after its table has gone. Without grace
/// periods the lock is taken when its table is none any more.
#[test]
fn a_lock_that_was_named_can_be_taken() {
    against_detach(unmap_and_free, lock_what_was_named);
}

fn with_map(mm: &Mm<Cpu>, address: VirtAddr, prove: impl Fn(mm::pgtable::PteMapRw<'_, '_, Cpu>, Entry)) {
    // The tiny mode's PMD table is its top one, which stays without a read section: the map's own is all there is.
    let pmds = Table::top(mm);
    if let Some(map) = pte_offset_map_rw_nolock(mm, pmds.slot(address), address) {
        let seen = map.load();
        prove(map, seen);
    }
}

/// R6, I21: what a none entry is checked by is the PMD.
#[test]
fn a_pmd_that_is_the_same_proves_the_table_attached() {
    against_detach(unmap, |mm| {
        with_map(mm, UNTOUCHED, |map, _| {
            if let Some(locked) = map.lock_if_pmd_same() {
                assert_attached(mm, &locked);
            }
        });
    });
}

/// I19: a check that fails unlocks before it ends the read section. The other way round the destructor could come between,
/// and find its table's lock held (I12).
#[test]
fn what_is_let_go_is_unlocked_before_it_may_be_freed() {
    against_detach(unmap_and_free, |mm| with_map(mm, UNTOUCHED, |map, _| drop(map.lock_if_pmd_same())));
}

/// Spec 1.6 c, I21: an entry that is still what it was, and was not none, is in a table that is attached.
#[test]
fn an_entry_that_is_the_same_proves_the_table_attached() {
    against_detach(unmap, |mm| {
        with_map(mm, TOUCHED, |map, seen| {
            let locked = SeenPte::new(seen).and_then(|seen| map.lock_if_pte_same(seen));
            locked.iter().for_each(|locked| assert_attached(mm, locked));
        });
    });
}

/// R6: a saved none is still none in a table that has gone. The checker must find it.
#[test]
#[should_panic(expected = "a detached table is written to")]
fn none_that_is_still_none_proves_nothing() {
    against_detach(unmap, |mm| {
        with_map(mm, UNTOUCHED, |map, seen| {
            let locked = map.lock_if_same_or_none(seen);
            locked.iter().for_each(|locked| assert_attached(mm, locked));
        });
    });
}
