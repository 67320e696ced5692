//! Lookups that name a lock: what may come between the map and the lock, step by step, and what each check makes of it.

use super::{SeenPte, pte_offset_map_ro_nolock, pte_offset_map_rw_nolock};
use crate::address_space::{Mm, MmRef};
use crate::config::USE_SPLIT_PTE_PTLOCKS;
use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{Entry, FourLevel, PagingMode, pmd_offset, pte_lockptr, pte_unmap_unlock, ptep_lockptr};
use crate::sync::{RawLock, rcu};
use crate::testing::{World, in_each_mode, map_anonymous, page, pages};
use crate::vma::Access;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Page of the table that comes and goes; the other keeps the PMD table.
const COMES: u64 = 0x200;
const STAYS: u64 = 0x400;

type TestMm<Mode = FourLevel> = Mm<Sim<Mode>>;

fn touched<Mode: PagingMode>(world: &World<Mode>) -> MmRef<Sim<Mode>> {
    let mm = world.mm();
    for number in [COMES, STAYS] {
        map_anonymous(&mm, pages(number, number + 2));
        handle_mm_fault(&mm, page(number), Access::Write).unwrap();
    }
    mm
}

/// I17, I18, I20: a map for reading shows the entry, names the lock of its own table and leaves no read section behind. It
/// has no function that stores.
#[test]
fn a_map_for_reading_names_the_lock_of_its_table() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = touched(&world);
        {
            let rcu = rcu::read_lock(mm.machine());
            let pmds = pmd_offset(&mm, &rcu, page(COMES)).unwrap();
            let pmd = pmds.slot(page(COMES));
            assert!(pte_offset_map_ro_nolock(&mm, pmds.slot(page(0x600)), page(0x600)).is_none());
            assert!(pte_offset_map_rw_nolock(&mm, pmds.slot(page(0x600)), page(0x600)).is_none());
            let reading = pte_offset_map_ro_nolock(&mm, pmd, page(COMES)).unwrap();
            let writing = pte_offset_map_rw_nolock(&mm, pmd, page(COMES)).unwrap();
            assert!(reading.load().is_present() && reading.load() == writing.load());
            assert!(std::ptr::eq(reading.lockptr(), pte_lockptr(&mm, pmd.load())));
            assert!(std::ptr::eq(writing.lockptr(), ptep_lockptr(&mm, &reading.map)));
            assert!(!reading.lockptr().is_locked());
            let guard = reading.lock();
            assert!(reading.lockptr().is_locked());
            drop(guard);
            let locked = writing.lock_if_pmd_same().expect("nothing has changed");
            assert!(reading.lockptr().is_locked() && locked.load() == reading.load());
            pte_unmap_unlock(locked);
            assert!(!reading.lockptr().is_locked());
            drop(reading);
            assert!(rcu::in_read_section(mm.machine()), "the outer section is left");
        }
        assert!(!rcu::in_read_section(mm.machine()), "a section is left behind");
    });
}

/// Lets CPU 1 do `change` between the map and the lock of CPU 0, whose `look` gets an address space with both tables.
fn meanwhile(change: impl Fn(&TestMm) + Sync, look: impl Fn(&TestMm, &dyn Fn()) + Sync) {
    let world = World::<FourLevel>::new(SimConfig::calm(512, 2, 1));
    let mm = world.alone(|| touched(&world));
    let step = AtomicU32::new(0);
    let machine = world.machine.handle();
    let await_step = |number| {
        while step.load(Ordering::Acquire) != number {
            machine.pause();
        }
    };
    world.machine.run_all(|cpu| {
        if cpu.0 == 0 {
            look(&mm, &|| {
                step.store(1, Ordering::Release);
                await_step(2);
            });
        } else {
            await_step(1);
            change(&mm);
            step.store(2, Ordering::Release);
        }
    });
    world.alone(|| drop(mm));
}

fn unmap<Mode: PagingMode>(mm: &TestMm<Mode>) {
    mm.munmap(pages(COMES, COMES + 2)).unwrap();
}

fn unmap_and_refill<Mode: PagingMode>(mm: &TestMm<Mode>) {
    unmap(mm);
    map_anonymous(mm, pages(COMES, COMES + 2));
    handle_mm_fault(mm, page(COMES), Access::Write).unwrap();
}

/// R6: CPU 0 maps a PTE that is none; CPU 1 unhooks the table; CPU 0 takes the lock of what it has mapped, and finds none
/// as before. To store now would be to lose the store. `pmd_same` tells, a saved none does not, and `SeenPte` takes none.
#[test]
fn none_is_no_proof_of_an_attached_table() {
    for change in [unmap, unmap_and_refill] {
        meanwhile(change, |mm, let_change| {
            let rcu = rcu::read_lock(mm.machine());
            let pmds = pmd_offset(mm, &rcu, page(COMES)).unwrap();
            let (pmd, address) = (pmds.slot(page(COMES + 1)), page(COMES + 1));
            let [good, bad] = std::array::from_fn(|_| pte_offset_map_rw_nolock(mm, pmd, address).unwrap());
            let seen = good.load();
            assert_eq!((seen, SeenPte::new(seen)), (Entry::NONE, None));
            let_change();
            let frame = good.pmd().pfn();
            assert!(good.lock_if_pmd_same().is_none(), "a table that has gone passes for attached");
            let locked = bad.lock_if_same_or_none(seen).expect("none is still none, that is the trap");
            assert!(mm.memory().memmap().page(frame).is_detached());
            drop(locked);
            assert_eq!(mm.machine().local().held.count(), 0);
        });
    }
}

/// Spec 1.6 c: an entry that was seen and is still there proves its table attached; one that has changed proves nothing,
/// and everything is let go. A new table in the slot, and even a new page in the entry, is a change.
#[test]
fn an_entry_seen_before_is_compared_under_the_lock() {
    for (change, same) in [(unmap as fn(&TestMm), false), (unmap_and_refill, false), (|_: &TestMm| (), true)] {
        meanwhile(change, |mm, let_change| {
            let rcu = rcu::read_lock(mm.machine());
            let pmds = pmd_offset(mm, &rcu, page(COMES)).unwrap();
            let map = pte_offset_map_rw_nolock(mm, pmds.slot(page(COMES)), page(COMES)).unwrap();
            let seen = SeenPte::new(map.load()).expect("a touched page");
            let_change();
            let locked = map.lock_if_pte_same(seen);
            assert_eq!(locked.is_some(), same);
            assert_eq!(mm.machine().local().held.count(), usize::from(same));
        });
    }
}

/// I20, I11: what is mapped for reading may be locked after its table has gone: the lock is still there, and every entry
/// is none, though a new table is live in the slot.
#[test]
fn a_table_that_has_gone_can_still_be_locked_and_reads_none() {
    meanwhile(unmap_and_refill, |mm, let_change| {
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(mm, &rcu, page(COMES)).unwrap();
        let map = pte_offset_map_ro_nolock(mm, pmds.slot(page(COMES)), page(COMES)).unwrap();
        let_change();
        let _guard = map.lock();
        assert_eq!(map.load(), Entry::NONE);
        assert_ne!(pmds.slot(page(COMES)).load(), map.map.pmd());
        let now = pte_lockptr(mm, pmds.slot(page(COMES)).load());
        assert_eq!(std::ptr::eq(map.lockptr(), now), !USE_SPLIT_PTE_PTLOCKS, "I17: the lock goes with its table");
    });
}

/// I21 with nobody waiting for anybody: whatever check succeeds while tables come and go, the table is attached and stays.
#[test]
fn whatever_check_succeeds_the_table_is_attached() {
    in_each_mode!(check_while_unhooking, 0..6);
}

fn check_while_unhooking<Mode: PagingMode>(seed: u64) {
    let world = World::<Mode>::new(SimConfig::racy(512, 3, seed));
    let mm = world.alone(|| touched(&world));
    let done = AtomicBool::new(false);
    world.machine.run_all(|cpu| {
        if cpu.0 == 0 {
            (0..60).for_each(|_| unmap_and_refill(&mm));
            done.store(true, Ordering::Relaxed);
            return;
        }
        while !done.load(Ordering::Relaxed) {
            check_and_look(&mm);
        }
    });
    world.alone(|| drop(mm));
}

fn check_and_look<Mode: PagingMode>(mm: &TestMm<Mode>) {
    let rcu = rcu::read_lock(mm.machine());
    let Some(pmds) = pmd_offset(mm, &rcu, page(COMES)) else { return };
    let pmd = pmds.slot(page(COMES));
    let attached = |locked: crate::pgtable::PteLocked<'_, Sim<Mode>>| {
        for _ in 0..3 {
            assert_eq!(pmd.load(), locked.pmd(), "the slot moved on under the lock of its table");
            assert!(!mm.memory().memmap().page(locked.pmd().pfn()).is_detached(), "a detached table passed the check");
        }
    };
    if let Some(map) = pte_offset_map_rw_nolock(mm, pmd, page(COMES)) {
        map.lock_if_pmd_same().map(attached);
    }
    if let Some(map) = pte_offset_map_rw_nolock(mm, pmd, page(COMES))
        && let Some(seen) = SeenPte::new(map.load())
    {
        map.lock_if_pte_same(seen).map(attached);
    }
}
