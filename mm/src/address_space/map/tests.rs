//! `mmap`, `munmap`, `mprotect` on one CPU: what they refuse, what they cut, what they leave alone.

use super::{MapError, Mapping};
use crate::address::{VirtAddr, VirtRange};
use crate::address_space::MmRef;
use crate::cpu::CpuId;
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::object::Object;
use crate::pgtable::{FourLevel, HugeSize, PagingMode, Protection};
use crate::slab::SlabKind;
use crate::testing::{Process, World, frame_at, map_anonymous, page, pages};
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};
use std::collections::BTreeMap;

fn world() -> World<FourLevel> {
    World::new(SimConfig::calm(1024, 1, 1))
}

#[test]
fn a_range_that_is_no_range_is_refused() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        let end = FourLevel::USER_END.0;
        for (start, end) in [(0x1000, 0x1000), (0x2000, 0x1000), (0x1001, 0x3000), (end - 0x1000, end + 0x1000)] {
            let range = VirtRange { start: VirtAddr(start), end: VirtAddr(end) };
            assert_eq!(mm.mmap(range, Protection::READ, Mapping::Anonymous), Err(MapError::BadRange));
            assert_eq!(mm.munmap(range), Err(MapError::BadRange));
            assert_eq!(mm.mprotect(range, Protection::READ), Err(MapError::BadRange));
        }
    });
}

#[test]
fn a_taken_range_is_refused_and_stays_as_it_is() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(10, 20));
        for taken in [pages(5, 11), pages(19, 25), pages(12, 13), pages(0, 100)] {
            assert_eq!(mm.mmap(taken, Protection::READ, Mapping::Anonymous), Err(MapError::Overlap));
        }
        map_anonymous(&mm, pages(5, 10));
        map_anonymous(&mm, pages(20, 21));
    });
}

#[test]
fn a_free_range_is_found_between_regions() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 18));
        map_anonymous(&mm, pages(20, 30));
        let found = |length| mm.mmap_anywhere(page(16), length, Protection::READ, Mapping::Anonymous);
        assert_eq!(found(0x2000), Ok(pages(18, 20)));
        assert_eq!(found(0x2000), Ok(pages(30, 32)));
        assert_eq!(found(0x1001), Err(MapError::BadRange));
        assert_eq!(found(FourLevel::USER_END.0), Err(MapError::NoSpace));
        assert_eq!(found(!0xfff), Err(MapError::NoSpace));
    });
}

#[test]
fn a_free_range_for_huge_pages_cuts_none() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x203));
        let found = |from, length| mm.mmap_anywhere(page(from), length, Protection::READ, Mapping::Huge(HugeSize::Pmd));
        assert_eq!(found(0x200, 0x20_0000), Ok(pages(0x400, 0x600)));
        assert_eq!(found(0x601, 0x40_0000), Ok(pages(0x800, 0xc00)));
        assert_eq!(found(0x200, 0x20_1000), Err(MapError::CutsHugePage));
    });
}

#[test]
fn a_region_may_not_reach_beyond_its_object() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        let object = Object::create(world.memory, 4).unwrap();
        for first_page in [1, 4, u64::MAX] {
            let mapping = Mapping::Object { object: object.clone(), first_page };
            assert_eq!(mm.mmap(pages(16, 20), Protection::READ, mapping), Err(MapError::BeyondObject));
        }
        let mapping = Mapping::Object { object, first_page: 0 };
        assert_eq!(mm.mmap(pages(16, 20), Protection::READ, mapping), Ok(()));
    });
}

#[test]
fn cutting_a_hole_leaves_both_sides_with_their_pages() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x1fe, 0x206));
        let process = Process::enter(&world, &mm);
        (0x1fe..0x206).for_each(|number| process.write(page(number), number).unwrap());
        mm.munmap(pages(0x200, 0x203)).unwrap();
        world.machine.assert_no_translation(mm.pgd(), pages(0x200, 0x203));
        for number in 0x1fe..0x206 {
            let expected = if (0x200..0x203).contains(&number) { Err(FaultError::NotMapped) } else { Ok(number) };
            assert_eq!(process.read(page(number)), expected);
        }
    });
}

/// The floor and ceiling rule of spec 2.4 (R35): a table that a neighbour reaches into stays, others go.
#[test]
fn a_table_shared_with_a_neighbour_survives() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x1f0, 0x200));
        map_anonymous(&mm, pages(0x200, 0x210));
        map_anonymous(&mm, pages(0x210, 0x220));
        let process = Process::enter(&world, &mm);
        [0x1f0, 0x200, 0x210].iter().for_each(|number| process.write(page(*number), *number).unwrap());
        let both_tables = mm.linked_table_bytes();
        mm.munmap(pages(0x200, 0x210)).unwrap();
        assert_eq!(mm.linked_table_bytes(), both_tables, "the table of 0x210 has gone with its neighbour");
        mm.munmap(pages(0x210, 0x220)).unwrap();
        assert_eq!(mm.linked_table_bytes(), both_tables - 0x1000, "the second PTE table is left behind");
        assert_eq!(process.read(page(0x1f0)), Ok(0x1f0));
        mm.munmap(pages(0x1f0, 0x200)).unwrap();
        assert_eq!(mm.linked_table_bytes(), 0);
    });
}

#[test]
fn protection_changes_apply_to_their_range_alone() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 20));
        map_anonymous(&mm, pages(20, 24));
        let process = Process::enter(&world, &mm);
        (16..24).for_each(|number| process.write(page(number), number).unwrap());
        mm.mprotect(pages(18, 22), Protection::READ).unwrap();
        for number in 16..24 {
            let expected = if (18..22).contains(&number) { Err(FaultError::Forbidden) } else { Ok(()) };
            assert_eq!(process.write(page(number), number), expected, "page {number}");
            assert_eq!(process.read(page(number)), Ok(number));
        }
        mm.mprotect(pages(16, 24), Protection::READ_WRITE).unwrap();
        (16..24).for_each(|number| assert_eq!(process.write(page(number), 1), Ok(())));
    });
}

#[test]
fn protecting_a_range_with_a_hole_is_refused_and_changes_nothing() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 18));
        map_anonymous(&mm, pages(19, 21));
        for range in [pages(16, 21), pages(15, 17), pages(20, 22), pages(40, 41)] {
            assert_eq!(mm.mprotect(range, Protection::READ), Err(MapError::NotMapped));
        }
        let process = Process::enter(&world, &mm);
        [16, 17, 19, 20].iter().for_each(|number| assert_eq!(process.write(page(*number), 1), Ok(())));
    });
}

#[test]
fn the_right_to_write_the_zero_page_gives_a_fresh_one() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        mm.mmap(pages(16, 17), Protection::READ, Mapping::Anonymous).unwrap();
        let process = Process::enter(&world, &mm);
        process.read(page(16)).unwrap();
        mm.mprotect(pages(16, 17), Protection::READ_WRITE).unwrap();
        process.write(page(16), 3).unwrap();
        assert_ne!(frame_at(&world, &mm, page(16)), Some(world.memory.zero_page()));
    });
}

#[test]
fn unmapping_nothing_is_no_error() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        assert_eq!(mm.munmap(pages(0, 1 << 20)), Ok(()));
        map_anonymous(&mm, pages(16, 17));
        assert_eq!(mm.munmap(pages(20, 30)), Ok(()));
    });
}

/// R34: each allocation of each operation fails once; the operation then changed nothing, and nothing leaks.
#[test]
fn an_operation_without_memory_changes_nothing() {
    type Operation = fn(&MmRef<Sim<FourLevel>>) -> Result<(), MapError>;
    let operations: [Operation; 3] = [
        |mm| mm.mmap(pages(40, 50), Protection::READ, Mapping::Anonymous),
        |mm| mm.munmap(pages(18, 20)),
        |mm| mm.mprotect(pages(18, 20), Protection::READ),
    ];
    let world = world();
    world.alone(|| {
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        for operation in operations {
            let mut nth = 1;
            loop {
                let mm = world.mm();
                map_anonymous(&mm, pages(16, 24));
                let process = Process::enter(&world, &mm);
                process.write(page(18), 5).unwrap();
                injection.fail_from(nth);
                let outcome = operation(&mm);
                let injected = injection.stop();
                if outcome.is_ok() {
                    assert!(nth > 1 && injected.failed.is_none());
                    break;
                }
                assert_eq!(outcome, Err(MapError::OutOfMemory));
                assert_eq!(process.write(page(18), 6), Ok(()), "a failed operation took the page or the right away");
                assert_eq!(process.read(page(40)), Err(FaultError::NotMapped));
                nth += 1;
            }
        }
    });
}

/// What waits for its readers is not lost memory: an operation that finds none waits for it, and goes on.
#[test]
fn operations_take_back_what_waits_for_its_readers() {
    let world: World<FourLevel> = World::new(SimConfig::calm(96, 1, 1));
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0, 0x200 * 20));
        let process = Process::enter(&world, &mm);
        (0..20).for_each(|table| process.write(page(0x200 * table), 1).unwrap());
        let hoard = |_| world.memory.frames().alloc(world.machine.handle()).ok();
        for operation in 0..2 {
            mm.munmap(pages(0x200 * 10 * operation, 0x200 * 10 * (operation + 1))).unwrap();
            let hoarded: Vec<_> = (0..).map_while(hoard).collect();
            match operation {
                0 => drop(world.mm()),
                _ => map_anonymous(&mm, pages(0x8000, 0x8001)),
            }
            hoarded.into_iter().for_each(|pfn| world.memory.frames().free(world.machine.handle(), pfn));
        }
    });
}

/// The backlog is bounded in regions and tree nodes too, not in tables alone.
#[test]
fn a_thousand_changes_leave_no_thousand_nodes_waiting() {
    let world: World<FourLevel> = World::new(SimConfig::calm(2048, 2, 1));
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(16, 24));
        mm
    });
    let done = std::sync::atomic::AtomicBool::new(false);
    world.machine.run_all(|cpu| {
        if cpu.0 == 1 {
            // A reader that is never out of a section for long, so that no grace period passes by itself.
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _section = crate::sync::rcu::read_lock(world.machine.handle());
                (0..50).for_each(|_| world.machine.handle().pause());
            }
            return;
        }
        for round in 0..1000 {
            let rights = if round % 2 == 0 { Protection::READ } else { Protection::READ_WRITE };
            mm.mprotect(pages(18, 20), rights).unwrap();
            let waiting = world.memory.slab().objects(world.machine.handle(), SlabKind::VmaNode);
            assert!(waiting < 600, "{waiting} nodes in use after {round} changes");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    world.alone(|| drop(mm));
}

/// An operation of the property below, in pages.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map { first: u64, count: u64, write: bool },
    Unmap { first: u64, count: u64 },
    Protect { first: u64, count: u64, write: bool },
    Write { at: u64, value: u64 },
    Read { at: u64 },
}

/// Pages the property plays with: they straddle several PTE tables.
const FIRST: u64 = 0x3f0;
const COUNT: u64 = 0x420;

fn step() -> impl Strategy<Value = Step> {
    let range = (FIRST..FIRST + COUNT, prop_oneof![1..8_u64, Just(0x200)]);
    let page = FIRST..FIRST + COUNT;
    prop_oneof![
        3 => (range.clone(), proptest::bool::ANY).prop_map(|((first, count), write)| Step::Map { first, count, write }),
        2 => range.clone().prop_map(|(first, count)| Step::Unmap { first, count }),
        2 => (range, proptest::bool::ANY).prop_map(|((first, count), write)| Step::Protect { first, count, write }),
        5 => (page.clone(), 1..1000_u64).prop_map(|(at, value)| Step::Write { at, value }),
        3 => page.prop_map(|at| Step::Read { at }),
    ]
}

/// A page of the reference model.
#[derive(Clone, Copy)]
struct Model {
    write: bool,
    value: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of operations does to memory what it does to a plain map from page to content and right.
    #[test]
    fn any_sequence_agrees_with_a_plain_map(steps in proptest::collection::vec(step(), 1..60)) {
        let world = world();
        world.alone(|| {
            let mm = world.mm();
            let process = Process::enter(&world, &mm);
            let mut model: BTreeMap<u64, Model> = BTreeMap::new();
            for step in steps {
                perform(&mm, &process, &mut model, step);
                world.machine.assert_coherent();
            }
        });
    }
}

fn perform(mm: &MmRef<Sim<FourLevel>>, process: &Process<FourLevel>, model: &mut BTreeMap<u64, Model>, step: Step) {
    let rights = |write| if write { Protection::READ_WRITE } else { Protection::READ };
    match step {
        Step::Map { first, count, write } => {
            let taken = model.range(first..first + count).next().is_some();
            let expected = if taken { Err(MapError::Overlap) } else { Ok(()) };
            assert_eq!(mm.mmap(pages(first, first + count), rights(write), Mapping::Anonymous), expected);
            if !taken {
                model.extend((first..first + count).map(|number| (number, Model { write, value: 0 })));
            }
        }
        Step::Unmap { first, count } => {
            assert_eq!(mm.munmap(pages(first, first + count)), Ok(()));
            model.retain(|number, _| !(first..first + count).contains(number));
        }
        Step::Protect { first, count, write } => {
            let whole = model.range(first..first + count).count() as u64 == count;
            let expected = if whole { Ok(()) } else { Err(MapError::NotMapped) };
            assert_eq!(mm.mprotect(pages(first, first + count), rights(write)), expected);
            if whole {
                model.range_mut(first..first + count).for_each(|(_, page)| page.write = write);
            }
        }
        Step::Write { at, value } => {
            let expected = match model.get_mut(&at) {
                None => Err(FaultError::NotMapped),
                Some(page) if !page.write => Err(FaultError::Forbidden),
                Some(page) => {
                    page.value = value;
                    Ok(())
                }
            };
            assert_eq!(process.write(page(at), value), expected);
        }
        Step::Read { at } => {
            let expected = model.get(&at).map_or(Err(FaultError::NotMapped), |page| Ok(page.value));
            assert_eq!(process.read(page(at)), expected);
        }
    }
}

/// More regions than one leaf of the tree holds, made and removed in every order that shifts leaves.
#[test]
fn many_regions_are_found_and_removed() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        let slots = 400;
        (0..slots).rev().step_by(2).for_each(|slot| map_anonymous(&mm, pages(16 + 2 * slot, 17 + 2 * slot)));
        (0..slots).step_by(2).for_each(|slot| map_anonymous(&mm, pages(16 + 2 * slot, 17 + 2 * slot)));
        let process = Process::enter(&world, &mm);
        for slot in 0..slots {
            assert_eq!(process.read(page(16 + 2 * slot)), Ok(0));
            assert_eq!(process.read(page(17 + 2 * slot)), Err(FaultError::NotMapped));
        }
        (0..slots).step_by(3).for_each(|slot| mm.munmap(pages(16 + 2 * slot, 17 + 2 * slot)).unwrap());
        for slot in 0..slots {
            let expected = if slot % 3 == 0 { Err(FaultError::NotMapped) } else { Ok(0) };
            assert_eq!(process.read(page(16 + 2 * slot)), expected);
        }
        mm.munmap(pages(16, 16 + 2 * slots)).unwrap();
        assert_eq!(process.read(page(18)), Err(FaultError::NotMapped));
    });
}

/// A leaf of the tree that shrinks is joined with its neighbour as soon as one leaf holds both, and on whichever side that is.
/// The neighbour has shrunk before, when this one was too full to be joined with.
#[test]
fn leaves_that_shrink_are_joined() {
    for mirrored in [false, true] {
        let world: World<FourLevel> = World::new(SimConfig::calm(1024, 1, 1));
        world.alone(|| {
            let mm = world.mm();
            let region = |number: u64| {
                let first = 2 * if mirrored { 253 - number } else { number };
                pages(first, first + 1)
            };
            let map = |number| map_anonymous(&mm, region(number));
            let unmap = |number| mm.munmap(region(number)).unwrap();
            let nodes = || {
                world.settle();
                world.memory.slab().objects(world.machine.handle(), SlabKind::VmaNode)
            };
            // One region more than a leaf holds, every other one: a root and two leaves. The first is filled up.
            (0..127).for_each(|number| map(2 * number));
            (0..60).for_each(|number| map(2 * number + 1));
            (66..124).for_each(|number| unmap(2 * number));
            assert_eq!(nodes(), 3, "some 123 and 6 regions");
            (20..30).for_each(|number| unmap(2 * number + 1));
            assert_eq!(nodes(), 2, "some 119 regions");
            let process = Process::enter(&world, &mm);
            assert!([0, 1, 63, 64, 126].iter().all(|number| process.write(region(2 * number).start, 1).is_ok()));
        });
    }
}

#[test]
fn an_address_space_holds_only_so_many_regions_and_says_so() {
    let world: World<FourLevel> = World::new(SimConfig::calm(4096, 1, 1));
    world.alone(|| {
        let mm = world.mm();
        let refused = (0..40_000).find_map(|slot| {
            mm.mmap(pages(2 * slot, 2 * slot + 1), Protection::READ, Mapping::Anonymous)
                .err()
                .map(|error| (slot, error))
        });
        let (count, error) = refused.expect("no end of regions");
        assert_eq!(error, MapError::TooManyRegions);
        assert!(count >= 126 * 126 / 2, "only {count} regions");
        mm.munmap(pages(0, 2 * count)).unwrap();
        map_anonymous(&mm, pages(0, 1));
    });
}
