//! `madvise(DONTNEED)`: what it drops, which tables it frees, and who may be under way meanwhile.

use crate::address::VirtRange;
use crate::address_space::{MapError, Mapping, Mm, MmRef};
use crate::cpu::CpuId;
use crate::fault::{FaultError, handle_mm_fault};
use crate::machine::sim::{Sim, SimConfig};
use crate::machine::{Machine, WaitingRule};
use crate::object::Object;
use crate::page::PageType;
use crate::pgtable::{
    Entry, FourLevel, PagingMode, Protection, Tiny, pmd_offset, pte_at, pte_offset_map, pte_offset_map_lock,
};
use crate::stats::{LockCounter, StatsSnapshot};
use crate::sync::{LockClass, rcu};
use crate::testing::{Process, World, frame_at, in_each_mode, map_anonymous, page, pages};
use crate::vma::Access;
use std::sync::atomic::{AtomicU64, Ordering};

const TABLE: u64 = 0x200;

fn calm() -> World<FourLevel> {
    World::new(SimConfig::calm(1024, 2, 1))
}

/// I7 at a quiescent point: what is linked, apart from the top table, is what is alive.
fn assert_all_tables_are_linked<Mode: PagingMode>(world: &World<Mode>, mm: &Mm<Sim<Mode>>) {
    world.settle();
    assert_eq!(world.tables_of(mm), world.memory.page_tables(), "a table is lost (I7)");
}

#[test]
fn anonymous_memory_reads_as_zero_afterwards_and_its_frames_are_free() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 48));
        let process = Process::enter(&world, &mm);
        process.write(page(16), 7).unwrap();
        let free = world.free_frames();
        (17..47).for_each(|number| process.write(page(number), number).unwrap());
        assert_eq!(process.read(page(47)), Ok(0));
        mm.madvise_dontneed(pages(17, 48)).unwrap();
        world.machine.assert_no_translation(mm.pgd(), pages(17, 48));
        assert_eq!(world.free_frames(), free, "the frames did not come back");
        assert_eq!(process.read(page(16)), Ok(7), "a neighbour has lost its page");
        for number in 17..48 {
            assert_eq!(process.read(page(number)), Ok(0));
            process.write(page(number), 1).unwrap();
        }
    });
}

#[test]
fn an_objects_page_is_found_again() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        let object = Object::create(world.memory, 4).unwrap();
        let mapping = Mapping::Object { object: object.clone(), first_page: 0 };
        mm.mmap(pages(16, 20), Protection::READ_WRITE, mapping).unwrap();
        let process = Process::enter(&world, &mm);
        process.write(page(17), 5).unwrap();
        mm.madvise_dontneed(pages(16, 20)).unwrap();
        let pfn = object.resident(1).unwrap();
        let descriptor = world.memory.memmap().page(pfn);
        assert_eq!((descriptor.mapcount(), descriptor.refcount()), (0, 1));
        assert_eq!(process.read(page(17)), Ok(5));
        assert_eq!(frame_at(&world, &mm, page(17)), Some(pfn));
    });
}

#[test]
fn a_range_with_a_hole_is_refused_and_nothing_is_dropped() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 18));
        map_anonymous(&mm, pages(19, 21));
        let process = Process::enter(&world, &mm);
        [16, 17, 19, 20].iter().for_each(|number| process.write(page(*number), *number).unwrap());
        for range in [pages(16, 21), pages(15, 17), pages(20, 22), pages(40, 41)] {
            assert_eq!(mm.madvise_dontneed(range), Err(MapError::NotMapped));
        }
        let unaligned = VirtRange { start: page(16), end: crate::address::VirtAddr(page(17).0 + 8) };
        assert_eq!(mm.madvise_dontneed(unaligned), Err(MapError::BadRange));
        [16, 17, 19, 20].iter().for_each(|number| assert_eq!(process.read(page(*number)), Ok(*number)));
    });
}

/// Spec 9.1: only tables whose whole span was dropped go, whoever's regions the span is made of, and the bytes with them at
/// once (I7), the frames after their readers.
#[test]
fn only_tables_that_lie_wholly_in_the_range_go() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        // Two regions meet in the middle of the second of four tables.
        map_anonymous(&mm, pages(TABLE, TABLE + 0x300));
        mm.mmap(pages(TABLE + 0x300, 5 * TABLE), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
        let process = Process::enter(&world, &mm);
        let touch = || (1..5).for_each(|table| process.write(page(table * TABLE + 3), 1).unwrap());
        touch();
        let all = mm.linked_table_bytes();
        mm.madvise_dontneed(pages(TABLE + 1, 4 * TABLE + 0x1ff)).unwrap();
        assert_eq!(mm.linked_table_bytes(), all - 2 * 0x1000);
        assert_all_tables_are_linked(&world, &mm);
        assert_eq!(pte_at(&mm, page(2 * TABLE)), None);
        assert_eq!(pte_at(&mm, page(4 * TABLE + 3)), Some(Entry::NONE));
        touch();
        assert_eq!(mm.linked_table_bytes(), all);
        mm.madvise_dontneed(pages(TABLE, 5 * TABLE)).unwrap();
        assert_eq!(mm.linked_table_bytes(), all - 4 * 0x1000);
        // Nothing there, nothing to do.
        mm.madvise_dontneed(pages(TABLE, 5 * TABLE)).unwrap();
        assert_all_tables_are_linked(&world, &mm);
    });
}

/// Spec 9.1, fast path: the PTE lock is taken once, and the PMD lock with it. Where the two are one lock, that is never
/// taken twice (spec 2.1): it is given up, and then taken for both.
#[test]
fn a_table_is_cleared_and_unlinked_under_one_hold_of_its_lock() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(TABLE, 2 * TABLE));
        let process = Process::enter(&world, &mm);
        (TABLE..2 * TABLE).for_each(|number| process.write(page(number), 1).unwrap());
        let before = StatsSnapshot::sum(world.machine.cpus());
        mm.madvise_dontneed(pages(TABLE, 2 * TABLE)).unwrap();
        let taken = StatsSnapshot::sum(world.machine.cpus()).since(&before);
        assert_eq!(taken.locks(&[LockClass::Pte], LockCounter::Acquired), 1);
        assert_eq!(taken.locks(&[LockClass::Pmd], LockCounter::Acquired), 1);
        assert_eq!(pte_at(&mm, page(TABLE)), None);
    });
}

/// Spec 9.1, slow path: without memory for longer lists the PTE lock is given up in between, so the empty table is found by
/// a second look at all its entries, under both locks.
#[test]
fn a_table_cleared_piece_by_piece_goes_as_well() {
    let world = calm();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(TABLE, 2 * TABLE));
        let process = Process::enter(&world, &mm);
        (TABLE..2 * TABLE).for_each(|number| process.write(page(number), 1).unwrap());
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        injection.fail_from(1);
        mm.madvise_dontneed(pages(TABLE, 2 * TABLE)).unwrap();
        injection.stop();
        assert_eq!(pte_at(&mm, page(TABLE)), None);
        assert_all_tables_are_linked(&world, &mm);
    });
}

/// Waits until `word` has reached `value`.
fn await_value(world: &World<FourLevel>, word: &AtomicU64, value: u64) {
    while word.load(Ordering::Acquire) < value {
        world.machine.handle().pause();
    }
}

/// R6, I11: a reader has mapped the table without a lock when it is unlinked. It reads none there, the table stays a table
/// until the reader is done, and one who locks gets the new table or none.
#[test]
fn a_lockless_reader_keeps_a_table_that_was_taken_away() {
    let world = calm();
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(TABLE, 2 * TABLE));
        handle_mm_fault(&mm, page(TABLE), Access::Write).unwrap();
        mm
    });
    let turn = AtomicU64::new(0);
    world.machine.run_all(|cpu| {
        if cpu.0 == 0 {
            await_value(&world, &turn, 1);
            mm.madvise_dontneed(pages(TABLE, 2 * TABLE)).unwrap();
            world.memory.advance_deferred();
            turn.store(2, Ordering::Release);
            return;
        }
        let rcu = rcu::read_lock(world.machine.handle());
        let pmds = pmd_offset(&mm, &rcu, page(TABLE)).unwrap();
        let pmd = pmds.slot(page(TABLE));
        let map = pte_offset_map(&mm, pmd, page(TABLE)).unwrap();
        assert!(map.load().is_present());
        turn.store(1, Ordering::Release);
        await_value(&world, &turn, 2);
        assert!(map.load().is_none());
        let descriptor = world.memory.memmap().page(map.pmd().pfn());
        assert!(descriptor.is_detached() && descriptor.page_type() == PageType::Table);
        assert!(pte_offset_map_lock(&mm, pmd, page(TABLE)).is_none());
    });
    world.alone(|| {
        assert_all_tables_are_linked(&world, &mm);
        drop(mm);
    });
}

/// Spec 2.3: whoever clears a long range lets those in who wait for the lock. CPU 2 holds it until CPU 0, which will clear
/// the table, and behind it CPU 1 stand in the queue.
#[test]
fn a_long_zap_gives_its_lock_up_to_those_who_wait() {
    let waiting_rule = WaitingRule { rounds: 0, ..SimConfig::calm(0, 0, 0).waiting_rule };
    let world: World<FourLevel> = World::new(SimConfig { waiting_rule, ..SimConfig::calm(1024, 3, 1) });
    let machine = world.machine.handle();
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(TABLE, 2 * TABLE));
        (TABLE..2 * TABLE).for_each(|number| {
            handle_mm_fault(&mm, page(number), Access::Write).unwrap();
        });
        mm
    });
    let turn = AtomicU64::new(0);
    let take_lock = |held: &dyn Fn()| {
        let rcu = rcu::read_lock(machine);
        let pmds = pmd_offset(&mm, &rcu, page(TABLE)).unwrap();
        let locked = pte_offset_map_lock(&mm, pmds.slot(page(TABLE)), page(TABLE));
        held();
        locked.map(|locked| locked.load())
    };
    machine.run_all(|cpu| match cpu.0 {
        0 => {
            await_value(&world, &turn, 1);
            let before = machine.local().stats.snapshot();
            mm.madvise_dontneed(pages(TABLE, 2 * TABLE)).unwrap();
            let taken = machine.local().stats.snapshot().since(&before);
            assert!(taken.locks(&[LockClass::Pte], LockCounter::Acquired) > 1, "nobody was let in between");
        }
        1 => {
            await_value(&world, &turn, 2);
            let found = take_lock(&|| ());
            assert_eq!(found, Some(Entry::NONE), "not let in before the table was gone");
        }
        _ => drop(take_lock(&|| {
            for runner in 0..2 {
                turn.fetch_add(1, Ordering::Release);
                while machine.cpus().of(CpuId(runner)).parking.waiting_for().is_none() {
                    machine.pause();
                }
            }
        })),
    });
    world.alone(|| {
        assert_all_tables_are_linked(&world, &mm);
        drop(mm);
    });
}

mod races {
    use super::*;

    const CPUS: u64 = 4;

    fn racy<Mode: PagingMode>(frames: usize, seed: u64) -> (World<Mode>, MmRef<Sim<Mode>>) {
        let world: World<Mode> = World::new(SimConfig::racy(frames, CPUS as usize, seed));
        let mm = world.alone(|| world.mm());
        (world, mm)
    }

    /// R3, R8, R21: two CPUs drop all pages and tables, two use them. A user reads what it wrote last or zero, never what
    /// was dropped before and never another's page; no store is lost in a table that went.
    fn drop_while_using<Mode: PagingMode>(span: VirtRange, spread: u64, seed: u64) {
        const ROUNDS: u64 = 60;
        let (world, mm) = racy::<Mode>(256, seed);
        world.alone(|| map_anonymous(&mm, span));
        let done = AtomicU64::new(0);
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            if cpu.0 < 2 {
                for _ in 0..ROUNDS {
                    mm.madvise_dontneed(span).unwrap();
                }
                done.fetch_add(1, Ordering::Release);
                return;
            }
            let mut value = 0;
            while done.load(Ordering::Acquire) < 2 {
                value += 1;
                let own =
                    crate::address::VirtAddr(span.start.0 + ((value % 3) * spread * 2 + u64::from(cpu.0) - 2) * 0x1000);
                process.write(own, value * CPUS + u64::from(cpu.0)).unwrap();
                let found = process.fetch_add(own, 0).unwrap();
                assert!(found == 0 || found == value * CPUS + u64::from(cpu.0), "{found} after {value}");
            }
        });
        world.alone(|| {
            mm.madvise_dontneed(span).unwrap();
            world.settle();
            assert_eq!(world.memory.page_tables(), world.tables_of(&mm), "a table is lost (I7)");
            drop(mm);
        });
    }

    #[test]
    fn advice_races_with_faults() {
        in_each_mode!(drop_two_tables, 0..9);
    }

    fn drop_two_tables<Mode: PagingMode>(seed: u64) {
        drop_while_using::<Mode>(pages(TABLE, 3 * TABLE), 0x80, seed);
    }

    #[test]
    fn advice_races_with_faults_in_two_levels() {
        (0..8).for_each(|seed| drop_while_using::<Tiny>(pages(4, 12), 1, seed));
    }

    /// I29 with two at once (R21): whoever returns first, the range is not translated as before.
    #[test]
    fn two_who_drop_one_range_both_return_to_zeroes() {
        in_each_mode!(drop_at_once, 0..6);
    }

    fn drop_at_once<Mode: PagingMode>(seed: u64) {
        let (world, mm) = racy::<Mode>(256, seed);
        let span = pages(TABLE, 2 * TABLE);
        world.alone(|| map_anonymous(&mm, span));
        let (meeting, next) = (AtomicU64::new(0), AtomicU64::new(0));
        let meet = || {
            let all = (meeting.fetch_add(1, Ordering::AcqRel) / CPUS + 1) * CPUS;
            while meeting.load(Ordering::Acquire) < all {
                world.machine.handle().pause();
            }
        };
        world.machine.run_all(|_| {
            let process = Process::enter(&world, &mm);
            for _ in 0..30 {
                let own = next.fetch_add(1, Ordering::Relaxed) % CPUS;
                (0..CPUS).for_each(|number| process.write(page(TABLE + number), 1).unwrap());
                meet();
                mm.madvise_dontneed(span).unwrap();
                assert_eq!(process.read(page(TABLE + own)), Ok(0), "a dropped page is read");
                meet();
            }
        });
        world.alone(|| drop(mm));
    }

    /// R35, R41: a neighbour in the same table drops its pages while a region goes and others fault on both.
    #[test]
    fn advice_races_with_munmap_of_a_neighbour() {
        in_each_mode!(drop_beside_munmap, 0..6);
    }

    fn drop_beside_munmap<Mode: PagingMode>(seed: u64) {
        let (world, mm) = racy::<Mode>(256, seed);
        let (goes, stays) = (pages(TABLE, TABLE + 8), pages(TABLE + 8, 3 * TABLE));
        world.alone(|| map_anonymous(&mm, stays));
        let done = AtomicU64::new(0);
        world.machine.run_all(|cpu| {
            let process = Process::enter(&world, &mm);
            match cpu.0 {
                0 => {
                    for _ in 0..40 {
                        map_anonymous(&mm, goes);
                        process.write(page(TABLE + 1), 1).unwrap();
                        mm.munmap(goes).unwrap();
                        world.machine.assert_no_translation(mm.pgd(), goes);
                    }
                    done.store(1, Ordering::Release);
                }
                1 => {
                    while done.load(Ordering::Acquire) == 0 {
                        mm.madvise_dontneed(stays).unwrap();
                    }
                }
                _ => {
                    let mut value = 0;
                    while done.load(Ordering::Acquire) == 0 {
                        value += 1;
                        match process.write(page(TABLE + value % 8), value) {
                            Ok(()) | Err(FaultError::NotMapped) => (),
                            Err(error) => panic!("{error:?}"),
                        }
                        let own = page(TABLE + 8 + u64::from(cpu.0) + value % 3 * 0x180);
                        process.write(own, value).unwrap();
                        let found = process.read(own).unwrap();
                        assert!(found == 0 || found == value, "{found} after {value}");
                    }
                }
            }
        });
        world.alone(|| {
            assert_all_tables_are_linked(&world, &mm);
            drop(mm);
        });
    }
}
