//! `mremap` on the simulated machine: one CPU first, then against faults and walkers.

use crate::address::VirtRange;
use crate::address_space::{MapError, Mapping, MmRef};
use crate::cpu::CpuId;
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::object::Object;
use crate::pgtable::{FourLevel, PagingMode, Protection, pte_at};
use crate::testing::{Process, World, frame_at, in_each_mode, map_anonymous, page, pages};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const CPUS: usize = 4;

fn calm() -> World<FourLevel> {
    World::new(SimConfig::calm(2048, 2, 1))
}

/// Eight pages from `first` on that hold their number.
fn numbered<Mode: PagingMode>(world: &World<Mode>, first: u64) -> MmRef<Sim<Mode>> {
    let mm = world.mm();
    map_anonymous(&mm, pages(first, first + 8));
    let process = Process::enter(world, &mm);
    (first..first + 8).for_each(|number| process.write(page(number), number).unwrap());
    drop(process);
    mm
}

/// Within one table, across the border of two, far away and back: the pages move, nothing else does.
#[test]
fn a_mapping_moves_with_its_pages() {
    let world = calm();
    world.alone(|| {
        for to in [0x220, 0x1fb, 0x3fc, 0x10, 0x4_0003, 0x1_2345_6789] {
            let mm = numbered(&world, 0x210);
            let frames: Vec<_> = (0x210..0x218).map(|number| frame_at(&world, &mm, page(number))).collect();
            let process = Process::enter(&world, &mm);
            process.read(page(0x210)).unwrap();
            mm.mremap(pages(0x210, 0x218), pages(to, to + 8)).unwrap();
            world.machine.assert_no_translation(mm.pgd(), pages(0x210, 0x218));
            assert_eq!(process.read(page(0x210)), Err(FaultError::NotMapped));
            for (index, frame) in frames.into_iter().enumerate() {
                let number = to + index as u64;
                assert_eq!(frame_at(&world, &mm, page(number)), frame);
                let descriptor = world.memory.memmap().page(frame.unwrap());
                assert_eq!((descriptor.refcount(), descriptor.mapcount()), (1, 1));
                assert_eq!(process.fetch_add(page(number), 1), Ok(0x210 + index as u64));
            }
        }
    });
}

#[test]
fn a_mapping_grows_and_shrinks_in_place_or_on_its_way() {
    let world = calm();
    world.alone(|| {
        let mm = numbered(&world, 0x1fc);
        mm.mremap(pages(0x1fc, 0x204), pages(0x1fc, 0x208)).unwrap();
        mm.mremap(pages(0x1fc, 0x208), pages(0x1fc, 0x202)).unwrap();
        let process = Process::enter(&world, &mm);
        assert_eq!((process.read(page(0x201)), process.read(page(0x202))), (Ok(0x201), Err(FaultError::NotMapped)));
        mm.mremap(pages(0x1fe, 0x202), pages(0x300, 0x302)).unwrap();
        assert_eq!((process.read(page(0x1fd)), process.read(page(0x1fe))), (Ok(0x1fd), Err(FaultError::NotMapped)));
        assert_eq!((process.read(page(0x301)), process.read(page(0x302))), (Ok(0x1ff), Err(FaultError::NotMapped)));
        mm.mremap(pages(0x300, 0x302), pages(0x400, 0x404)).unwrap();
        assert_eq!((process.read(page(0x401)), process.read(page(0x402))), (Ok(0x1ff), Ok(0)));
        assert_eq!(mm.mremap_anywhere(pages(0x400, 0x404), 0x2000, page(0x1fb)), Ok(pages(0x1fe, 0x200)));
        assert_eq!((process.read(page(0x1fd)), process.read(page(0x1ff))), (Ok(0x1fd), Ok(0x1ff)));
    });
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let world = calm();
    world.alone(|| {
        let mm = numbered(&world, 0x210);
        map_anonymous(&mm, pages(0x218, 0x220));
        let object = Object::create(world.memory, 8).unwrap();
        let mapping = Mapping::Object { object, first_page: 2 };
        mm.mmap(pages(0x300, 0x304), Protection::READ, mapping).unwrap();
        for (old, new, error) in [
            (pages(0x20f, 0x212), pages(0x400, 0x403), MapError::NotMapped),
            (pages(0x216, 0x21a), pages(0x400, 0x404), MapError::NotMapped),
            (pages(0x210, 0x214), pages(0x213, 0x217), MapError::BadRange),
            (pages(0x210, 0x214), pages(0x216, 0x21a), MapError::Overlap),
            (pages(0x210, 0x218), pages(0x210, 0x219), MapError::Overlap),
            (pages(0x300, 0x304), pages(0x300, 0x307), MapError::BeyondObject),
            (pages(0x301, 0x304), pages(0x400, 0x406), MapError::BeyondObject),
        ] {
            assert_eq!(mm.mremap(old, new), Err(error), "{old:?} to {new:?}");
        }
        let nowhere = VirtRange { start: page(3), end: page(3) };
        assert_eq!(mm.mremap(nowhere, pages(3, 4)), Err(MapError::BadRange));
        assert_eq!(mm.mremap(pages(0x210, 0x211), nowhere), Err(MapError::BadRange));
        let process = Process::enter(&world, &mm);
        (0x210..0x218).for_each(|number| assert_eq!(process.read(page(number)), Ok(number)));
    });
}

#[test]
fn pages_of_an_object_move_and_more_of_them_show() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        let object = Object::create(world.memory, 8).unwrap();
        mm.mmap(pages(0x20, 0x28), Protection::READ_WRITE, Mapping::Object { object, first_page: 0 }).unwrap();
        let process = Process::enter(&world, &mm);
        (0..8).for_each(|number| process.write(page(0x20 + number), 50 + number).unwrap());
        mm.mremap(pages(0x23, 0x25), pages(0x103, 0x107)).unwrap();
        (0..4).for_each(|number| assert_eq!(process.read(page(0x103 + number)), Ok(53 + number)));
        assert_eq!((process.read(page(0x22)), process.read(page(0x25))), (Ok(52), Ok(55)));
    });
}

/// A page shared with another address space moves as what it is: still to be copied by the first store.
#[test]
fn a_shared_page_stays_shared_when_it_moves() {
    let world = calm();
    world.alone(|| {
        let mm = numbered(&world, 0x210);
        let child = mm.fork().unwrap();
        mm.mremap(pages(0x210, 0x218), pages(0x310, 0x318)).unwrap();
        assert_eq!(frame_at(&world, &mm, page(0x310)), frame_at(&world, &child, page(0x210)));
        Process::enter(&world, &mm).write(page(0x310), 1).unwrap();
        assert_eq!(Process::enter(&world, &child).read(page(0x210)), Ok(0x210));
    });
}

/// R34: each allocation of a move fails once, and from then on. Nothing leaks, and the mapping is where it was.
#[test]
fn every_allocation_of_a_move_may_fail() {
    let world = calm();
    let points = world.alone(|| {
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        let mut nth = 1;
        loop {
            let mm = numbered(&world, 0x1fc);
            mm.mremap(pages(0x1fc, 0x204), pages(0x1fc, 0x205)).unwrap();
            world.settle();
            let before = (world.free_frames(), world.memory.page_tables());
            injection.fail_from(nth);
            // A part from the middle, to where there is no table on any level.
            let outcome = mm.mremap(pages(0x1fd, 0x203), pages(0x1_2345_67fe, 0x1_2345_6804));
            let failed = injection.stop().failed;
            let process = Process::enter(&world, &mm);
            let Err(error) = outcome else {
                assert_eq!(failed, None, "a move succeeds although an allocation failed for good");
                assert_eq!(process.read(page(0x1_2345_6801)), Ok(0x200));
                break nth - 1;
            };
            assert!(failed.is_some() && error == MapError::OutOfMemory, "{error:?}, {failed:?}");
            world.settle();
            assert_eq!((world.free_frames(), world.memory.page_tables()), before, "allocation {nth} leaks");
            for number in 0x1fc..0x204 {
                assert_eq!(process.fetch_add(page(number), 1), Ok(number), "allocation {nth}");
            }
            assert_eq!(process.fetch_add(page(0x204), 1), Ok(0), "no fault succeeds any more");
            nth += 1;
        }
    });
    // Three regions, two nodes; PUD, PMD, and two PTE tables, three of them with locks.
    assert!(points >= 9, "{points} injection points");
}

/// R15: entries move to and fro within one table, between two, and back, while other CPUs store wherever the mapping is
/// at that moment. No page is lost or doubled, no store goes astray, and what is left behind translates nothing.
#[test]
fn moves_race_with_stores() {
    in_each_mode!(move_while_adding, 0..9);
}

fn move_while_adding<Mode: PagingMode>(seed: u64) {
    let places = [[0x210, 0x230], [0x1fc, 0x3fe], [0x210, 0x4_0005]][seed as usize / 3 % 3];
    let world: World<Mode> = World::new(SimConfig::racy(1024, CPUS, seed));
    let mm = world.alone(|| numbered(&world, places[0]));
    let done = AtomicBool::new(false);
    let added: Vec<u64> = collect(&world, |cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 0 {
            for turn in 0..60 {
                let [old, new] = [places[turn % 2], places[(turn + 1) % 2]].map(|at| pages(at, at + 8));
                mm.mremap(old, new).unwrap();
                world.machine.assert_no_translation(mm.pgd(), old);
            }
            done.store(true, Ordering::Relaxed);
            return 0;
        }
        let mut added = 0;
        for turn in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            match process.fetch_add(page(places[turn % 2] + turn as u64 % 8), 1) {
                Ok(_) => added += 1,
                Err(FaultError::NotMapped) => (),
                Err(error) => panic!("{error:?}"),
            }
        }
        added
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        let mut frames = std::collections::BTreeSet::new();
        let mut sum = 0;
        for number in 0..8 {
            sum += process.read(page(places[0] + number)).unwrap() - (places[0] + number);
            let frame = frame_at(&world, &mm, page(places[0] + number)).unwrap();
            assert!(frames.insert(frame), "{frame:?} is mapped twice");
            let descriptor = world.memory.memmap().page(frame);
            assert_eq!((descriptor.refcount(), descriptor.mapcount()), (1, 1));
        }
        assert_eq!(sum, added.iter().sum(), "stores are lost");
        drop(process);
        drop(mm);
    });
}

/// R19, I35: walkers set D in an entry that just moves, and before in one that just loses the right to be stored to. A page
/// that was stored to has D at the end: T1 takes the entry out by a load and a store, T2's walker sets D between the two.
#[test]
fn no_dirty_mark_is_lost() {
    in_each_mode!(move_while_marking, 0..6);
}

fn move_while_marking<Mode: PagingMode>(seed: u64) {
    const PAGES: u64 = 96;
    const FROM: u64 = 0x1d0;
    const TO: u64 = 0x3e8;
    const DAWDLE: u64 = 48;
    let mut stored = 0;
    let world: World<Mode> = World::new(SimConfig { delay: 3, ..SimConfig::racy(1024, CPUS, seed) });
    let mm = world.alone(|| {
        let mm = world.mm();
        let object = Object::create(world.memory, PAGES).unwrap();
        mm.mmap(pages(FROM, FROM + PAGES), Protection::READ, Mapping::Object { object, first_page: 0 }).unwrap();
        let process = Process::enter(&world, &mm);
        (FROM..FROM + PAGES).for_each(|number| assert_eq!(process.read(page(number)), Ok(0)));
        // May be written from here on, and nobody has.
        mm.mprotect(pages(FROM, FROM + PAGES), Protection::READ_WRITE).unwrap();
        assert!((FROM..FROM + PAGES).all(|number| pte_at(&mm, page(number)).is_some_and(|entry| !entry.is_dirty())));
        mm
    });
    let meeting = Barrier::new(CPUS);
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        for number in 0..PAGES {
            meeting.wait(&world);
            let (old, new) = (pages(FROM + number, FROM + number + 1), pages(TO + number, TO + number + 1));
            match cpu.0 {
                0 if number % 2 == 0 => mm.mremap(old, new).unwrap(),
                0 => mm.mprotect(old, Protection::READ).unwrap(),
                // Before that, in its middle, or too late.
                _ => {
                    let turns = (number * 7 + seed * 3 + u64::from(cpu.0) * 5) % DAWDLE;
                    (0..turns).for_each(|_| world.machine.handle().pause());
                    let _ = process.write(old.start, 1);
                }
            }
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        for number in 0..PAGES {
            let address = page(number + if number % 2 == 0 { TO } else { FROM });
            if process.read(address) == Ok(1) {
                stored += 1;
                let entry = pte_at(&mm, address).unwrap();
                assert!(entry.is_dirty(), "page {number} was stored to and is not dirty");
            }
        }
        drop(process);
        drop(mm);
    });
    assert!(stored > 0, "nobody has stored anything");
}

/// Where CPUs wait for each other, answering interrupts.
struct Barrier {
    members: usize,
    arrived: AtomicUsize,
}

impl Barrier {
    fn new(members: usize) -> Self {
        Self { members, arrived: AtomicUsize::new(0) }
    }

    fn wait<Mode: PagingMode>(&self, world: &World<Mode>) {
        let turn = self.arrived.fetch_add(1, Ordering::AcqRel) / self.members;
        while self.arrived.load(Ordering::Acquire) < (turn + 1) * self.members {
            world.machine.handle().pause();
        }
    }
}

/// Runs `body` on every CPU and collects what each returns.
fn collect<Mode: PagingMode, T: Send>(world: &World<Mode>, body: impl Fn(CpuId) -> T + Sync) -> Vec<T> {
    let results = std::sync::Mutex::new(Vec::new());
    world.machine.run_all(|cpu| {
        let result = body(cpu);
        results.lock().unwrap().push(result);
    });
    results.into_inner().unwrap()
}
