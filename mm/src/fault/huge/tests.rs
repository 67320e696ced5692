//! Huge faults on the simulated machine, whose TLBs keep a large translation until it is flushed: one CPU, then races.

mod one_cpu;
mod races;
mod sizes;

use crate::address::VirtAddr;
use crate::address_space::Mm;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{FourLevel, Level, PagingMode, deposited_tables, leaf_at, pmd_offset};
use crate::sync::rcu;
use crate::testing::{Process, Small, World, map_huge, page, pages};
use std::sync::atomic::{AtomicU64, Ordering};

/// Room for several blocks of 2 MiB.
fn four_level() -> World<FourLevel> {
    World::new(SimConfig::calm(0x1100, 2, 1))
}

fn small() -> World<Small> {
    World::new(SimConfig::calm(256, 2, 1))
}

fn level_at<Mode: PagingMode>(mm: &Mm<Sim<Mode>>, address: VirtAddr) -> Option<Level> {
    leaf_at(mm, address).map(|(level, _)| level)
}

/// Tables deposited where those of `address` would be.
fn deposits<Mode: PagingMode>(mm: &Mm<Sim<Mode>>, address: VirtAddr) -> usize {
    let rcu = rcu::read_lock(mm.machine());
    deposited_tables(mm, pmd_offset(mm, &rcu, address).expect("a PMD table").slot(address))
}

/// I34: when a split is done, no CPU is left with the large translation, on whichever CPU it was cached.
#[test]
fn a_split_leaves_no_large_translation_behind() {
    let world = small();
    let mm = world.alone(|| {
        let mm = world.mm();
        map_huge(&mm, pages(0, 4));
        mm
    });
    let (ready, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let wait_for = |count: &AtomicU64, least| {
        while count.load(Ordering::Acquire) < least {
            world.machine.handle().pause();
        }
    };
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        process.write(page(u64::from(cpu.0)), 1).unwrap();
        ready.fetch_add(1, Ordering::Release);
        if cpu.0 == 0 {
            wait_for(&ready, 2);
            assert!(mm.split_huge_page(page(3)));
            world.machine.assert_no_translation(mm.pgd(), pages(0, 4));
            done.store(1, Ordering::Release);
        }
        wait_for(&done, 1);
        assert_eq!((process.read(page(0)), process.read(page(1))), (Ok(1), Ok(1)));
    });
    world.alone(|| drop(mm));
}
