//! What a simulated machine is made of, and how unkindly it behaves.

use crate::address::Pfn;
use crate::machine::WaitingRule;
use crate::tlb::MAX_ASIDS;
use std::time::Duration;

/// The first frame whose address has more than 32 bits.
pub(crate) const ABOVE_4_GIB: Pfn = Pfn(1 << 20);

/// The make of a [`SimMachine`](super::SimMachine). Chances are "one in so many", 0 is never.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Where physical memory begins: not at 0, so that a frame number that was never set is caught.
    pub first_frame: Pfn,
    /// Frames of physical memory.
    pub frames: usize,
    /// How many of them are low memory; those above are high. `None` for all.
    pub low_frames: Option<usize>,
    /// How many of them walkers find tables in. `None` for all.
    pub table_frames: Option<usize>,
    /// CPUs, all online from the start.
    pub cpus: usize,
    /// Source of every random choice.
    pub seed: u64,
    /// Chance that a CPU dawdles where it enters the machine, to widen the windows of races.
    pub delay: u32,
    /// Chance that some CPU's walker then walks an address of its own choice, and that a store gets as far as its translation
    /// and is then done again.
    pub speculation: u32,
    /// Chance that some CPU then drops something it has cached. Seldom is unkinder: what is dropped cannot be used stale.
    pub eviction: u32,
    /// Chance that a walker passes over the cached table nearest to the leaf, and begins at one above it.
    pub passing_over: u32,
    /// Chance that an interrupt is still under way there: it is taken at a later such point.
    pub lateness: u32,
    /// Chance that a TLB keeps a large leaf as a small translation of the page that was wanted.
    pub fracturing: u32,
    /// ASIDs a CPU's TLB tells apart; 1 makes every load of a top table drop all.
    pub asids: usize,
    /// Whether walkers take entries of 1 GiB.
    pub gigabyte_pages: bool,
    /// Whether walkers know the bit that forbids execution.
    pub no_execute: bool,
    /// How CPUs wait for page-table locks.
    pub waiting_rule: WaitingRule,
    /// How long one [`run`](super::Sim::run) or [`run_cpu`](super::Sim::run_cpu) may take.
    pub time_limit: Duration,
    /// How many times as fast as the host's its clock is: for tests that wait for a limit of `mm`'s.
    pub clock_rate: u64,
    /// Whether the first violation stops the machine, or all are collected.
    pub stop_at_violation: bool,
}

impl SimConfig {
    /// A machine that races: it dawdles, speculates and, seldom, evicts, and begins its walks anywhere. Most of its memory is high, which means above 4 GiB, and
    /// half of it not for tables. With an odd seed its TLBs tell no address spaces apart.
    pub fn racy(frames: usize, cpus: usize, seed: u64) -> Self {
        let low = frames.div_ceil(4);
        Self {
            delay: 16,
            speculation: 64,
            eviction: 4096,
            passing_over: 4,
            lateness: 4,
            fracturing: 4,
            asids: if seed.is_multiple_of(2) { MAX_ASIDS } else { 1 },
            first_frame: Pfn(ABOVE_4_GIB.0 - low as u64),
            low_frames: Some(low),
            table_frames: Some(frames.div_ceil(2)),
            ..Self::calm(frames, cpus, seed)
        }
    }

    /// A machine that does what it is told and nothing else. With one host thread at a time every run is the same. All its
    /// memory is low.
    pub fn calm(frames: usize, cpus: usize, seed: u64) -> Self {
        Self {
            first_frame: Pfn(0x100),
            frames,
            low_frames: None,
            table_frames: None,
            cpus,
            seed,
            delay: 0,
            speculation: 0,
            eviction: 0,
            passing_over: 0,
            lateness: 0,
            fracturing: 0,
            asids: MAX_ASIDS,
            gigabyte_pages: true,
            no_execute: true,
            waiting_rule: WaitingRule { rounds: 8, polls: 16, polls_per_pause: 4 },
            time_limit: time_limit(),
            clock_rate: 1,
            stop_at_violation: true,
        }
    }
}

/// A minute, or the seconds that `LATCHWORK_TIME_LIMIT` gives to a program that something slows down.
fn time_limit() -> Duration {
    let given = std::env::var("LATCHWORK_TIME_LIMIT").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(60))
}

/// Random numbers without a state to lock: splitmix64.
pub(super) fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}
