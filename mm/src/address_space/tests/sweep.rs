//! The failure sweep on the simulated machine, and the proof that it is whole: every place in the source that allocates is
//! seen to fail.

mod places;

use crate::cpu::CpuId;
use crate::frame::FrameAllocator;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig, SimMachine};
use crate::memory::{Memory, OutOfMemory};
use crate::pgtable::{FourLevel, Pae, PagingMode};
use crate::sweep::{Scene, Shortage, huge_scenes, scenes, walk};
use crate::testing::{Small, World};
use places::Place;
use std::collections::BTreeSet;
use std::panic::Location;

fn place_of(location: &Location) -> Place {
    let file = location.file().replace('\\', "/");
    let below = file.rsplit_once("mm/src/").map_or(&*file, |(_, below)| below);
    (below.to_owned(), location.line())
}

/// Walks `scenes` in a paging mode, for each of `shortages`. Returns the places that failed.
fn sweep<Mode: PagingMode, S: Iterator<Item = Scene<Sim<Mode>>>>(
    scenes: fn() -> S,
    shortages: &[Shortage],
) -> BTreeSet<Place> {
    let world: World<Mode> = World::new(SimConfig::calm(256, 2, 1));
    let handle = world.machine.handle();
    let injection = &handle.cpus().of(CpuId(0)).injection;
    let mut places = BTreeSet::new();
    for shortage in shortages {
        let mut points = 0;
        for scene in scenes() {
            let failed = |_| places.extend(injection.place().map(place_of));
            match world.alone(|| walk(world.memory, &scene, *shortage, failed)) {
                Ok(walked) => points += walked,
                Err(finding) => panic!("{finding:?}"),
            }
        }
        println!("injection: {points} points walked, {}, {shortage:?}", Mode::NAME);
    }
    places
}

/// Where the start of a machine fails without a frame.
fn start() -> Place {
    let machine: SimMachine<FourLevel> = SimMachine::new(SimConfig::calm(64, 1, 1));
    let handle = machine.handle();
    handle.run_cpu(CpuId(0), || {
        let memmap = handle.memmap();
        let frames = FrameAllocator::new(memmap);
        frames.add_free_range(handle, memmap.first(), memmap.end()).expect("a fresh machine's memory");
        let injection = &handle.local().injection;
        injection.fail_from(1);
        assert!(matches!(Memory::new(handle, frames), Err(OutOfMemory)));
        injection.stop();
        injection.place().map(place_of).expect("something failed")
    })
}

/// R34, I6, I43: each allocation of each operation fails, in a walk that checks what is left ([`walk`]), and there is no place
/// in the source that allocates and is not among those that failed.
#[test]
fn every_place_that_allocates_is_seen_to_fail() {
    let all = places::all();
    // Top tables come from elsewhere in each mode. The smallest is the cheapest, huge pages and all.
    let failed = [
        sweep::<FourLevel, _>(scenes, &[Shortage::Lasting]),
        sweep::<Pae, _>(scenes, &[Shortage::Lasting]),
        sweep::<Small, _>(|| scenes().chain(huge_scenes()), &[Shortage::Lasting, Shortage::Once]),
        BTreeSet::from([start()]),
    ];
    let failed: BTreeSet<Place> = failed.into_iter().flatten().filter(|(file, _)| !places::is_of_tests(file)).collect();
    println!("injection: {} places that allocate", all.len());
    let missed: Vec<_> = all.difference(&failed).collect();
    assert!(missed.is_empty(), "no scene of `sweep` lets these fail: {missed:#?}");
    let unknown: Vec<_> = failed.difference(&all).collect();
    assert!(unknown.is_empty(), "these failed and are not found in the source: {unknown:#?}");
}
