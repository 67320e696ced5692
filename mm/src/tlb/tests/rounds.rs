//! Generations that come round, as they do where words are small.

use super::{CPU1, counted, on_cpu1, rig, stats};
use crate::stats::Counter;
use crate::sync::atomic::{Ordering, REFRESH};
use crate::testing::{page, pages};

/// Else every flush from the last number on would seem to be one that has been done (I29, R24).
#[test]
fn a_flush_after_the_last_generation_is_not_taken_for_an_old_one() {
    let (world, mm) = rig(1);
    mm.tlb().tlb_gen.store(usize::MAX - 4, Ordering::Relaxed);
    let numbers: Vec<u64> = (0x200..0x20a).collect();
    let process = on_cpu1(&world, &mm, &numbers);
    let before = stats(&world, CPU1);
    for &number in &numbers {
        world.alone(|| {
            mm.munmap(pages(number, number + 1)).unwrap();
            world.machine.assert_no_translation(mm.pgd(), pages(number, number + 1));
        });
        world.machine.run_cpu(CPU1, || assert!(process.read(page(number)).is_err()));
    }
    assert_eq!(mm.tlb().tlb_gen(), 5);
    assert_eq!(stats(&world, CPU1).since(&before)[Counter::FlushesRanged], 10, "each is the next");
    world.machine.run_cpu(CPU1, || drop(process));
    world.alone(|| drop(mm));
}

/// One that is lazy for a round would else find itself up to date.
#[test]
fn a_lazy_cpu_is_told_in_each_quarter_of_a_round() {
    for quarter in 1..=4usize {
        let (world, mm) = rig(1);
        mm.tlb().tlb_gen.store(quarter.wrapping_mul(REFRESH).wrapping_sub(3), Ordering::Relaxed);
        let mut process = on_cpu1(&world, &mm, &[0x200, 0x201, 0x202, 0x203]);
        world.machine.run_cpu(CPU1, || process.enter_lazy());
        let left = |number| {
            let counts = counted(&world, CPU1, || mm.munmap(pages(number, number + 1)).unwrap());
            counts[Counter::LazyLeft]
        };
        assert_eq!([left(0x200), left(0x201), left(0x202), left(0x203)], [0, 0, 1, 0]);
        world.machine.run_cpu(CPU1, || drop(process));
        world.alone(|| drop(mm));
    }
}
