//! That what waits is free when somebody who needs it has waited, whoever frees it.

use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::pgtable::FourLevel;
use crate::sync::rcu;
use crate::testing::{World, map_anonymous, page, pages};
use crate::vma::Access;
use std::sync::atomic::{AtomicBool, Ordering};

/// CPU 1 has taken a table out of its backlog and waits for a reader on CPU 2 before it frees it; CPU 0, which finds nothing in
/// any backlog, comes back when the table is free.
#[test]
fn a_drain_waits_for_what_another_cpu_is_freeing() {
    let world: World<FourLevel> = World::new(SimConfig::calm(256, 3, 1));
    let machine = world.machine.handle();
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x201));
        handle_mm_fault(&mm, page(0x200), Access::Write).unwrap();
        mm
    });
    let drains = || world.memory.deferred().taken.0.load(Ordering::Acquire);
    let before = drains();
    let wait_for = |count| {
        while drains() < before + count {
            machine.pause();
        }
    };
    let reads = AtomicBool::new(false);
    machine.run_all(|cpu| match cpu.0 {
        0 => {
            wait_for(1);
            world.memory.drain_deferred();
            assert_eq!(world.memory.page_tables(), 1, "only the top table is left");
        }
        1 => {
            while !reads.load(Ordering::Acquire) {
                machine.pause();
            }
            mm.munmap(pages(0x200, 0x201)).unwrap();
            assert!(world.memory.page_tables() > 1, "a table is freed under its reader");
            world.memory.drain_deferred();
        }
        _ => {
            let section = rcu::read_lock(machine);
            reads.store(true, Ordering::Release);
            wait_for(2);
            // CPU 0 is under way, and would be back by now.
            (0..100).for_each(|_| machine.pause());
            drop(section);
        }
    });
    world.alone(|| drop(mm));
}
