//! Shootdowns, laziness and ASIDs on the simulated machine, whose TLBs forget nothing: what should have been dropped and
//! was not is a violation of its own there. `mm/tests/loom_tlb.rs` has the models.

mod racing;
mod rounds;

use super::{FLUSH_CEILING, TlbFlush, flush};
use crate::address::VirtRange;
use crate::address_space::{Mapping, MmRef};
use crate::cpu::{CpuId, CpuSet};
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{FourLevel, Level, Protection};
use crate::stats::{Counter, StatsSnapshot};
use crate::testing::{Process, World, frame_at, map_anonymous, page, pages};

const CPU0: CpuId = CpuId(0);
const CPU1: CpuId = CpuId(1);

type Space = MmRef<Sim<FourLevel>>;

/// A machine of two CPUs, and an address space with a writable region.
fn rig(asids: usize) -> (World<FourLevel>, Space) {
    let world = World::new(SimConfig { asids, ..SimConfig::calm(512, 2, 1) });
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x400));
        mm
    });
    (world, mm)
}

/// User code on CPU 1 that has written the pages `touched`.
fn on_cpu1(world: &World<FourLevel>, mm: &Space, touched: &[u64]) -> Process<FourLevel> {
    world.machine.run_cpu(CPU1, || {
        let process = Process::enter(world, mm);
        touched.iter().for_each(|number| process.write(page(*number), *number).unwrap());
        process
    })
}

fn stats(world: &World<FourLevel>, cpu: CpuId) -> StatsSnapshot {
    world.machine.handle().cpus().of(cpu).stats.snapshot()
}

/// What `work`, done by CPU 0, has `cpu` count.
fn counted(world: &World<FourLevel>, cpu: CpuId, work: impl FnOnce()) -> StatsSnapshot {
    let before = stats(world, cpu);
    world.alone(work);
    stats(world, cpu).since(&before)
}

/// A CPU that runs a kernel thread is not interrupted for a page, and finds the change when it comes back (R26).
#[test]
fn a_lazy_cpu_is_passed_by_and_catches_up() {
    for asids in [1, 6] {
        let (world, mm) = rig(asids);
        let mut process = on_cpu1(&world, &mm, &[0x200, 0x210]);
        world.machine.run_cpu(CPU1, || process.enter_lazy());
        let sent = counted(&world, CPU0, || mm.munmap(pages(0x200, 0x201)).unwrap());
        assert_eq!((sent[Counter::ShootdownTargets], sent[Counter::LazySkipped]), (0, 1));
        assert_eq!(mm.tlb().cpus(), CpuSet::only(CPU1), "it stays in the mask");
        world.machine.run_cpu(CPU1, || {
            process.switch_to(&mm);
            assert_eq!(process.read(page(0x200)), Err(FaultError::NotMapped));
            assert_eq!(process.read(page(0x210)), Ok(0x210));
        });
        assert_eq!(stats(&world, CPU1)[Counter::LazyBehind], 1);
        world.machine.run_cpu(CPU1, || drop(process));
        world.alone(|| drop(mm));
    }
}

/// Without a change in between the way back from laziness drops nothing.
#[test]
fn a_lazy_cpu_that_missed_nothing_flushes_nothing() {
    let (world, mm) = rig(6);
    let mut process = on_cpu1(&world, &mm, &[0x200]);
    let before = stats(&world, CPU1);
    world.machine.run_cpu(CPU1, || {
        process.enter_lazy();
        process.switch_to(&mm);
        assert_eq!(process.read(page(0x200)), Ok(0x200));
    });
    let after = stats(&world, CPU1).since(&before);
    assert_eq!((after[Counter::LazyBehind], after[Counter::AsidCurrent], after[Counter::AsidBehind]), (0, 0, 0));
    world.machine.run_cpu(CPU1, || drop(process));
    world.alone(|| drop(mm));
}

/// A flush that frees tables reaches a lazy CPU, which leaves the address space (I33, R25): it may still walk.
#[test]
fn a_flush_that_frees_tables_reaches_lazy_cpus() {
    for asids in [1, 6] {
        let (world, mm) = rig(asids);
        let mut process = on_cpu1(&world, &mm, &[0x200]);
        world.machine.run_cpu(CPU1, || process.enter_lazy());
        let served = counted(&world, CPU1, || mm.munmap(pages(0x200, 0x400)).unwrap());
        assert_eq!((served[Counter::FlushesServed], served[Counter::LazyLeft]), (1, 1));
        assert!(mm.tlb().cpus().is_empty());
        // The tables go, and with them what the lazy CPU had cached.
        world.alone(|| world.settle());
        world.machine.run_cpu(CPU1, || {
            process.switch_to(&mm);
            assert_eq!(process.read(page(0x200)), Err(FaultError::NotMapped));
            drop(process);
        });
        world.alone(|| drop(mm));
    }
}

/// The last reference goes while a CPU is lazy on the address space: the CPU leaves before the top table does (I36, R37).
#[test]
fn an_address_space_does_not_go_while_a_cpu_is_lazy_on_it() {
    for asids in [1, 6] {
        let (world, mm) = rig(asids);
        let mut process = on_cpu1(&world, &mm, &[]);
        world.machine.run_cpu(CPU1, || process.enter_lazy());
        // Nothing was ever mapped here, so nothing but the end of the address space can tell the CPU.
        let served = counted(&world, CPU1, || drop(mm));
        assert_eq!(served[Counter::LazyLeft], 1);
        world.machine.run_cpu(CPU1, || drop(process));
    }
}

/// A CPU may drop the last reference of the address space it is lazy on itself.
#[test]
fn a_lazy_cpu_may_end_its_address_space() {
    let (world, mm) = rig(6);
    world.alone(|| {
        let mut process = Process::enter(&world, &mm);
        process.write(page(0x200), 1).unwrap();
        process.enter_lazy();
        drop(mm);
        assert_eq!(stats(&world, CPU0)[Counter::LazyLeft], 1);
        drop(process);
    });
}

/// With ASIDs an address space that comes back finds its translations; without, it starts anew.
#[test]
fn translations_outlive_a_switch_where_the_tlb_is_tagged() {
    for asids in [1, 6] {
        let (world, mm) = rig(asids);
        let other = world.alone(|| world.mm());
        let mut process = on_cpu1(&world, &mm, &[0x200]);
        let before = stats(&world, CPU1);
        world.machine.run_cpu(CPU1, || {
            process.switch_to(&other);
            process.switch_to(&mm);
            assert_eq!(world.machine.handle().translation_of(page(0x200)).is_some(), asids > 1);
            assert_eq!(process.read(page(0x200)), Ok(0x200));
            drop(process);
        });
        let after = stats(&world, CPU1).since(&before);
        assert_eq!(after[Counter::AsidCurrent], u64::from(asids > 1));
        world.alone(|| drop((mm, other)));
    }
}

/// An address space that changed while a CPU had another loaded: the CPU is not told, and drops what it kept (I31).
#[test]
fn translations_kept_from_before_a_change_are_dropped() {
    let (world, mm) = rig(6);
    let other = world.alone(|| world.mm());
    let mut process = on_cpu1(&world, &mm, &[0x200, 0x210]);
    world.machine.run_cpu(CPU1, || process.switch_to(&other));
    let sent = counted(&world, CPU0, || mm.munmap(pages(0x200, 0x201)).unwrap());
    assert_eq!(sent[Counter::ShootdownsSent], 0);
    world.machine.run_cpu(CPU1, || {
        process.switch_to(&mm);
        assert_eq!(process.read(page(0x200)), Err(FaultError::NotMapped));
        drop(process);
    });
    assert_eq!(stats(&world, CPU1)[Counter::AsidBehind], 1);
    world.alone(|| drop((mm, other)));
}

/// The seventh address space takes the first one's ASID, and none sees what another left.
#[test]
fn more_address_spaces_than_asids_do_not_meet() {
    let world = World::<FourLevel>::new(SimConfig::calm(1024, 1, 1));
    world.alone(|| {
        let spaces: Vec<_> = (0..9).map(|_| world.mm()).collect();
        let mut process = Process::enter(&world, &spaces[0]);
        for (number, mm) in spaces.iter().enumerate() {
            map_anonymous(mm, pages(0x200, 0x201));
            process.switch_to(mm);
            process.write(page(0x200), number as u64).unwrap();
        }
        for (number, mm) in spaces.iter().enumerate() {
            process.switch_to(mm);
            assert_eq!(process.read(page(0x200)), Ok(number as u64));
        }
    });
}

/// Exactly 33 pages are flushed one by one, one more by dropping everything; the stride is that of the level that changed (8.4).
#[test]
fn the_ceiling_counts_strides_of_the_level_that_changed() {
    let (world, mm) = rig(1);
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        let flushed = |range: VirtRange, stride| {
            let before = stats(&world, CPU0);
            flush(
                world.machine.handle(),
                mm.tlb(),
                TlbFlush { range, stride, freed_tables: false, top_changed: false },
            );
            let after = stats(&world, CPU0).since(&before);
            (after[Counter::FlushesRanged], after[Counter::FlushesFull])
        };
        assert_eq!(FLUSH_CEILING, 33);
        assert_eq!(flushed(pages(0x200, 0x200 + 33), Level::Pte), (1, 0));
        assert_eq!(flushed(pages(0x200, 0x200 + 34), Level::Pte), (0, 1));
        assert_eq!(flushed(pages(0x200, 0x200 * 34), Level::Pmd), (1, 0));
        assert_eq!(flushed(pages(0x200, 0x200 * 35), Level::Pmd), (0, 1));
        // From the middle of one to the middle of the last, 33 are touched by 32 strides' bytes.
        assert_eq!(flushed(pages(0x300, 0x200 * 33 + 0x100), Level::Pmd), (1, 0));
        assert_eq!(flushed(pages(0x300, 0x200 * 34 + 0x100), Level::Pmd), (0, 1));
        drop(process);
    });
    world.alone(|| drop(mm));
}

/// A right that is taken away is flushed, one that is given is not (spec 7.5).
#[test]
fn a_downgrade_is_flushed_and_an_upgrade_is_not() {
    let (world, mm) = rig(6);
    let process = on_cpu1(&world, &mm, &[0x200, 0x201]);
    let sent = |protection| counted(&world, CPU0, || mm.mprotect(pages(0x200, 0x202), protection).unwrap());
    assert_eq!(sent(Protection::READ)[Counter::ShootdownsSent], 1);
    world.machine.run_cpu(CPU1, || assert_eq!(process.write(page(0x200), 1), Err(FaultError::Forbidden)));
    assert_eq!(sent(Protection::READ_WRITE)[Counter::ShootdownsSent], 0);
    world.machine.run_cpu(CPU1, || process.write(page(0x200), 1).unwrap());
    world.machine.run_cpu(CPU1, || drop(process));
    world.alone(|| drop(mm));
}

/// One `munmap` over many regions interrupts each CPU once.
#[test]
fn an_unmapping_of_many_regions_is_one_shootdown() {
    const REGIONS: u64 = 40;
    let (world, mm) = rig(6);
    let at = |number: u64| 0x1000 + number * 0x10;
    world.alone(|| {
        for number in 0..REGIONS {
            mm.mmap(pages(at(number), at(number) + 2), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
        }
    });
    let touched: Vec<_> = (0..REGIONS).map(at).collect();
    let process = on_cpu1(&world, &mm, &touched);
    let range = pages(at(0), at(REGIONS));
    let sent = counted(&world, CPU0, || mm.munmap(range).unwrap());
    assert_eq!((sent[Counter::ShootdownsSent], sent[Counter::ShootdownTargets]), (1, 1));
    assert!(touched.iter().all(|number| frame_at(&world, &mm, page(*number)).is_none()));
    world.machine.run_cpu(CPU1, || drop(process));
    world.alone(|| drop(mm));
}

/// I24, R27: a CPU that starts a shootdown with interrupts off would wait for CPUs that may be waiting for it.
#[test]
#[should_panic(expected = "must itself answer")]
fn a_shootdown_with_interrupts_off_is_refused() {
    let (world, mm) = rig(6);
    // Refused whether or not anybody has to be told.
    world.alone(|| {
        world.machine.handle().irq_save();
        flush(
            world.machine.handle(),
            mm.tlb(),
            TlbFlush { range: pages(0x200, 0x201), stride: Level::Pte, freed_tables: false, top_changed: false },
        );
    });
}
