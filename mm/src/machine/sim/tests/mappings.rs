//! That mappings are watched: their order, their number, their end, and where the tables lie.

use super::{CPU0, CPU1, Rig};
use crate::machine::Machine;
use crate::machine::sim::mappings::PLACES;
use crate::machine::sim::{SimConfig, SimViolation};
use crate::pgtable::Level;
use std::sync::atomic::{AtomicBool, Ordering};

/// A rig of whose frames only the top table is low memory.
fn high() -> Rig {
    Rig::new(SimConfig { low_frames: Some(1), stop_at_violation: false, ..SimConfig::calm(16, 2, 1) })
}

#[test]
fn mappings_ended_in_order_are_no_violation() {
    let rig = high();
    rig.on(CPU0, |sim| {
        assert!(!sim.is_high(rig.top) && sim.is_high(rig.table));
        let top = sim.map_table(rig.top, Level::Pmd);
        let (outer, inner) = (sim.map_table(rig.table, Level::Pte), sim.map_table(rig.table, Level::Pte));
        assert_eq!(sim.mapped(), 2, "a table of low memory takes no place");
        sim.unmap_table(top);
        sim.unmap_table(inner);
        sim.copy_frame(rig.page, rig.neighbour);
        sim.zero_frame(rig.page);
        sim.unmap_table(outer);
        assert_eq!(sim.mapped(), 0);
    });
    assert_eq!(rig.caught(), []);
}

/// Two mappings of one table look the same to the check, so these are of two.
#[test]
fn a_mapping_that_is_not_ended_last_in_first_out_is_caught() {
    let rig = high();
    rig.on(CPU0, |sim| {
        let outer = sim.map_table(rig.table, Level::Pte);
        let inner = sim.map_table(rig.page, Level::Pte);
        assert_eq!(rig.caught(), [SimViolation::NotATable { pfn: rig.page }]);
        sim.unmap_table(outer);
        assert_eq!(rig.caught(), [SimViolation::UnmappedOutOfOrder { cpu: CPU0 }]);
        sim.unmap_table(inner);
    });
    assert_eq!(rig.caught(), []);
}

#[test]
fn more_mappings_than_there_are_places_for_are_caught() {
    let rig = high();
    rig.on(CPU0, |sim| {
        let maps: Vec<_> = (0..PLACES).map(|_| sim.map_table(rig.table, Level::Pte)).collect();
        assert_eq!(rig.caught(), []);
        sim.zero_frame(rig.page);
        assert_eq!(rig.caught(), [SimViolation::TooManyMappings { cpu: CPU0 }]);
        maps.into_iter().rev().for_each(|map| sim.unmap_table(map));
    });
}

#[test]
fn a_mapping_kept_across_a_sleep_is_caught() {
    let rig = high();
    let (sim, mapped, woken) = (rig.sim(), AtomicBool::new(false), AtomicBool::new(false));
    sim.run(vec![
        (
            CPU0,
            Box::new(|| {
                let table = sim.map_table(rig.table, Level::Pte);
                sim.block_while(1, &mut || !mapped.swap(true, Ordering::AcqRel) || !woken.load(Ordering::Acquire));
                sim.unmap_table(table);
            }),
        ),
        (
            CPU1,
            Box::new(|| {
                while !mapped.load(Ordering::Acquire) {
                    sim.pause();
                }
                woken.store(true, Ordering::Release);
                sim.wake(1);
            }),
        ),
    ]);
    assert_eq!(rig.caught(), [SimViolation::MappingKept { cpu: CPU0 }]);
}

#[test]
fn a_mapping_kept_to_the_end_is_caught() {
    let rig = high();
    rig.on(CPU0, |sim| {
        sim.map_table(rig.table, Level::Pte);
    });
    assert_eq!(rig.caught(), [SimViolation::MappingKept { cpu: CPU0 }]);
}

#[test]
fn the_bytes_of_a_high_frame_cannot_be_had() {
    let rig = high();
    rig.on(CPU0, |sim| {
        sim.frame_bytes(rig.top);
        assert_eq!(rig.caught(), []);
        sim.frame_bytes(rig.page);
    });
    assert_eq!(rig.caught(), [SimViolation::HighFrameAddressed { pfn: rig.page }]);
}

/// Caveat of an emulator whose walkers cut the address of a table: it takes the mapping of one that they do not find to see it.
#[test]
fn a_table_that_walkers_do_not_find_is_caught() {
    let rig = Rig::new(SimConfig { table_frames: Some(1), stop_at_violation: false, ..SimConfig::calm(16, 2, 1) });
    rig.on(CPU0, |sim| {
        sim.unmap_table(sim.map_table(rig.top, Level::Pmd));
        assert_eq!(rig.caught(), []);
        sim.unmap_table(sim.map_table(rig.table, Level::Pte));
    });
    assert_eq!(rig.caught(), [SimViolation::TableOutOfReach { pfn: rig.table }]);
}
