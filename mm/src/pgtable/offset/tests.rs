//! The helper family by itself, without a fault's other checks around it.

use super::{pmd_offset, pte_at, pte_offset_map, pte_offset_map_lock, pte_unmap, pte_unmap_unlock};
use crate::address_space::Mm;
use crate::config::{USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use crate::fault::handle_mm_fault;
use crate::machine::sim::{Sim, SimConfig};
use crate::machine::{LocalFlush, Machine};
use crate::pgtable::{Entry, FourLevel, PagingMode, Table, pmd_lock, pmd_lockptr, pte_lockptr, pud_lock, pud_lockptr};
use crate::sync::{RawLock, rcu};
use crate::testing::{World, in_each_mode, map_anonymous, page, pages};
use crate::vma::Access;
use std::sync::atomic::{AtomicBool, Ordering};

fn touched(world: &World<FourLevel>, numbers: &[u64]) -> crate::address_space::MmRef<Sim<FourLevel>> {
    let mm = world.mm();
    map_anonymous(&mm, pages(0x200, 0x600));
    for number in numbers {
        handle_mm_fault(&mm, page(*number), Access::Write).unwrap();
    }
    mm
}

/// I18: a lookup that fails leaves no read section behind, one that succeeds leaves exactly one.
#[test]
fn read_sections_balance() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = touched(&world, &[0x200]);
        let machine = mm.machine();
        {
            let rcu = rcu::read_lock(machine);
            let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
            assert!(pte_offset_map(&mm, pmds.slot(page(0x400)), page(0x400)).is_none());
            assert!(pte_offset_map_lock(&mm, pmds.slot(page(0x400)), page(0x400)).is_none());
            let map = pte_offset_map(&mm, pmds.slot(page(0x200)), page(0x200)).unwrap();
            let locked = pte_offset_map_lock(&mm, pmds.slot(page(0x200)), page(0x200)).unwrap();
            assert_eq!(map.load(), locked.load());
            pte_unmap_unlock(locked);
            assert_eq!(machine.local().held.count(), 0);
            pte_unmap(map);
            assert!(rcu::in_read_section(machine));
        }
        assert!(!rcu::in_read_section(machine));
    });
}

/// I17, I26, spec 2.1: which lock a name means in this build, and that a lock is the one of the table returned with it.
#[test]
fn locks_are_those_of_the_configuration() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = touched(&world, &[0x200, 0x400]);
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
        let (first, second) = (pmds.slot(page(0x200)), pmds.slot(page(0x400)));
        let same = |a: &<Sim<FourLevel> as Machine>::Lock, b| std::ptr::eq(a, b);
        assert_eq!(same(pte_lockptr(&mm, first.load()), pte_lockptr(&mm, second.load())), !USE_SPLIT_PTE_PTLOCKS);
        assert_eq!(same(pte_lockptr(&mm, first.load()), pmd_lockptr(&mm, first)), !USE_SPLIT_PTE_PTLOCKS);
        assert_eq!(same(pmd_lockptr(&mm, first), mm.page_table_lock().lock()), !USE_SPLIT_PMD_PTLOCKS);
        assert_eq!(same(pte_lockptr(&mm, first.load()), mm.page_table_lock().lock()), !USE_SPLIT_PTE_PTLOCKS);
        assert!(same(pmd_lockptr(&mm, first), pmd_lockptr(&mm, second)), "one PMD table, one lock");
        let locked = pte_offset_map_lock(&mm, first, page(0x200)).unwrap();
        assert!(pte_lockptr(&mm, locked.pmd()).is_locked());
        assert_eq!(pte_lockptr(&mm, second.load()).is_locked(), !USE_SPLIT_PTE_PTLOCKS);
    });
}

/// Spec 2.1: above the PMD there is one lock in every build; it is the PMD table's too unless that has its own (I26).
#[test]
fn the_lock_above_the_pmd_is_the_address_spaces() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = touched(&world, &[0x200]);
        let rcu = rcu::read_lock(mm.machine());
        let (top, pmds) = (Table::top(&mm), pmd_offset(&mm, &rcu, page(0x200)).unwrap());
        let (above, pmd) = (pud_lockptr(&mm, top.slot(page(0x200))), pmd_lockptr(&mm, pmds.slot(page(0x200))));
        assert!(std::ptr::eq(above, mm.page_table_lock().lock()));
        let held = pud_lock(&mm);
        assert_eq!((above.is_locked(), pmd.is_locked()), (true, !USE_SPLIT_PMD_PTLOCKS));
        drop(held);
        assert!(!above.is_locked());
    });
}

/// Spec 2.1: where the PMD's and the PTE table's lock may be one, it is compared before the second is taken and before it
/// is released.
#[test]
fn one_lock_by_two_names_is_taken_and_released_once() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = touched(&world, &[0x200]);
        let rcu = rcu::read_lock(mm.machine());
        let pmds = pmd_offset(&mm, &rcu, page(0x200)).unwrap();
        let pmd = pmds.slot(page(0x200));
        let outer = pmd_lock(&mm, pmd);
        let inner = outer.nested(&mm, pmd.load(), crate::pgtable::Level::Pte);
        assert_eq!(inner.is_some(), USE_SPLIT_PTE_PTLOCKS);
        drop(inner);
        assert!(pmd_lockptr(&mm, pmd).is_locked(), "released with the inner name");
        drop(outer);
        assert!(!pmd_lockptr(&mm, pmd).is_locked());
    });
}

#[test]
fn an_address_without_a_table_has_no_pte() {
    let world = World::<FourLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = touched(&world, &[0x200]);
        assert_eq!(pte_at(&mm, page(0x201)), Some(Entry::NONE));
        assert_eq!(pte_at(&mm, page(0x400)), None);
        assert_eq!(pte_at(&mm, page(1 << 30)), None);
    });
}

/// R3, I16: a table is never unhooked while somebody holds the lock that `pte_offset_map_lock` gave. The holder checks
/// nothing else here, so nothing but the helper's own second look protects it.
#[test]
fn a_locked_table_stays_in_its_slot() {
    in_each_mode!(hold_while_unhooking, 0..6);
}

fn hold_while_unhooking<Mode: PagingMode>(seed: u64) {
    let world = World::<Mode>::new(SimConfig::racy(256, 3, seed));
    let mm = world.alone(|| {
        let mm = world.mm();
        // Keeps the PMD table, so that only the PTE table comes and goes.
        map_anonymous(&mm, pages(0x400, 0x401));
        handle_mm_fault(&mm, page(0x400), Access::Write).unwrap();
        mm
    });
    let done = AtomicBool::new(false);
    world.machine.run_all(|cpu| {
        if cpu.0 == 0 {
            for _ in 0..60 {
                map_anonymous(&mm, pages(0x200, 0x201));
                handle_mm_fault(&mm, page(0x200), Access::Write).unwrap();
                mm.munmap(pages(0x200, 0x201)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            return;
        }
        while !done.load(Ordering::Relaxed) {
            hold_and_look(&mm);
        }
    });
    world.alone(|| drop(mm));
}

fn hold_and_look<Mode: PagingMode>(mm: &Mm<Sim<Mode>>) {
    let machine = mm.machine();
    let rcu = rcu::read_lock(machine);
    let Some(pmds) = pmd_offset(mm, &rcu, page(0x200)) else { return };
    let pmd = pmds.slot(page(0x200));
    let Some(locked) = pte_offset_map_lock(mm, pmd, page(0x200)) else { return };
    for _ in 0..3 {
        assert_eq!(pmd.load(), locked.pmd(), "the slot moved on under the lock of its table");
        assert!(!mm.memory().memmap().page(locked.pmd().pfn()).is_detached(), "a detached table is held");
        machine.flush_local(LocalFlush::AddressSpace);
    }
}
