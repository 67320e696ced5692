//! Switches, laziness and flushes at once, on eight CPUs that walk speculatively.

use crate::address_space::LoadedMm;
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::pgtable::{FiveLevel, FourLevel, Pae, PagingMode, Protection};
use crate::testing::{Process, World, in_each_mode, map_anonymous, page, pages};
use crate::vma::Access;
use std::sync::atomic::{AtomicBool, Ordering};

const ROUNDS: u64 = 60;

/// I29, I30, I31, I32, I33 (R23, R25, R26): every CPU hops between three address spaces, is lazy now and then, and takes pages
/// and tables away from the others. Whatever is used after it should have gone, the machine reports.
#[test]
fn cpus_that_come_and_go_use_nothing_stale() {
    [(6, 1), (1, 3)].into_iter().for_each(|(asids, seed)| come_and_go::<FourLevel>(asids, seed));
    come_and_go::<FiveLevel>(6, 2);
    come_and_go::<Pae>(1, 4);
}

fn come_and_go<Mode: PagingMode>(asids: usize, seed: u64) {
    let world = World::<Mode>::new(SimConfig { asids, ..SimConfig::racy(2048, 8, seed) });
    let spaces = world.alone(|| [world.mm(), world.mm(), world.mm()]);
    for mm in &spaces {
        world.alone(|| map_anonymous(mm, pages(0x200, 0x240)));
    }
    world.machine.run_all(|cpu| {
        let own = u64::from(cpu.0);
        let mut process = Process::enter(&world, &spaces[0]);
        for round in 0..ROUNDS {
            let mm = &spaces[(round as usize + cpu.index()) % 3];
            process.switch_to(mm);
            // Each CPU has a page of its own, which nobody takes away, and one that the next may take.
            process.write(page(0x200 + own), round).unwrap();
            let _ = process.write(page(0x220 + own), round);
            match round % 4 {
                0 => {
                    let victim = 0x220 + (own + 1) % 8;
                    mm.munmap(pages(victim, victim + 1)).unwrap();
                    let _ = mm.mmap(
                        pages(victim, victim + 1),
                        Protection::READ_WRITE,
                        crate::address_space::Mapping::Anonymous,
                    );
                }
                1 => {
                    // A table of this CPU's own comes and goes.
                    let first = 0x1000 + own * 0x200;
                    map_anonymous(mm, pages(first, first + 2));
                    process.write(page(first), 1).unwrap();
                    mm.munmap(pages(first, first + 2)).unwrap();
                }
                2 => {
                    process.enter_lazy();
                    (0..10).for_each(|_| world.machine.handle().pause());
                    process.switch_to(mm);
                }
                _ => {}
            }
            assert_eq!(process.read(page(0x200 + own)), Ok(round), "{cpu:?} lost what it wrote");
        }
    });
    world.alone(|| {
        world.machine.handle().assert_coherent();
        drop(spaces);
    });
}

/// I36, R37: address spaces end while CPUs that run kernel threads still have them loaded. Every other one has no tables, whose
/// removal would have told these CPUs.
#[test]
fn address_spaces_end_under_lazy_cpus() {
    in_each_mode!(end_under_lazy_cpus, 0..3);
}

fn end_under_lazy_cpus<Mode: PagingMode>(seed: u64) {
    let world = World::<Mode>::new(SimConfig::racy(1024, 8, seed));
    let handle = world.machine.handle();
    for round in 0..14 {
        let has_pages = round % 2 == 0;
        let mm = world.alone(|| world.mm());
        if has_pages {
            world.alone(|| map_anonymous(&mm, pages(0x200, 0x208)));
        }
        let ended = AtomicBool::new(false);
        let shared = std::sync::Mutex::new(Some(mm));
        let lazy = std::sync::atomic::AtomicU64::new(0);
        handle.run_all(|cpu| {
            if cpu.0 == 0 {
                while lazy.load(Ordering::Acquire) != 7 {
                    handle.pause();
                }
                let mm = shared.lock().unwrap().take();
                drop(mm);
                ended.store(true, Ordering::Release);
                return;
            }
            let mut loaded = LoadedMm::none(handle);
            let mm = shared.lock().unwrap().clone().unwrap();
            loaded.switch_to(Some(mm.clone()));
            if has_pages {
                crate::fault::handle_mm_fault(&mm, page(0x200 + u64::from(cpu.0)), Access::Write).unwrap();
            }
            loaded.enter_lazy();
            drop(mm);
            lazy.fetch_add(1, Ordering::Release);
            while !ended.load(Ordering::Acquire) {
                handle.pause();
            }
        });
    }
}
