//! One rule at a time: CPU 0 changes what the others look at, use, or are idle on.
//!
//! Whole operations come to the point that matters in few of their schedules, and their oracles do not ask what a walker may
//! see halfway. These are short, and do.

use super::{CPUS, SMALL, explore, machine};
use mm::address_space::{Mapping, MmRef};
use mm::cpu::CpuId;
use mm::machine::sim::{Sim, SimConfig};
use mm::machine::{Machine, WaitingRule};
use mm::pgtable::{
    Entry, Level, Pae, PagingMode, Protection, leaf_at, pmd_offset, pte_at, pte_offset_map, pte_offset_map_lock,
};
use mm::sync::spin::SpinLock;
use mm::sync::ticket::TicketLock;
use mm::sync::{LockClass, rcu};
use mm::testing::{Process, Small, World, page, pages};
use mm::tlb::check_latched;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

type Space<Mode> = MmRef<Sim<Mode>>;

/// The pages of one PTE table of the smallest mode.
const FIRST: u64 = SMALL[0];
const END: u64 = FIRST + 4;
/// How often each of the others does what it does.
const TIMES: u64 = 4;

/// A world, and an address space in it that maps the pages from `FIRST`, each of which has been written.
fn written<Mode: PagingMode>(seed: u64, mapping: Mapping<Sim<Mode>>) -> (World<Mode>, Space<Mode>) {
    let world: World<Mode> = World::new(machine(96, CPUS, seed));
    let mm = world.alone(|| {
        let mm = world.mm();
        mm.mmap(pages(FIRST, END), Protection::READ_WRITE, mapping).unwrap();
        let process = Process::enter(&world, &mm);
        (FIRST..END).for_each(|number| process.write(page(number), number).unwrap());
        drop(process);
        mm
    });
    (world, mm)
}

/// CPU 0 does `change`, the others do `look`, several times. All run in the address space.
fn race<Mode: PagingMode>(
    (world, mm): (World<Mode>, Space<Mode>),
    change: impl Fn(&Space<Mode>, &Process<Mode>) + Sync,
    look: impl Fn(&Space<Mode>, &mut Process<Mode>) + Sync,
) {
    world.machine.run_all(|cpu| {
        let mut process = Process::enter(&world, &mm);
        if cpu == CpuId(0) {
            change(&mm, &process);
        } else {
            (0..TIMES).for_each(|_| look(&mm, &mut process));
        }
    });
    world.machine.assert_coherent();
    world.alone(|| drop(mm));
}

/// R12, I28: whoever looks at a huge entry without its lock finds it huge or a table.
#[test]
fn an_entry_in_split_is_never_none() {
    explore(1000, |seed| {
        let (world, mm) = written::<Small>(seed, Mapping::AnonymousHuge);
        world.alone(|| assert!(leaf_at(&mm, page(FIRST)).is_some_and(|(level, _)| level == Level::Pmd)));
        race(
            (world, mm),
            |mm, _| {
                mm.mprotect(pages(FIRST, END), Protection::READ).unwrap();
                assert!(mm.split_huge_page(page(FIRST)));
            },
            |mm, _| assert!(leaf_at(mm, page(FIRST)).is_some(), "an entry in split is none"),
        );
    });
}

/// R11, I10: a table that becomes a huge page stays as it was to those who walk it.
#[test]
fn a_collapse_leaves_a_table_to_its_walkers() {
    explore(1000, |seed| {
        race(
            written::<Small>(seed, Mapping::Anonymous),
            |mm, _| mm.collapse_huge_page(page(FIRST)).unwrap(),
            |mm, _| {
                let rcu = rcu::read_lock(mm.machine());
                let pmds = pmd_offset(mm, &rcu, page(FIRST)).unwrap();
                if let Some(pte) = pte_offset_map(mm, pmds.slot(page(FIRST)), page(FIRST)) {
                    // Each look is a point where the flush may interrupt it.
                    assert!((0..8).all(|_| pte.load().is_present()), "a table is emptied under its walker");
                }
            },
        );
    });
}

/// R3, I16: a table whose lock is held stays where it was found.
#[test]
fn a_locked_table_stays_in_its_slot() {
    explore(1000, |seed| {
        race(
            written::<Small>(seed, Mapping::Anonymous),
            |mm, process| {
                for _ in 0..2 {
                    mm.munmap(pages(FIRST, END)).unwrap();
                    mm.mmap(pages(FIRST, END), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
                    process.write(page(FIRST), FIRST).unwrap();
                }
            },
            |mm, _| {
                let rcu = rcu::read_lock(mm.machine());
                let Some(pmds) = pmd_offset(mm, &rcu, page(FIRST)) else { return };
                let pmd = pmds.slot(page(FIRST));
                if let Some(locked) = pte_offset_map_lock(mm, pmd, page(FIRST)) {
                    assert!((0..3).all(|_| pmd.load() == locked.pmd()), "a locked table leaves its slot");
                }
            },
        );
    });
}

/// R14: what a thread of the parent stored first is in the child if what it stored later is. The first page is in a table that
/// is shared before the second's.
#[test]
fn a_child_is_a_snapshot() {
    explore(2000, |seed| {
        let [early, late] = SMALL;
        let (world, mm) = written::<Small>(seed, Mapping::Anonymous);
        world.alone(|| {
            mm.mmap(pages(late, late + 4), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
        });
        world.machine.run_all(|cpu| {
            let own = u64::from(cpu.0);
            let process = Process::enter(&world, &mm);
            if cpu != CpuId(0) {
                for number in 1..=TIMES {
                    process.write(page(early + own), number).unwrap();
                    process.write(page(late + own), number).unwrap();
                }
                return;
            }
            let child = mm.fork().unwrap();
            drop(process);
            let inside = Process::enter(&world, &child);
            for own in 1..CPUS as u64 {
                let read = |number| inside.read(page(number)).unwrap();
                let (early, late) = (read(early + own), read(late + own));
                let is_first = early == FIRST + own && late == 0;
                assert!(is_first || early == late || early == late + 1, "{early} was stored before {late}");
            }
        });
        world.alone(|| drop(mm));
    });
}

/// R26: a CPU that comes back from a kernel thread does not go by what it had cached of a right that has been taken since.
#[test]
fn a_right_that_is_taken_is_not_used_by_who_was_lazy() {
    explore(1000, |seed| {
        let (world, mm) = written::<Small>(seed, Mapping::Anonymous);
        let sim = world.machine.handle();
        race(
            (world, mm),
            |mm, process| {
                for _ in 0..TIMES {
                    mm.mprotect(pages(FIRST, END), Protection::READ).unwrap();
                    let before = process.read(page(FIRST)).unwrap();
                    (0..8).for_each(|_| sim.pause());
                    assert_eq!(process.read(page(FIRST)), Ok(before), "a store that was forbidden");
                    mm.mprotect(pages(FIRST, END), Protection::READ_WRITE).unwrap();
                }
            },
            |mm, process| {
                let _ = process.fetch_add(page(FIRST), 1);
                process.enter_lazy();
                (0..4).for_each(|_| sim.pause());
                process.switch_to(mm);
                let _ = process.fetch_add(page(FIRST), 1);
            },
        );
    });
}

/// R37, I36: the last reference of an address space goes while CPUs have it loaded for nobody. It has no tables but the top one,
/// whose end nothing else would tell them of.
#[test]
fn address_spaces_end_under_lazy_cpus() {
    explore(1000, |seed| {
        let world: World<Small> = World::new(machine(16, CPUS, seed));
        let mm = world.alone(|| world.mm());
        let references: Vec<_> = (0..CPUS).map(|_| Mutex::new(Some(mm.clone()))).collect();
        world.alone(|| drop(mm));
        world.machine.run_all(|cpu| {
            let own = references[cpu.0 as usize].lock().unwrap().take().unwrap();
            let mut process = Process::enter(&world, &own);
            drop(own);
            process.enter_lazy();
            (0..8).for_each(|_| world.machine.handle().pause());
            drop(process);
        });
    });
}

/// R38, I44, I47: CPUs that halt as soon as they find a lock taken, in its queue and outside of it.
#[test]
fn whoever_waits_for_a_lock_is_woken() {
    explore(600, |seed| {
        let rounds = (seed % 3) as u32;
        let waiting_rule = WaitingRule { rounds, polls: 1, polls_per_pause: 1 };
        let world: World<Small> = World::new(SimConfig { waiting_rule, ..machine(16, CPUS, seed) });
        let sim = world.machine.handle();
        let (counter, is_owned) = (SpinLock::<u64, TicketLock>::new(0), AtomicBool::new(false));
        sim.run_all(|_| {
            for _ in 0..TIMES {
                let mut counter = counter.lock(sim, LockClass::Other);
                assert!(!is_owned.swap(true, Ordering::Relaxed), "two owners");
                sim.pause();
                *counter += 1;
                is_owned.store(false, Ordering::Relaxed);
            }
        });
        world.alone(|| assert_eq!(*counter.lock(sim, LockClass::Other), TIMES * CPUS as u64));
    });
}

/// R31, I38: PMD tables come and go under four CPUs, each of which has a page in their GiB now and then. A CPU that does not know
/// that an entry of the top table was filled faults for ever; one that does not know that it was emptied walks what was freed.
#[test]
fn top_entries_come_and_go() {
    const GIB: u64 = 1 << 18;
    explore(300, |seed| {
        let world: World<Pae> = World::new(machine(128, CPUS, seed));
        let mm = world.alone(|| world.mm());
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            let own = GIB + u64::from(cpu.0);
            for _ in 0..2 {
                mm.mmap(pages(own, own + 1), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
                assert_eq!(process.fetch_add(page(own), 1), Ok(0), "an old page shows");
                assert_eq!(check_latched(&mm), Ok(()));
                mm.munmap(pages(own, own + 1)).unwrap();
                assert_eq!(check_latched(&mm), Ok(()));
            }
        });
        world.machine.assert_coherent();
        world.alone(|| drop(mm));
    });
}

/// I40: an entry of two words that is filled, or changes in both, is the one or the other or none. The low word says that it may
/// be written, the high one that it may be executed, and no entry here says both.
#[test]
fn an_entry_of_two_words_is_never_seen_mixed() {
    const CODE: Protection = Protection { write: false, execute: true };
    const FRESH: u64 = END + 4;
    explore(600, |seed| {
        race(
            written::<Pae>(seed, Mapping::Anonymous),
            |mm, process| {
                mm.mmap(pages(END, FRESH), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
                for fresh in END..FRESH {
                    process.write(page(fresh), fresh).unwrap();
                    mm.mprotect(pages(FIRST, END), CODE).unwrap();
                    mm.mprotect(pages(FIRST, END), Protection::READ_WRITE).unwrap();
                    process.write(page(FIRST), FIRST).unwrap();
                }
            },
            |mm, _| {
                for number in (END..FRESH).chain([FIRST]) {
                    let entry = pte_at(mm, page(number)).unwrap_or(Entry::NONE);
                    assert!(entry.is_none() || !(entry.is_writable() && entry.is_executable()), "a mix: {entry:?}");
                }
            },
        );
    });
}
