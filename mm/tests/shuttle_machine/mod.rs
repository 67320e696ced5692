//! Runs a test under many schedules, each of which a seed decides: on which CPU it goes on at every point, and what the
//! simulated machine does by chance.
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `LATCHWORK_SCHEDULES` | run so many times as many schedules as a test asks for | 1 |
//! | `LATCHWORK_SCHEDULE` | run this seed alone: a failure names the one to type here | all, from 0 |

mod schedule;

use mm::machine::sim::SimConfig;
use schedule::Schedules;
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::env;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use schedule::Dice;

/// Runs `test`, which is told its seed, under the schedules of seeds 0 to `count`, or as the environment says.
///
/// # Panics
///
/// If one fails, with its seed.
pub fn explore(count: u64, test: fn(seed: u64)) {
    if let Some(seed) = failing_seed(seeds(count), test) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        panic!("schedule {seed} fails: LATCHWORK_SCHEDULE={seed} cargo xtask test --only host {name} repeats it");
    }
}

/// The first of `seeds` under whose schedule `test` fails.
pub fn failing_seed(seeds: Range<u64>, test: fn(seed: u64)) -> Option<u64> {
    let current = Arc::new(AtomicU64::new(seeds.start));
    let schedules = Schedules::new(seeds, Arc::clone(&current));
    let mut config = Config::new();
    // A machine in the frames of a few functions more than usual.
    config.stack_size = 1 << 20;
    // The seed is shorter, and repeats what the machine does too.
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(1_000_000);
    // What other CPUs were doing is not undone: they could wait for one that unwinds.
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    let seed = Arc::clone(&current);
    // A run that fails leaves its thread unwinding.
    let thread = std::thread::spawn(move || {
        Runner::new(schedules, config).run(move || test(seed.load(Ordering::Relaxed)));
    });
    thread.join().is_err().then(|| current.load(Ordering::Relaxed))
}

fn seeds(count: u64) -> Range<u64> {
    let range = match number("LATCHWORK_SCHEDULE") {
        Some(seed) => seed.checked_add(1).map(|end| seed..end),
        None => count.checked_mul(number("LATCHWORK_SCHEDULES").unwrap_or(1)).map(|end| 0..end),
    };
    range.filter(|range| !range.is_empty()).expect("a number of schedules")
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// A machine whose CPUs speculate and evict often enough for a short run. Its memory is as that of
/// [`racy`](SimConfig::racy) machines; the TLBs of some are not tagged.
pub fn machine(frames: usize, cpus: usize, seed: u64) -> SimConfig {
    let racy = SimConfig::racy(frames, cpus, seed);
    let asids = if seed.is_multiple_of(4) { 1 } else { racy.asids };
    SimConfig { delay: 0, speculation: 24, eviction: 512, asids, ..racy }
}
