//! Whole operations of an address space, mixed on simulated CPUs, under schedules of which each has a seed.
//!
//! What each test shows of every schedule it ran: the simulated machine found no broken rule, nobody waited for ever, what was
//! read had been written there, no store was lost where nothing takes pages away, and all that was taken was given back.
#![cfg(shuttle)]

#[path = "shuttle_machine/rules.rs"]
mod rules;
mod shuttle_machine;

use mm::address::{VirtAddr, VirtRange};
use mm::address_space::{Mapping, MmRef};
use mm::cpu::CpuId;
use mm::fault::FaultError;
use mm::machine::Machine;
use mm::machine::sim::Sim;
use mm::object::Object;
use mm::pgtable::{FourLevel, Pae, PagingMode, Protection, pte_at};
use mm::testing::{Process, Small, SmallPae, World, page, pages};
use shuttle_machine::{Dice, explore, failing_seed, machine};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const CPUS: usize = 4;

/// What a process, or the kernel for it, may do at any time, to a part of one of its two places.
#[derive(Clone, Copy)]
enum Operation {
    /// Loads and stores, by all that fault.
    Touch,
    Map,
    Unmap,
    Forbid,
    Allow,
    /// `madvise(DONTNEED)`, which takes emptied tables away.
    Drop,
    /// To the same part of the other place.
    Move,
    Collapse,
    Split,
    /// A kernel thread runs for a while.
    Leave,
    /// A look at entries without their locks.
    Look,
    Fork,
}

use Operation::{Allow, Collapse, Drop, Forbid, Fork, Leave, Look, Map, Move, Split, Touch, Unmap};

/// Who does what where.
struct Scene {
    /// First pages of the two places.
    places: [u64; 2],
    /// Pages of each.
    pages: u64,
    /// What the changers choose from; the other CPUs touch.
    operations: &'static [Operation],
    changers: u32,
    /// Operations of each CPU.
    steps: u64,
}

/// One CPU of a scene.
struct Actor<'a, Mode: PagingMode> {
    world: &'a World<Mode>,
    scene: &'a Scene,
    mm: &'a MmRef<Sim<Mode>>,
    process: Process<Mode>,
    cpu: CpuId,
    dice: Dice,
    /// Times something was added to a page of `mm`.
    added: u64,
}

/// The word of a page that says which it is, and that which counts.
const NAME: u64 = 0;
const COUNT: u64 = 8;

impl<Mode: PagingMode> Actor<'_, Mode> {
    /// A part of one of the two places, and where it would be in the other.
    fn part(&mut self) -> (VirtRange, VirtRange) {
        let Scene { places, pages: count, .. } = *self.scene;
        let from = self.dice.below(2) as usize;
        // The whole of it is what empties tables.
        let start = if self.dice.below(2) == 0 { 0 } else { self.dice.below(count) };
        let end = if start == 0 { count } else { start + 1 + self.dice.below(count - start) };
        let at = |place: u64| pages(place + start, place + end);
        (at(places[from]), at(places[1 - from]))
    }

    fn act(&mut self, operation: Operation) {
        let (part, other) = self.part();
        let mm = self.mm;
        // Of what another has taken away in the meantime nothing can be changed, and so on: any error will do.
        let _ = match operation {
            Touch => {
                self.touch();
                Ok(())
            }
            Map => mm.mmap(part, Protection::READ_WRITE, Mapping::AnonymousHuge),
            Unmap => {
                let unmapped = mm.munmap(part);
                if self.scene.changers == 1 && unmapped.is_ok() {
                    self.world.machine.assert_no_translation(mm.pgd(), part);
                    assert_eq!(self.process.read(part.start), Err(FaultError::NotMapped));
                }
                unmapped
            }
            Forbid => {
                let forbidden = mm.mprotect(part, Protection::READ);
                if self.scene.changers == 1 && forbidden.is_ok() {
                    let count = || self.process.read(VirtAddr(part.start.0 + COUNT));
                    let before = count();
                    // Time for a store through what a TLB still has.
                    (0..8).for_each(|_| self.world.machine.handle().pause());
                    assert_eq!(count(), before, "a store that was forbidden");
                }
                forbidden
            }
            Allow => mm.mprotect(part, Protection::READ_WRITE),
            Drop => mm.madvise_dontneed(part),
            Move => mm.mremap(part, other),
            Collapse => {
                let _ = mm.collapse_huge_page(part.start);
                Ok(())
            }
            Split => {
                mm.split_huge_page(part.start);
                Ok(())
            }
            Leave => {
                self.process.enter_lazy();
                let dropped = mm.madvise_dontneed(part);
                self.process.switch_to(mm);
                dropped
            }
            Look => {
                (0..self.scene.pages).for_each(|number| {
                    let _ = pte_at(mm, VirtAddr(part.start.0 + number * 4096));
                });
                Ok(())
            }
            Fork => mm.fork().map(|child| {
                self.process.switch_to(&child);
                let added = self.added;
                self.touch();
                self.added = added;
                self.process.switch_to(mm);
            }),
        };
    }

    /// Reads and writes a few pages. What is read was written to that page, or to the one it was moved from.
    fn touch(&mut self) {
        for _ in 0..2 {
            let number = self.dice.below(self.scene.pages);
            let place = self.scene.places[self.dice.below(2) as usize];
            let address = page(place + number);
            let word = |offset| VirtAddr(address.0 + offset);
            match self.dice.below(3) {
                0 => {
                    let _ = self.process.write(word(NAME), number + 1);
                }
                1 => self.added += u64::from(self.process.fetch_add(word(COUNT), 1).is_ok()),
                _ => {
                    let read = self.process.read(word(NAME)).unwrap_or(0);
                    assert!(read == 0 || read == number + 1, "{read:#x} is read at {address:?}");
                }
            }
        }
    }
}

/// Plays a scene under the schedule of `seed`.
fn play<Mode: PagingMode>(scene: &Scene, seed: u64) {
    let world: World<Mode> = World::new(machine(160, CPUS, seed));
    let whole = |place: u64| pages(place, place + scene.pages);
    let takes_pages = scene.operations.iter().any(|operation| matches!(operation, Unmap | Drop | Leave));
    let mm = world.alone(|| {
        let mm = world.mm();
        let is_moved = scene.operations.iter().any(|operation| matches!(operation, Move));
        // What is moved needs a free place to go to.
        for place in &scene.places[is_moved as usize..] {
            mm.mmap(whole(*place), Protection::READ_WRITE, Mapping::AnonymousHuge).unwrap();
        }
        mm
    });
    let added = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        let dice = Dice::new(seed, 1 + u64::from(cpu.0));
        let process = Process::enter(&world, &mm);
        let mut actor = Actor { world: &world, scene, mm: &mm, process, cpu, dice, added: 0 };
        for _ in 0..scene.steps {
            let choice = actor.dice.below(scene.operations.len() as u64) as usize;
            actor.act(if actor.cpu.0 < scene.changers { scene.operations[choice] } else { Touch });
        }
        added.fetch_add(actor.added, Ordering::Relaxed);
    });
    world.machine.assert_coherent();
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        let count = |address: u64| process.read(VirtAddr(address + COUNT)).unwrap_or(0);
        let found: u64 = scene
            .places
            .iter()
            .flat_map(|place| (0..scene.pages).map(move |number| page(place + number).0))
            .map(count)
            .sum();
        assert!(takes_pages || found == added.load(Ordering::Relaxed), "stores are lost");
        drop(process);
        drop(mm);
    });
}

/// Two PTE tables of the smallest mode, whose tables have four entries.
const SMALL: [u64; 2] = [0x04, 0x14];

const EVERYTHING: &[Operation] =
    &[Touch, Touch, Map, Unmap, Forbid, Allow, Drop, Move, Collapse, Split, Leave, Look, Fork];

/// What the tests below rely on: the seed is all that a run depends on.
#[test]
fn a_seed_repeats_a_run() {
    const SCENE: Scene = Scene { places: [0x0e, 0x2e], pages: 8, operations: EVERYTHING, changers: 4, steps: 3 };
    static POINTS: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let run = || {
        let failed = failing_seed(0..20, |seed| {
            play::<Small>(&SCENE, seed);
            POINTS.lock().unwrap().push(shuttle::current::context_switches());
        });
        assert_eq!(failed, None);
        std::mem::take(&mut *POINTS.lock().unwrap())
    };
    assert_eq!(run(), run());
}

/// And what is wrong is found, if only some schedules show it.
#[test]
fn a_race_is_found() {
    let failing = failing_seed(0..100, |seed| {
        let world: World<Small> = World::new(machine(16, 2, seed));
        let count = mm::sync::atomic::AtomicUsize::new(0);
        world.machine.run_all(|_| count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
        assert_eq!(count.load(Ordering::Relaxed), 2);
    });
    assert!(failing.is_some());
}

/// R1 to R8, R12 to R15, R17 to R21, R23 to R28, R35, R37, R38, R41, as they come.
#[test]
fn everything_at_once() {
    const SCENE: Scene = Scene { places: [0x0e, 0x2e], pages: 8, operations: EVERYTHING, changers: 4, steps: 6 };
    explore(1200, |seed| play::<Small>(&SCENE, seed));
}

/// The same where tables have 512 entries, so that none is ever full and no page is huge.
#[test]
fn everything_at_once_in_four_levels() {
    const SCENE: Scene = Scene { places: [0x1fc, 0x5fc], pages: 8, operations: EVERYTHING, changers: 4, steps: 6 };
    explore(200, |seed| play::<FourLevel>(&SCENE, seed));
}

/// R29 to R31 besides: entries have two words, and CPUs copy the top table.
#[test]
fn everything_at_once_with_small_pae_tables() {
    const SCENE: Scene = Scene { places: [0x0e, 0x1e], pages: 8, operations: EVERYTHING, changers: 4, steps: 6 };
    explore(400, |seed| play::<SmallPae>(&SCENE, seed));
}

/// The same in PAE's own tables of 512 entries, without huge pages.
#[test]
fn everything_at_once_with_pae() {
    const SCENE: Scene =
        Scene { places: [0x3_fffc, 0x7_fffc], pages: 8, operations: EVERYTHING, changers: 4, steps: 6 };
    explore(200, |seed| play::<Pae>(&SCENE, seed));
}

/// R3, R20, R41: one CPU maps and unmaps what the others touch.
#[test]
fn faults_against_munmap() {
    const SCENE: Scene = Scene { places: SMALL, pages: 4, operations: &[Map, Unmap], changers: 1, steps: 8 };
    explore(1200, |seed| play::<Small>(&SCENE, seed));
}

/// R3, R7, R8, R21: two CPUs take pages and tables away that the others fill again.
#[test]
fn faults_against_advice() {
    const SCENE: Scene = Scene { places: SMALL, pages: 4, operations: &[Drop, Drop, Touch], changers: 2, steps: 8 };
    explore(1200, |seed| play::<Small>(&SCENE, seed));
}

/// R4, R25, R26: tables go under those who look at them without a lock, and under CPUs that have them loaded for nobody.
#[test]
fn lookers_and_lazy_cpus_against_advice() {
    const SCENE: Scene =
        Scene { places: SMALL, pages: 4, operations: &[Drop, Leave, Look, Touch], changers: 4, steps: 6 };
    explore(1200, |seed| play::<Small>(&SCENE, seed));
}

/// R4, R25: the same with tables above that go too.
#[test]
fn lookers_against_munmap() {
    const SCENE: Scene =
        Scene { places: SMALL, pages: 4, operations: &[Map, Unmap, Look, Look], changers: 3, steps: 8 };
    explore(1200, |seed| play::<Small>(&SCENE, seed));
}

/// R21: of two CPUs that drop one page, the second finds nothing left to drop, and must not go on before the first has flushed.
#[test]
fn nobody_reads_what_was_dropped() {
    explore(300, |seed| {
        let world: World<Small> = World::new(machine(64, CPUS, seed));
        let mm = world.alone(|| {
            let mm = world.mm();
            mm.mmap(pages(4, 8), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
            let process = Process::enter(&world, &mm);
            (4..8).for_each(|number| process.write(page(number), 1).unwrap());
            drop(process);
            mm
        });
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            let number = 4 + u64::from(cpu.0) / 2;
            let _ = process.read(page(number));
            mm.madvise_dontneed(pages(number, number + 1)).unwrap();
            assert_eq!(process.read(page(number)), Ok(0));
        });
        world.alone(|| drop(mm));
    });
}

/// R17, R18: rights come and go under stores.
#[test]
fn stores_against_mprotect() {
    const SCENE: Scene = Scene { places: SMALL, pages: 4, operations: &[Forbid, Allow], changers: 1, steps: 8 };
    explore(1000, |seed| play::<Small>(&SCENE, seed));
}

/// R14, R17, R18: pages are shared and copied while they are stored to.
#[test]
fn stores_against_fork() {
    const SCENE: Scene = Scene { places: SMALL, pages: 4, operations: &[Fork, Fork, Touch], changers: 2, steps: 5 };
    explore(1000, |seed| play::<Small>(&SCENE, seed));
}

/// R15, R19: pages move between two tables while they are stored to.
#[test]
fn stores_against_mremap() {
    const SCENE: Scene = Scene { places: SMALL, pages: 4, operations: &[Move], changers: 2, steps: 6 };
    explore(1000, |seed| play::<Small>(&SCENE, seed));
}

/// R12, R13, I34: small pages become a huge one and a huge one small ones while they are stored to.
#[test]
fn stores_against_collapse() {
    const SCENE: Scene = Scene { places: SMALL, pages: 4, operations: &[Collapse, Split, Look], changers: 3, steps: 6 };
    explore(1000, |seed| play::<Small>(&SCENE, seed));
}

/// R19, I35: of two CPUs one moves pages, the other stores to them. T1 takes the entry out by a load and a store, T2's walker
/// marks it dirty between the two, and the page that was stored to is clean at its new place.
#[test]
fn no_dirty_mark_is_lost() {
    const PAGES: u64 = 3;
    const DAWDLE: u64 = 8;
    // The window is one access wide.
    explore(3000, |seed| {
        let world: World<Small> = World::new(machine(64, 2, seed));
        let [from, to] = SMALL;
        let mm = world.alone(|| {
            let mm = world.mm();
            let object = Object::create(world.memory, PAGES).unwrap();
            let range = pages(from, from + PAGES);
            mm.mmap(range, Protection::READ, Mapping::Object { object, first_page: 0 }).unwrap();
            let process = Process::enter(&world, &mm);
            (from..from + PAGES).for_each(|number| assert_eq!(process.read(page(number)), Ok(0)));
            // May be stored to from here on, and nobody has.
            mm.mprotect(range, Protection::READ_WRITE).unwrap();
            drop(process);
            mm
        });
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            let mut dice = Dice::new(seed, 1);
            for number in 0..PAGES {
                let old = pages(from + number, from + number + 1);
                if cpu == CpuId(0) {
                    mm.mremap(old, pages(to + number, to + number + 1)).unwrap();
                } else {
                    // Before the move, in its middle, or too late.
                    (0..dice.below(DAWDLE)).for_each(|_| world.machine.handle().pause());
                    let _ = process.write(old.start, 1);
                }
            }
        });
        world.alone(|| {
            let process = Process::enter(&world, &mm);
            for address in (to..to + PAGES).map(page) {
                let stored = process.read(address) == Ok(1);
                assert!(!stored || pte_at(&mm, address).unwrap().is_dirty(), "{address:?} was stored to and is clean");
            }
            drop((process, mm));
        });
    });
}
