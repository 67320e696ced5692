//! A whole life of an address space and its child, with each of its allocations failing in turn (R34).

mod against_a_model;
mod scarce;
mod sweep;

use crate::config::{USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use crate::cpu::CpuId;
use crate::frame::Site;
use crate::machine::Machine;
use crate::machine::sim::SimConfig;
use crate::pgtable::FourLevel;
use crate::sweep::{Failure, live};
use crate::testing::World;

/// R34, I6, I43: the allocations of a life fail one after the other, each for good and each only once. A failure is a clean
/// error, a single one is made good, and whatever was taken is given back.
#[test]
fn every_allocation_of_a_life_may_fail() {
    let world: World<FourLevel> = World::new(SimConfig::calm(2048, 2, 1));
    let handle = world.machine.handle();
    let injection = &handle.cpus().of(CpuId(0)).injection;
    let walk = |arm: &dyn Fn(u32)| {
        let mut failed = Vec::new();
        loop {
            let nth = failed.len() as u32 + 1;
            let outcome = world.alone(|| {
                arm(nth);
                let outcome = live(world.memory);
                (outcome, injection.stop().failed)
            });
            world.assert_books_balance();
            match outcome {
                (Ok(()), None) => return failed,
                (outcome @ (Ok(()) | Err(Failure::OutOfMemory)), Some(site)) => failed.push((site, outcome)),
                (outcome, _) => panic!("allocation {nth}: {outcome:?}"),
            }
            assert!(nth < 1000, "no end of allocations");
        }
    };
    let for_good = walk(&|nth| injection.fail_from(nth));
    let once = walk(&|nth| injection.fail_nth(nth));
    let of = |site| for_good.iter().filter(|(failed, _)| *failed == site).count();
    println!(
        "injection: {} points walked, each failing for good ({} frames, {} slab objects, {} page-table locks), {} failing once",
        for_good.len(),
        of(Site::Frame),
        of(Site::Slab),
        of(Site::PtlLock),
        once.len(),
    );
    assert!(once.iter().all(|(_, outcome)| outcome.is_ok()), "a single failure is not made good");
    assert!(of(Site::Frame) >= 20 && of(Site::Slab) >= 10, "{for_good:?}");
    // Three PMD tables: of the parent, of where it moves to, of the child. Six PTE tables: two each.
    let locks = 3 * usize::from(USE_SPLIT_PMD_PTLOCKS) + 6 * usize::from(USE_SPLIT_PTE_PTLOCKS);
    assert_eq!(of(Site::PtlLock), locks, "{for_good:?}");
}
