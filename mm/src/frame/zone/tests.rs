use super::Zone;
use crate::address::Pfn;
use crate::cpu::CpuId;
use crate::frame::percpu::{BATCH, CAPACITY};
use crate::frame::{FrameAllocator, OutOfFrames};
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig, SimMachine};
use crate::page::PageType;
use crate::pgtable::FourLevel;
use crate::stats::LockCounter;
use crate::sync::LockClass;

const CPU0: CpuId = CpuId(0);
const CPU1: CpuId = CpuId(1);

type Allocator = FrameAllocator<Sim<FourLevel>>;

/// A machine of two CPUs, of whose frames the first `low` are low memory, and an allocator that owns them all.
fn machine(frames: usize, low: Option<usize>) -> (SimMachine<FourLevel>, Allocator) {
    let machine = SimMachine::new(SimConfig { low_frames: low, ..SimConfig::calm(frames, 2, 1) });
    let (sim, memmap) = (machine.handle(), machine.memmap());
    let allocator = FrameAllocator::new(memmap);
    sim.run_cpu(CPU0, || allocator.add_free_range(sim, memmap.first(), memmap.end())).unwrap();
    (machine, allocator)
}

#[test]
fn a_frame_from_the_reserve_costs_no_lock() {
    let (machine, allocator) = machine(64, None);
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        allocator.free(sim, allocator.alloc(sim).unwrap());
        // Whoever wanted the zone lock now would wait for this very thread.
        let zone = allocator.low.lock(sim);
        let frames: Vec<Pfn> = (0..BATCH).map(|_| allocator.alloc(sim).unwrap()).collect();
        frames.into_iter().for_each(|pfn| allocator.free(sim, pfn));
        drop(zone);
    });
}

#[test]
fn a_refill_loses_no_frame_if_an_interrupt_has_filled_the_reserve_meanwhile() {
    let (machine, allocator) = machine(64, None);
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let reserve = &sim.local().frames;
        while reserve.count() < CAPACITY as u64 {
            assert!(reserve.put(allocator.low.lock(sim).buddy.take(0, PageType::Stocked).unwrap()));
        }
        let taken = allocator.low.refill(sim, reserve).unwrap();
        assert_eq!(allocator.free_frames(sim), 63);
        allocator.hand_out(sim, taken, 0);
        allocator.free(sim, taken);
    });
}

#[test]
fn high_frames_are_given_out_first_and_low_ones_when_they_are_used_up() {
    let (machine, allocator) = machine(64, Some(24));
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let frames: Vec<Pfn> = std::iter::from_fn(|| allocator.alloc(sim).ok()).collect();
        let (high, low) = frames.split_at(40);
        assert_eq!((high.len(), low.len()), (40, 24));
        assert!(high.iter().all(|pfn| sim.is_high(*pfn)) && low.iter().all(|pfn| !sim.is_high(*pfn)));
        assert_eq!(allocator.alloc(sim), Err(OutOfFrames));
        frames.into_iter().for_each(|pfn| allocator.free(sim, pfn));
        assert_eq!(allocator.free_frames_of(sim, Zone::Low), 24);
        assert_eq!(allocator.free_frames_of(sim, Zone::High), 40);
    });
}

#[test]
fn high_blocks_are_given_out_first_too() {
    let (machine, allocator) = machine(64, Some(32));
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let blocks: Vec<Pfn> = std::iter::from_fn(|| allocator.alloc_order(sim, 3).ok()).collect();
        assert_eq!(blocks.len(), 8);
        assert!(blocks.iter().enumerate().all(|(number, pfn)| sim.is_high(*pfn) == (number < 4)), "{blocks:?}");
        blocks.into_iter().for_each(|pfn| allocator.free_order(sim, pfn, 3));
    });
}

#[test]
fn who_asks_for_low_memory_gets_no_other() {
    let (machine, allocator) = machine(64, Some(24));
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let frames: Vec<Pfn> = std::iter::from_fn(|| allocator.alloc_zeroed_low(sim).ok()).collect();
        assert_eq!(frames.len(), 24);
        assert!(frames.iter().all(|pfn| !sim.is_high(*pfn)));
        assert_eq!(allocator.free_frames(sim), 40, "high memory is left");
        assert!(allocator.alloc(sim).is_ok_and(|pfn| sim.is_high(pfn)));
        frames.into_iter().for_each(|pfn| allocator.free(sim, pfn));
        assert!(allocator.alloc_low(sim).is_ok());
    });
}

/// Frames that are no good for tables go to pages first, and to no table ever.
#[test]
fn pages_get_what_tables_cannot_have() {
    let machine = SimMachine::<FourLevel>::new(SimConfig {
        low_frames: Some(16),
        table_frames: Some(40),
        ..SimConfig::calm(64, 2, 1)
    });
    let (sim, memmap) = (machine.handle(), machine.memmap());
    let allocator = FrameAllocator::new(memmap);
    machine.run_cpu(CPU0, || {
        allocator.add_free_range(sim, memmap.first(), memmap.end()).unwrap();
        assert_eq!(Zone::ALL.map(|zone| allocator.free_frames_of(sim, zone)), [16, 24, 24]);
        let page = allocator.alloc(sim).unwrap();
        assert!(!sim.walks(page));
        let tables: Vec<Pfn> = std::iter::from_fn(|| allocator.alloc_zeroed_table(sim).ok()).collect();
        assert_eq!((tables.len(), allocator.free_frames_of(sim, Zone::Far)), (40, 23));
        assert!(tables.iter().all(|pfn| sim.walks(*pfn)));
        assert!(tables[..24].iter().all(|pfn| sim.is_high(*pfn)), "low memory comes last");
        tables.into_iter().chain([page]).for_each(|pfn| allocator.free(sim, pfn));
        assert_eq!(Zone::ALL.map(|zone| allocator.free_frames_of(sim, zone)), [16, 24, 24]);
    });
}

#[test]
fn what_other_cpus_keep_in_reserve_is_found_in_either_zone() {
    let (machine, allocator) = machine(64, Some(32));
    let sim = machine.handle();
    machine.run_cpu(CPU1, || {
        allocator.free(sim, allocator.alloc(sim).unwrap());
        allocator.free(sim, allocator.alloc_low(sim).unwrap());
        assert!(sim.local().frames.count() > 0 && sim.local().high_frames.count() > 0);
    });
    let frames: Vec<Pfn> = machine.run_cpu(CPU0, || std::iter::from_fn(|| allocator.alloc(sim).ok()).collect());
    assert_eq!(frames.len(), 64);
}

/// 0x118 frames end low memory: order 5, 0x120..0x140, is high, and 0x100..0x120 half of each.
#[test]
fn blocks_do_not_reach_across_the_boundary() {
    let (machine, allocator) = machine(64, Some(24));
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let block = allocator.alloc_order(sim, 5).unwrap();
        assert!(sim.is_high(block));
        assert_eq!(allocator.alloc_order(sim, 5), Err(OutOfFrames));
        let low = allocator.alloc_order(sim, 4).unwrap();
        assert!(!sim.is_high(Pfn(low.0 + 15)), "no block of 16 is left in high memory");
        allocator.free_order(sim, low, 4);
        allocator.free_order(sim, block, 5);
        assert_eq!(allocator.span(sim, Zone::Low), Some((Pfn(0x100), Pfn(0x118))));
        assert_eq!(allocator.span(sim, Zone::High), Some((Pfn(0x118), Pfn(0x140))));
    });
}

/// Else every fault would wait for the lock of a zone that has nothing.
#[test]
fn high_memory_that_is_used_up_costs_no_lock() {
    let (machine, allocator) = machine(64, Some(48));
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let high: Vec<Pfn> = (0..16).map(|_| allocator.alloc(sim).unwrap()).collect();
        assert!(high.iter().all(|pfn| sim.is_high(*pfn)));
        allocator.free(sim, allocator.alloc_low(sim).unwrap());
        let taken = || sim.local().stats.snapshot().locks(&[LockClass::Zone], LockCounter::Acquired);
        let before = taken();
        let low = allocator.alloc(sim).unwrap();
        assert!(!sim.is_high(low));
        assert_eq!(taken(), before);
        allocator.free(sim, low);
        // What is freed is found again, by its own CPU at once.
        allocator.free(sim, high[3]);
        assert_eq!(allocator.alloc(sim), Ok(high[3]));
    });
}
