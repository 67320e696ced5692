use super::{FrameAllocator, MAX_ORDER, OutOfFrames, RangeError, Site};
use crate::address::Pfn;
use crate::cpu::CpuId;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig, SimMachine};
use crate::page::PageType;
use crate::pgtable::FourLevel;
use std::collections::BTreeSet;

const CPU0: CpuId = CpuId(0);
const CPU1: CpuId = CpuId(1);

type Allocator = FrameAllocator<Sim<FourLevel>>;

/// A machine and an allocator that owns all its frames.
fn machine(config: SimConfig) -> (SimMachine<FourLevel>, Allocator) {
    let machine = SimMachine::new(config);
    let (sim, memmap) = (machine.handle(), machine.memmap());
    let allocator = FrameAllocator::new(memmap);
    sim.run_cpu(CPU0, || allocator.add_free_range(sim, memmap.first(), memmap.end())).unwrap();
    (machine, allocator)
}

fn calm(frames: usize) -> (SimMachine<FourLevel>, Allocator) {
    machine(SimConfig::calm(frames, 2, 1))
}

/// Takes frames until there are none.
fn exhaust(allocator: &Allocator, sim: Sim<FourLevel>) -> Vec<Pfn> {
    std::iter::from_fn(|| allocator.alloc(sim).ok()).collect()
}

#[test]
fn a_frame_handed_out_is_data_with_one_reference_and_no_mapping() {
    let (machine, allocator) = calm(64);
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let pfn = allocator.alloc(sim).unwrap();
        let page = machine.memmap().page(pfn);
        assert_eq!((page.page_type(), page.order(), page.refcount(), page.mapcount()), (PageType::Data, 0, 1, 0));
        assert_eq!(allocator.free_frames(sim), 63);
        allocator.free(sim, pfn);
        assert_eq!((page.page_type(), page.refcount()), (PageType::Stocked, 0));
        assert_eq!((allocator.free_frames(sim), allocator.total_frames(sim)), (64, 64));
    });
}

#[test]
fn a_zeroed_frame_is_zero_whatever_was_in_it() {
    let (machine, allocator) = calm(4);
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let pfn = allocator.alloc_zeroed(sim).unwrap();
        let words = sim.frame_words(pfn);
        assert_eq!((words.len(), words.iter().all(|word| *word == 0)), (512, true));
    });
}

#[test]
fn exhausted_memory_gives_every_frame_once_then_an_error_and_merges_when_all_is_back() {
    let (machine, allocator) = calm(256);
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let frames = exhaust(&allocator, sim);
        assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), 256);
        assert_eq!(allocator.free_frames(sim), 0);
        assert_eq!(allocator.alloc(sim), Err(OutOfFrames));
        assert_eq!(allocator.alloc_order(sim, 3), Err(OutOfFrames));
        frames.into_iter().for_each(|pfn| allocator.free(sim, pfn));
        assert_eq!(allocator.free_frames(sim), 256);
        // Reserves are drained for it: the machine's memory is one aligned block of 256 frames.
        let all = allocator.alloc_order(sim, 8).unwrap();
        assert_eq!(all, machine.memmap().first());
        allocator.free_order(sim, all, 8);
    });
}

#[test]
fn the_last_frames_are_found_in_another_cpus_reserve() {
    let (machine, allocator) = calm(32);
    let sim = machine.handle();
    machine.run_cpu(CPU1, || allocator.free(sim, allocator.alloc(sim).unwrap()));
    assert!(machine.run_cpu(CPU1, || sim.local().frames.count()) > 0);
    let frames = machine.run_cpu(CPU0, || exhaust(&allocator, sim));
    assert_eq!(frames.len(), 32);
}

#[test]
fn a_block_is_aligned_to_its_size_and_returns_whole() {
    let (machine, allocator) = calm(256);
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let block = allocator.alloc_order(sim, 5).unwrap();
        assert_eq!(block.0 % 32, 0);
        assert_eq!(machine.memmap().page(block).order(), 5);
        assert_eq!(allocator.free_frames(sim), 256 - 32);
        allocator.free_order(sim, block, 5);
        assert_eq!(allocator.free_frames(sim), 256);
        assert_eq!(allocator.alloc_order(sim, MAX_ORDER + 1), Err(OutOfFrames));
    });
}

#[test]
fn an_injected_failure_takes_nothing() {
    let (machine, allocator) = calm(64);
    let sim = machine.handle();
    machine.run_cpu(CPU0, || {
        let injection = &sim.local().injection;
        injection.fail_from(1);
        assert_eq!(allocator.alloc(sim), Err(OutOfFrames));
        assert_eq!(allocator.alloc_order(sim, 2), Err(OutOfFrames));
        assert_eq!(allocator.alloc_zeroed(sim), Err(OutOfFrames));
        let injected = injection.stop();
        assert_eq!((injected.seen, injected.failed), (3, Some(Site::Frame)));
        assert_eq!(allocator.free_frames(sim), 64);
        assert!(allocator.alloc(sim).is_ok());
    });
}

#[test]
fn memory_is_taken_over_once_and_only_where_it_has_descriptors() {
    let machine = SimMachine::<FourLevel>::new(SimConfig::calm(64, 1, 1));
    let (sim, memmap) = (machine.handle(), machine.memmap());
    let allocator = FrameAllocator::new(memmap);
    let (first, end) = (memmap.first(), memmap.end());
    machine.run_cpu(CPU0, || {
        let middle = Pfn(first.0 + 20);
        assert_eq!(allocator.add_free_range(sim, Pfn(first.0 - 1), middle), Err(RangeError::OutsideMemMap));
        assert_eq!(allocator.add_free_range(sim, middle, Pfn(end.0 + 1)), Err(RangeError::OutsideMemMap));
        assert_eq!(allocator.add_free_range(sim, first, middle), Ok(()));
        assert_eq!(allocator.add_free_range(sim, Pfn(middle.0 - 1), end), Err(RangeError::Overlap));
        assert_eq!((allocator.free_frames(sim), allocator.total_frames(sim)), (20, 20));
        assert_eq!(allocator.add_free_range(sim, middle, end), Ok(()));
        assert_eq!((allocator.free_frames(sim), allocator.total_frames(sim)), (64, 64));
        // Memory known in two pieces merges across the seam.
        assert!(allocator.alloc_order(sim, 6).is_ok());
    });
}

/// Runs `wrong` on a machine that only records violations, and expects the allocator itself to stop it.
fn panics_with(expected: &str, wrong: impl FnOnce(&Allocator, Sim<FourLevel>)) {
    let (machine, allocator) = machine(SimConfig { stop_at_violation: false, ..SimConfig::calm(64, 1, 1) });
    let sim = machine.handle();
    let outcome =
        machine.run_cpu(CPU0, || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wrong(&allocator, sim))));
    machine.take_violations();
    let panic = outcome.expect_err("nobody noticed");
    let text = panic.downcast_ref::<String>().expect("a formatted message");
    assert!(text.contains(expected), "{text}");
}

#[test]
fn freeing_a_frame_twice_is_caught_and_names_the_frame() {
    panics_with("pfn 0x10", |allocator, sim| {
        let pfn = allocator.alloc(sim).unwrap();
        allocator.free(sim, pfn);
        allocator.free(sim, pfn);
    });
}

#[test]
fn freeing_a_block_twice_is_caught() {
    panics_with("is Free of order", |allocator, sim| {
        let pfn = allocator.alloc_order(sim, 3).unwrap();
        allocator.free_order(sim, pfn, 3);
        allocator.free_order(sim, pfn, 3);
    });
}

#[test]
fn freeing_a_block_with_the_wrong_order_is_caught() {
    panics_with("freed as an allocated block of order 2, but it is Data of order 3", |allocator, sim| {
        let pfn = allocator.alloc_order(sim, 3).unwrap();
        allocator.free_order(sim, pfn, 2);
    });
}

#[test]
fn freeing_a_part_of_a_block_is_caught() {
    panics_with("is Tail", |allocator, sim| {
        let pfn = allocator.alloc_order(sim, 3).unwrap();
        allocator.free(sim, Pfn(pfn.0 + 1));
    });
}

#[test]
fn freeing_a_frame_that_is_still_a_table_is_caught() {
    panics_with("is Table", |allocator, sim| {
        let pfn = allocator.alloc(sim).unwrap();
        allocator.memmap().page(pfn).set_state(PageType::Table, 0, 0);
        allocator.free(sim, pfn);
    });
}

#[test]
fn frames_are_conserved_and_never_shared_while_cpus_allocate_free_and_drain() {
    const FRAMES: u64 = 256;
    for (seed, low_frames) in (1..=4).map(|seed| (seed, (seed % 2 == 0).then_some(96))) {
        let racy = SimConfig::racy(FRAMES as usize, 4, seed);
        let (machine, allocator) = machine(SimConfig { first_frame: Pfn(0x100), low_frames, ..racy });
        let sim = machine.handle();
        machine.run_all(|cpu| {
            let mut mine: Vec<(Pfn, u32)> = Vec::new();
            for step in 0..2_000u64 {
                match (step * 7 + u64::from(cpu.0) * 3 + seed) % 11 {
                    0..5 => mine.extend(allocator.alloc(sim).ok().map(|pfn| (pfn, 0))),
                    5 => mine.extend(allocator.alloc_order(sim, 2).ok().map(|pfn| (pfn, 2))),
                    6 if step % 5 == 0 => allocator.drain(sim),
                    _ => {
                        for _ in 0..3 {
                            if let Some((pfn, order)) = mine.pop() {
                                release(&allocator, sim, cpu, pfn, order);
                            }
                        }
                        continue;
                    }
                }
                if let Some((pfn, _)) = mine.last() {
                    sim.set_frame_word(*pfn, 0, owner(cpu, *pfn));
                }
            }
            mine.into_iter().for_each(|(pfn, order)| release(&allocator, sim, cpu, pfn, order));
        });
        machine.run_cpu(CPU0, || {
            assert_eq!(allocator.free_frames(sim), FRAMES);
            // 0x100 to 0x200; the boundary is at 0x160.
            let orders = if low_frames.is_none() { &[8][..] } else { &[7, 5, 6, 5] };
            let blocks = orders.iter().filter_map(|order| allocator.alloc_order(sim, *order).ok());
            assert_eq!(blocks.count(), orders.len(), "the free memory did not merge back into whole blocks");
        });
    }
}

/// What the owner of a frame writes into it.
fn owner(cpu: CpuId, pfn: Pfn) -> u64 {
    u64::from(cpu.0) << 32 | pfn.0
}

fn release(allocator: &Allocator, sim: Sim<FourLevel>, cpu: CpuId, pfn: Pfn, order: u32) {
    assert_eq!(sim.frame_words(pfn)[0], owner(cpu, pfn), "somebody else wrote to {pfn:?}");
    if order == 0 { allocator.free(sim, pfn) } else { allocator.free_order(sim, pfn, order) }
}
