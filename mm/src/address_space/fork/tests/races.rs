//! Forks while other CPUs store to the parent, and stores of parent and child to one page at once.

use crate::address_space::{Mapping, MmRef};
use crate::cpu::CpuId;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::object::Object;
use crate::pgtable::{PagingMode, Protection};
#[cfg(not(feature = "single-lock"))]
use crate::pgtable::{pmd_offset, pte_offset_map_lock};
use crate::stats::{Counter, StatsSnapshot};
#[cfg(not(feature = "single-lock"))]
use crate::sync::{LockClass, rcu};
use crate::testing::{Process, World, frame_at, in_each_mode, map_anonymous, page, pages};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const CPUS: u64 = 4;

fn racy<Mode: PagingMode>(frames: usize, seed: u64) -> World<Mode> {
    World::new(SimConfig::racy(frames, CPUS as usize, seed))
}

fn sum<Mode: PagingMode>(world: &World<Mode>, counter: Counter) -> u64 {
    StatsSnapshot::sum(world.machine.handle().cpus())[counter]
}

fn space<Mode: PagingMode>(world: &World<Mode>, first: u64, end: u64) -> MmRef<Sim<Mode>> {
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(first, end));
        mm
    })
}

/// R14 and the interleaving at the head of `fork.rs`: CPU 1 faults on a page that is shared by now and copies it, CPU 2
/// stores through its TLB to the old page, CPU 1 replaces that by its copy. Without the detached mark CPU 2's store is gone.
#[test]
fn no_store_of_the_parent_is_lost() {
    in_each_mode!(store_while_forking, 0..3);
}

fn store_while_forking<Mode: PagingMode>(seed: u64) {
    const FIRST: u64 = 0x1fc;
    const PAGES: u64 = 8;
    let world: World<Mode> = racy(1024, seed);
    let mm = space(&world, FIRST, FIRST + PAGES);
    let (done, added) = (AtomicBool::new(false), AtomicU64::new(0));
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 0 {
            let mut last = None;
            for _ in 0..20 {
                last = Some(mm.fork().unwrap());
            }
            drop(last);
            done.store(true, Ordering::Relaxed);
            return;
        }
        let mut mine = 0;
        while !done.load(Ordering::Relaxed) {
            process.fetch_add(page(FIRST + mine % PAGES), 1).unwrap();
            mine += 1;
        }
        added.fetch_add(mine, Ordering::Relaxed);
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        let found: u64 = (FIRST..FIRST + PAGES).map(|number| process.read(page(number)).unwrap()).sum();
        assert_eq!(found, added.load(Ordering::Relaxed), "stores are lost");
        drop(process);
        drop(mm);
    });
}

/// R14: what a thread of the parent stored first is in the child if what it stored later is, faults or not. Without the
/// detached mark a store that faults in a table already shared is missing, and a later one through the TLB is there.
#[test]
fn a_child_is_a_snapshot() {
    in_each_mode!(look_at_snapshots, 0..3);
}

fn look_at_snapshots<Mode: PagingMode>(seed: u64) {
    // `EARLY` is in a table that is shared long before `LATE`'s.
    const EARLY: u64 = 0x200;
    const LATE: u64 = 0x800;
    let world: World<Mode> = racy(1024, seed);
    let mm = space(&world, EARLY, LATE + 16);
    let done = AtomicBool::new(false);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 > 0 {
            let own = u64::from(cpu.0);
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                process.write(page(EARLY + own), number).unwrap();
                process.write(page(LATE + own), number).unwrap();
            }
            return;
        }
        for _ in 0..12 {
            let child = mm.fork().unwrap();
            let inside = Process::enter(&world, &child);
            for own in 1..CPUS {
                let (early, late) = (inside.read(page(EARLY + own)).unwrap(), inside.read(page(LATE + own)).unwrap());
                assert!(early == late || early == late + 1, "{early} was stored before {late}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    world.alone(|| drop(mm));
}

/// R14, the same with the fork held between the two tables:
///
/// ```text
///   CPU 0: fork: shares EARLY's table
///          waits for the lock of LATE's         CPU 1: has that lock
///                                               CPU 2: stores to EARLY, which was none, and waits for the fork. Without the
///                                                      detached mark: gets its page, stores to LATE
///          shares LATE's table                  CPU 1: gives the lock up
/// ```
#[test]
#[cfg(not(feature = "single-lock"))]
fn a_store_that_faults_waits_for_the_fork() {
    in_each_mode!(store_behind_a_fork, 0..3);
}

#[cfg(not(feature = "single-lock"))]
fn store_behind_a_fork<Mode: PagingMode>(seed: u64) {
    const EARLY: u64 = 0x200;
    const LATE: u64 = 0x800;
    let world: World<Mode> = World::new(SimConfig::racy(512, 3, seed));
    let machine = world.machine.handle();
    let mm = space(&world, EARLY, LATE + 1);
    let step = AtomicU64::new(0);
    let await_step = |wanted: u64| {
        while step.load(Ordering::Acquire) < wanted {
            machine.pause();
        }
    };
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        let store = |numbers: [u64; 2], value| numbers.map(|number| process.write(page(number), value).unwrap());
        match cpu.0 {
            0 => {
                await_step(2);
                let child = mm.fork().unwrap();
                let inside = Process::enter(&world, &child);
                let found = [EARLY, LATE].map(|number| inside.read(page(number)).unwrap());
                assert_eq!(found, [0, 1], "of two stores the child has the second alone");
            }
            1 => {
                await_step(1);
                let rcu = rcu::read_lock(machine);
                let pmds = pmd_offset(&mm, &rcu, page(LATE)).unwrap();
                let _locked = pte_offset_map_lock(&mm, pmds.slot(page(LATE)), page(LATE)).unwrap();
                step.store(2, Ordering::Release);
                let forker = &machine.cpus().of(CpuId(0)).parking;
                while forker.waiting_for().is_none_or(|waiting| waiting.class != LockClass::Pte) {
                    machine.pause();
                }
                step.store(3, Ordering::Release);
                while step.load(Ordering::Acquire) < 4 && !mm.mmap_lock().has_waiting_readers() {
                    machine.pause();
                }
            }
            _ => {
                store([EARLY + 1, LATE], 1);
                step.store(1, Ordering::Release);
                await_step(3);
                store([EARLY, LATE], 2);
                step.store(4, Ordering::Release);
            }
        }
    });
    world.alone(|| drop(mm));
}

/// R14: the parent goes on in its other mappings while it is forked, in tables that are just being copied too.
#[test]
fn the_parent_s_other_mappings_go_on() {
    in_each_mode!(go_on_elsewhere, 0..3);
}

fn go_on_elsewhere<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(2048, seed);
    let object = world.alone(|| Object::create(world.memory, 16).unwrap());
    let mm = space(&world, 0x100, 0x140);
    world.alone(|| {
        let mapping = Mapping::Object { object: object.clone(), first_page: 0 };
        mm.mmap(pages(0x140, 0x150), Protection::READ_WRITE, mapping).unwrap();
        let process = Process::enter(&world, &mm);
        (0x100..0x140).for_each(|number| process.write(page(number), number).unwrap());
    });
    let done = AtomicBool::new(false);
    let added = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 > 0 {
            let mut mine = 0;
            while !done.load(Ordering::Relaxed) {
                process.fetch_add(page(0x140 + mine % 16), 1).unwrap();
                mine += 1;
            }
            added.fetch_add(mine, Ordering::Relaxed);
            return;
        }
        for _ in 0..8 {
            let child = mm.fork().unwrap();
            let inside = Process::enter(&world, &child);
            (0x100..0x140).for_each(|number| assert_eq!(inside.read(page(number)), Ok(number)));
        }
        done.store(true, Ordering::Relaxed);
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        let found: u64 = (0x140..0x150).map(|number| process.read(page(number)).unwrap()).sum();
        assert_eq!(found, added.load(Ordering::Relaxed));
        drop(process);
        drop((object, mm));
    });
}

/// R18, I1: two CPUs of the parent and two of the child store to each shared page: one copy at most on either side, every
/// increment is there, and each page ends as one frame with one reference and one mapping.
#[test]
fn a_shared_page_is_copied_once() {
    in_each_mode!(copy_once, 0..8);
}

fn copy_once<Mode: PagingMode>(seed: u64) {
    const PAGES: u64 = 24;
    let world: World<Mode> = racy(512, seed);
    let mm = space(&world, 0x1f0, 0x1f0 + PAGES);
    let child = world.alone(|| {
        let process = Process::enter(&world, &mm);
        (0..PAGES).for_each(|number| process.write(page(0x1f0 + number), 100 + number).unwrap());
        mm.fork().unwrap()
    });
    let spaces = [mm, child];
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &spaces[cpu.index() % 2]);
        for number in 0..PAGES {
            process.read(page(0x1f0 + number)).unwrap();
        }
        for number in 0..PAGES {
            let before = process.fetch_add(page(0x1f0 + number), 1).unwrap();
            assert!(process.read(page(0x1f0 + number)).unwrap() > before, "a read went to the old page");
        }
    });
    let (copied, reused) = (sum(&world, Counter::PageCopied), sum(&world, Counter::PageReused));
    assert_eq!(copied + reused, 2 * PAGES, "{copied} copied, {reused} reused");
    assert!(copied >= PAGES);
    world.alone(|| {
        for space in &spaces {
            let process = Process::enter(&world, space);
            for number in 0..PAGES {
                assert_eq!(process.read(page(0x1f0 + number)), Ok(100 + number + CPUS / 2), "an increment is lost");
                assert_eq!(super::counts(&world, space, 0x1f0 + number), (1, 1));
            }
        }
        drop(spaces);
    });
}

/// R18, spec 7.3: once a store to a copied page is over, no CPU of that address space loads from the old page.
#[test]
fn nobody_reads_a_page_after_its_copy_shows() {
    in_each_mode!(read_after_a_copy, 0..4);
}

fn read_after_a_copy<Mode: PagingMode>(seed: u64) {
    const PAGES: u64 = 16;
    let world: World<Mode> = racy(512, seed);
    let mm = space(&world, 0x200, 0x200 + PAGES);
    let child = world.alone(|| {
        let process = Process::enter(&world, &mm);
        (0..PAGES).for_each(|number| process.write(page(0x200 + number), 1).unwrap());
        mm.fork().unwrap()
    });
    let (readers, written) = (AtomicU64::new(0), AtomicU64::new(0));
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &child);
        let wait_for = |count: &AtomicU64, least| {
            while count.load(Ordering::Acquire) < least {
                world.machine.handle().pause();
            }
        };
        for number in 0..PAGES {
            if cpu == CpuId(0) {
                wait_for(&readers, (number + 1) * (CPUS - 1));
                process.write(page(0x200 + number), 2).unwrap();
                written.fetch_add(1, Ordering::Release);
            } else {
                assert_eq!(process.read(page(0x200 + number)), Ok(1));
                readers.fetch_add(1, Ordering::Release);
                wait_for(&written, number + 1);
                assert_eq!(process.read(page(0x200 + number)), Ok(2), "the old page is read");
            }
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        assert!((0..PAGES).all(|number| process.read(page(0x200 + number)) == Ok(1)), "the parent sees the child's");
        drop(process);
        drop((child, mm));
    });
}

/// A page that the other side is just taking out is not stored to before the other side's CPUs have flushed it: references
/// decide, not mappings.
#[test]
fn a_page_under_removal_elsewhere_is_not_reused() {
    in_each_mode!(remove_elsewhere, 0..8);
}

fn remove_elsewhere<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = racy(1024, seed);
    let mm = space(&world, 0x200, 0x210);
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        (0x200..0x210).for_each(|number| process.write(page(number), 1).unwrap());
    });
    for _ in 0..6 {
        let child = world.alone(|| mm.fork().unwrap());
        let gone = AtomicBool::new(false);
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, if cpu.0 < 2 { &mm } else { &child });
            match cpu.0 {
                // Stores whatever it can to the parent's pages.
                0 => (0x200..0x210).for_each(|number| {
                    process.write(page(number), 2).unwrap();
                    process.write(page(number), 1).unwrap();
                }),
                // Takes the child's pages away, while another CPU of the child loads through its TLB.
                2 => {
                    child.munmap(pages(0x200, 0x210)).unwrap();
                    gone.store(true, Ordering::Release);
                }
                3 => {
                    while !gone.load(Ordering::Acquire) {
                        for number in 0x200..0x210 {
                            let seen = process.read(page(number));
                            assert!(matches!(seen, Ok(1) | Err(_)), "the child sees the parent's {seen:?}");
                        }
                    }
                }
                _ => (),
            }
        });
        world.alone(|| drop(child));
    }
    world.alone(|| {
        assert!(frame_at(&world, &mm, page(0x200)).is_some());
        drop(mm);
    });
}
