//! A whole life of an address space and its child, with each of its allocations failing in turn (R34).

mod against_a_model;

use super::{MapError, Mapping, Mm};
use crate::config::{USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use crate::cpu::CpuId;
use crate::fault::{FaultError, handle_mm_fault};
use crate::frame::Site;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::memory::OutOfMemory;
use crate::object::{Object, ObjectError};
use crate::pgtable::{FourLevel, Protection};
use crate::testing::{World, page, pages};
use crate::vma::Access;

/// The one way a step may fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Starved;

trait Starving<T> {
    /// Anything but success and a lack of memory is a bug.
    fn or_starved(self) -> Result<T, Starved>;
}

impl<T, E: PartialEq + core::fmt::Debug + OutOfMemoryError> Starving<T> for Result<T, E> {
    fn or_starved(self) -> Result<T, Starved> {
        self.map_err(|error| {
            assert_eq!(error, E::OUT_OF_MEMORY, "a lack of memory is reported as something else");
            Starved
        })
    }
}

trait OutOfMemoryError {
    const OUT_OF_MEMORY: Self;
}

impl OutOfMemoryError for OutOfMemory {
    const OUT_OF_MEMORY: Self = Self;
}

impl OutOfMemoryError for MapError {
    const OUT_OF_MEMORY: Self = Self::OutOfMemory;
}

impl OutOfMemoryError for FaultError {
    const OUT_OF_MEMORY: Self = Self::OutOfMemory;
}

impl OutOfMemoryError for ObjectError {
    const OUT_OF_MEMORY: Self = Self::OutOfMemory;
}

/// Maps, faults, forks, lets the child store, moves, unmaps and ends, as far as there is memory for it. Two tables, an object
/// across a border of its tree, pages copied, reused, zero and fresh, and a move to where no table of any level is.
fn live(world: &World<FourLevel>) -> Result<(), Starved> {
    let touch = |mm: &Mm<Sim<FourLevel>>, number, access| handle_mm_fault(mm, page(number), access).or_starved();
    let mm = Mm::create(world.memory).or_starved()?;
    mm.mmap(pages(0x1fc, 0x204), Protection::READ_WRITE, Mapping::Anonymous).or_starved()?;
    let object = Object::create(world.memory, 100).or_starved()?;
    mm.mmap(pages(0x300, 0x308), Protection::READ_WRITE, Mapping::Object { object, first_page: 60 }).or_starved()?;
    for number in [0x1fc, 0x1ff, 0x200, 0x301, 0x306] {
        touch(&mm, number, Access::Write)?;
    }
    touch(&mm, 0x203, Access::Read)?;
    let child = mm.fork().or_starved()?;
    for number in [0x1fc, 0x200, 0x202, 0x203, 0x305] {
        touch(&child, number, Access::Write)?;
    }
    touch(&mm, 0x1fc, Access::Write)?;
    mm.mremap(pages(0x1fe, 0x202), pages(0x1_2345_67fe, 0x1_2345_6804)).or_starved()?;
    touch(&mm, 0x1_2345_6800, Access::Write)?;
    touch(&mm, 0x1_2345_6803, Access::Write)?;
    child.mprotect(pages(0x1fd, 0x201), Protection::READ).or_starved()?;
    child.munmap(pages(0x1ff, 0x202)).or_starved()?;
    Ok(())
}

/// R34, I6, I43: the allocations of a life fail one after the other, each for good and each only once. A failure is a clean
/// error, a single one is made good, and whatever was taken is given back.
#[test]
fn every_allocation_of_a_life_may_fail() {
    let world: World<FourLevel> = World::new(SimConfig::calm(2048, 2, 1));
    let injection = &world.machine.cpus().of(CpuId(0)).injection;
    let walk = |arm: &dyn Fn(u32)| {
        let mut failed = Vec::new();
        loop {
            let nth = failed.len() as u32 + 1;
            let outcome = world.alone(|| {
                arm(nth);
                let outcome = live(&world);
                (outcome, injection.stop().failed)
            });
            world.assert_books_balance();
            match outcome {
                (Ok(()), None) => return failed,
                (outcome, Some(site)) => failed.push((site, outcome)),
                (Err(Starved), None) => panic!("step {nth} starves of nothing"),
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
