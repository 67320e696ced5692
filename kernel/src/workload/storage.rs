//! What it costs to reach a free lock: inline in a frame's descriptor, or behind a pointer there (spec 4.2). What
//! `cargo xtask bench storage` runs.
//!
//! One CPU takes and gives up locks that nobody else wants, either the same one again and again, or those of many descriptors
//! in an order that no cache foresees. The pointer form differs in one thing: the lock is an object of a cache line elsewhere.
//! Under an emulator the caches are the host's.

use alloc::vec::Vec;
use core::hint::black_box;
use core::mem::size_of;

use arch_x86::machine::X86;
use arch_x86::time;
use linkme::distributed_slice;
use mm::machine::Machine;
use mm::page::Page;
use mm::sync::LockClass;
use mm::sync::spin::SpinLock;

use crate::harness::{Job, Name, Random, Tally, WORKLOADS, Workload};
use crate::record::Record;

/// Rounds unless the command line says otherwise.
const ROUNDS: u64 = 5;
/// Descriptors: one, whose lines stay in the first-level cache, and as many as do not.
const DESCRIPTORS: [usize; 2] = [1, 16_384];
/// Times a lock is taken in one measurement.
const PAIRS: usize = 200_000;

#[distributed_slice(WORKLOADS)]
static STORAGE: Workload = Workload { name: Name::new("storage"), run };

/// The page-table lock of this kernel.
type Lock = <X86 as Machine>::Lock;

/// A frame's descriptor, as far as its lock goes: one line, of which the user reads a word first, as `mm` does.
#[repr(C, align(64))]
struct Descriptor<T> {
    state: u64,
    lock: T,
}

/// An object of the slab cache for locks.
#[repr(align(64))]
struct OnItsOwn(SpinLock<(), Lock>);

fn run(job: &Job) -> Tally {
    let mut random = Random::new(job.seed);
    for _ in 0..job.rounds.unwrap_or(ROUNDS) {
        for count in DESCRIPTORS {
            let order = shuffled(count, &mut random);
            let inline: Vec<_> = order.iter().map(|_| Descriptor { state: 1, lock: SpinLock::new(()) }).collect();
            report("inline", count, measure(&inline, &order, |lock| lock));
            drop(inline);
            let locks: Vec<_> = order.iter().map(|_| OnItsOwn(SpinLock::new(()))).collect();
            let pointer: Vec<_> = shuffled(count, &mut random)
                .into_iter()
                .filter_map(|place| Some(Descriptor { state: 1, lock: locks.get(place)? }))
                .collect();
            report("pointer", count, measure(&pointer, &order, |lock| &lock.0));
        }
    }
    Tally { passed: 1, ..Tally::default() }
}

/// The numbers below `count` in an order of chance.
fn shuffled(count: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

/// Nanoseconds that it takes to take and give up [`PAIRS`] locks in this order, the first round through it not counted.
fn measure<T>(descriptors: &[Descriptor<T>], order: &[usize], lock_of: impl Fn(&T) -> &SpinLock<(), Lock>) -> u64 {
    let take = |descriptor: &Descriptor<T>| {
        if black_box(descriptor.state) == 1 {
            drop(lock_of(&descriptor.lock).lock(X86, LockClass::Pte));
        }
    };
    let in_order = || order.iter().filter_map(|&place| descriptors.get(place));
    in_order().for_each(take);
    let began = time::now_nanos();
    in_order().cycle().take(PAIRS).for_each(take);
    time::now_nanos().saturating_sub(began)
}

fn report(form: &str, descriptors: usize, nanoseconds: u64) {
    Record::new("phase")
        .text("workload", "storage")
        .text("phase", form)
        .number("descriptors", descriptors as u64)
        .number("pairs", PAIRS as u64)
        .number("nanoseconds", nanoseconds)
        .number("lock_bytes", size_of::<Lock>() as u64)
        .number("page_bytes", size_of::<Page<Lock>>() as u64)
        .emit();
}
