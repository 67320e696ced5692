//! Objects by themselves; how faults use them is in `fault::tests`.

use super::{MAX_PAGES, NODE_SHIFT, Object, ObjectError};
use crate::machine::sim::SimConfig;
use crate::pgtable::FourLevel;
use crate::testing::World;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// More pages than one node has.
const PAGES: u64 = 4 << NODE_SHIFT;

#[test]
fn what_lies_beyond_the_end_is_refused() {
    let world: World<FourLevel> = World::new(SimConfig::calm(64, 1, 1));
    world.alone(|| {
        for pages in [0, MAX_PAGES + 1, u64::MAX] {
            assert_eq!(Object::create(world.memory, pages).err(), Some(ObjectError::BeyondEnd));
        }
        let object = Object::create(world.memory, PAGES).unwrap();
        object.page(PAGES - 1).unwrap();
        for index in [PAGES, u64::MAX] {
            assert_eq!(object.page(index), Err(ObjectError::BeyondEnd));
        }
    });
}

#[test]
fn a_page_that_nobody_has_asked_for_has_no_frame() {
    let world: World<FourLevel> = World::new(SimConfig::calm(64, 1, 1));
    world.alone(|| {
        let object = Object::create(world.memory, PAGES).unwrap();
        let pfn = object.page(1).unwrap();
        // Neither beside it, nor where there is no node.
        assert_eq!([0, 1, PAGES - 1].map(|index| object.resident(index)), [None, Some(pfn), None]);
    });
}

/// I15's shape: all CPUs want the first page below a node that is not there yet. They agree on one node and one frame; what the
/// others have made goes back, or the books of the machine do not balance.
#[test]
fn first_users_of_a_node_agree() {
    for seed in 0..24 {
        let world: World<FourLevel> = World::new(SimConfig { delay: 2, ..SimConfig::racy(128, 4, seed) });
        let object = world.alone(|| Object::create(world.memory, PAGES).unwrap());
        let found = Mutex::new(BTreeSet::new());
        world.machine.run_all(|_| {
            let frames = [0, PAGES / 2, PAGES - 1].map(|index| object.page(index).unwrap());
            found.lock().unwrap().insert(frames);
        });
        assert_eq!(found.lock().unwrap().len(), 1, "each CPU has a page of its own");
        world.alone(|| drop(object));
    }
}
