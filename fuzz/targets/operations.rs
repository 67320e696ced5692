//! Any operations on address spaces, by two CPUs in turn, some of them without memory, on a simulated machine of any paging mode:
//! what comes of them is what the reference model of `mm`'s own tests foresees, and nothing is left over.
//!
//! Two bytes choose the mode and the hardware's whims, then eight are a step each.

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use mm::pgtable::{FiveLevel, FourLevel, HugeSize, Pae, PagingMode};
use mm::testing::operations::{
    Action, Backing, CPUS, OBJECT_PAGES, OBJECTS, SPACES, Shortage, Step, border, config, near, run, table,
};
use mm::testing::{Small, World};

/// More steps are not taken.
const STEPS: usize = 160;
/// Frames of a machine.
const FRAMES: usize = 8192;

/// One of each serves for all inputs, since a simulated machine's memory is never freed; books balance after each.
struct Worlds {
    four_levels: World<FourLevel>,
    five_levels: World<FiveLevel>,
    pae: World<Pae>,
    small: World<Small>,
}

thread_local! {
    static WORLDS: &'static Worlds = Box::leak(Box::new(Worlds {
        four_levels: World::new(config(FRAMES, 6)),
        five_levels: World::new(config(FRAMES, 2)),
        pae: World::new(config(FRAMES, 1)),
        small: World::new(mm::machine::sim::SimConfig { gigabyte_pages: true, ..config(FRAMES / 16, 6) }),
    }));
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[mode, seed], bytes)) = bytes.split_first_chunk() else { return };
    let (words, _) = bytes.as_chunks();
    WORLDS.with(|worlds| match mode % 16 {
        0 => perform(&worlds.four_levels, seed, words),
        1 => perform(&worlds.pae, seed, words),
        2 => perform(&worlds.five_levels, seed, words),
        // Far more happens in as many steps, and thirty times as fast, where tables have four entries.
        _ => perform(&worlds.small, seed, words),
    });
});

fn perform<Mode: PagingMode>(world: &World<Mode>, seed: u8, words: &[[u8; 8]]) {
    run(world, seed.into(), words.iter().take(STEPS).map(step::<Mode>));
}

fn step<Mode: PagingMode>(&[who, what, a, b, c, d, size, value]: &[u8; 8]) -> Step {
    let nth = u32::from(who >> 4) + 1;
    let shortage = match who >> 1 & 7 {
        6 => Some(Shortage::Once(nth)),
        7 => Some(Shortage::ForGood(nth)),
        _ => None,
    };
    let (at, to, count) = (place::<Mode>(a, b), place::<Mode>(c, d), u64::from(size & 7) + 1);
    let range = range::<Mode>(at, to, size);
    let (space, flag) = (usize::from(value) % SPACES, what >> 6 != 0);
    let action = match what & 31 {
        0 | 1 => Action::Enter(space),
        2 | 3 => Action::Lazy,
        4 => Action::Idle,
        5..=12 => Action::Write(at, u64::from(value) + 1),
        13..=15 => Action::Read(at),
        16..=19 => Action::Map { range, instead: what & 32 == 0, write: flag, backing: backing(what, value) },
        20 => Action::Unmap(range),
        21 => Action::Protect(range, flag),
        22 | 23 => Action::Remap(range, to..to + count),
        24 => Action::Discard(range),
        25..=27 => Action::Collapse(at),
        28 => Action::Split(at),
        29 | 30 => Action::Fork(space),
        _ => Action::Replace(space),
    };
    (usize::from(who) % CPUS, shortage, action)
}

/// Mostly one of few pages near a border of tables, so that steps have to do with each other.
fn place<Mode: PagingMode>(how: u8, at: u8) -> u64 {
    let (side, at) = (u64::from(how >> 3), u64::from(at));
    match how & 7 {
        0..=3 => near::<Mode>(side, 1, at),
        4..=6 => near::<Mode>(side, 4, at),
        _ => near::<Mode>(1, table::<Mode>(), at * 4),
    }
}

/// A few pages, all between two, or whole tables.
fn range<Mode: PagingMode>(at: u64, to: u64, size: u8) -> Range<u64> {
    match size >> 3 & 7 {
        0..=4 => at..at + u64::from(size & 7) + 1,
        5 => at.min(to)..at.max(to) + 1,
        _ => {
            let first = border::<Mode>() + u64::from(size & 3) * table::<Mode>() - 2 * table::<Mode>();
            first..first + u64::from(size >> 2 & 1) * table::<Mode>() + table::<Mode>()
        }
    }
}

fn backing(what: u8, value: u8) -> Backing {
    match what & 3 {
        0 => Backing::Anonymous,
        1 => Backing::AnonymousHuge,
        2 => Backing::Huge(if value & 3 == 0 { HugeSize::Pud } else { HugeSize::Pmd }),
        _ => Backing::Object(usize::from(value) % OBJECTS, u64::from(value >> 1) % OBJECT_PAGES),
    }
}
