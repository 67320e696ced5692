//! One contest: some CPUs take one lock again and again for a while, and what each got of it.
//!
//! Rule: what is checked is what is measured. Under the lock a number is read, the time passes that the lock is held for, and
//! the number is stored plus one; a lock that does not exclude loses increments.

use alloc::vec::Vec;
use core::hint::black_box;

use arch_x86::machine::X86;
use arch_x86::time;
use mm::cpu::{CpuId, CpuSet};
use mm::machine::Machine;
use mm::stats::{LockCounter, LockPeak, StatsSnapshot};
use mm::sync::spin::SpinLock;
use mm::sync::{LockClass, RawLock};

use crate::harness::Random;
use crate::thread::SpawnError;
use crate::workload::crew;

/// Counted as locks of PTE tables: nobody else takes one meanwhile.
const CLASS: LockClass = LockClass::Pte;

/// What every CPU does in a contest.
#[derive(Clone, Copy)]
pub struct Load {
    /// How long the contest lasts, in nanoseconds of the clock.
    pub nanoseconds: u64,
    /// Turns of a loop for which the lock is held: about as long as a fault does.
    pub hold: u64,
    /// Most turns of a loop between giving the lock up and coming back.
    pub away: u64,
}

impl Load {
    /// That of the benches: two CPUs seldom meet, eight always. Long against the waits to be seen: none outlasts the contest.
    pub const BENCH: Self = Self { nanoseconds: 400_000_000, hold: 100, away: 800 };
}

/// What came of a contest.
pub struct Outcome {
    /// From the first CPU's begin to the last CPU's end.
    pub nanoseconds: u64,
    /// How often each CPU took the lock.
    pub turns: Vec<u64>,
    /// How often it was counted under the lock.
    pub counted_turns: u64,
    /// What `mm` counted meanwhile.
    counted: StatsSnapshot,
}

/// On lines of their own: nothing but the contest touches them.
#[repr(align(128))]
struct Contested<L: RawLock>(SpinLock<u64, L>);

struct Share {
    turns: u64,
    began: u64,
    ended: u64,
    counted: StatsSnapshot,
}

/// Lets `cpus` contend for a lock of type `L`.
///
/// # Errors
/// A thread cannot be started.
pub fn run<L: RawLock>(cpus: CpuSet, load: &Load, seed: u64) -> Result<Outcome, SpawnError> {
    let contested = Contested(SpinLock::<u64, L>::new(0));
    X86.cpus().iter().for_each(|(_, local)| local.stats.forget_peaks());
    let shares = crew::run(cpus, &|member| take_turns(&contested.0, load, member.cpu, seed ^ member.index as u64))?;
    let began = shares.iter().map(|share| share.began).min();
    let ended = shares.iter().map(|share| share.ended).max();
    let counted_turns = *contested.0.lock(X86, CLASS);
    Ok(Outcome {
        nanoseconds: ended.zip(began).map_or(0, |(ended, began)| ended.saturating_sub(began)),
        turns: shares.iter().map(|share| share.turns).collect(),
        counted_turns,
        counted: shares.into_iter().fold(StatsSnapshot::default(), |sum, share| sum + share.counted),
    })
}

fn take_turns<L: RawLock>(lock: &SpinLock<u64, L>, load: &Load, cpu: CpuId, seed: u64) -> Share {
    let mut random = Random::new(seed);
    let stats = &X86.cpus().of(cpu).stats;
    let (before, began) = (stats.snapshot(), time::now_nanos());
    let end = began.saturating_add(load.nanoseconds);
    let mut turns = 0;
    let mut ended = began;
    while ended < end {
        {
            let mut number = lock.lock(X86, CLASS);
            let seen = *number;
            pass(load.hold);
            *number = black_box(seen) + 1;
        }
        turns += 1;
        pass(random.below(load.away));
        ended = time::now_nanos();
    }
    Share { turns, began, ended, counted: stats.snapshot().since(&before) }
}

/// Lets so many turns of a loop pass, without a `pause`, which would give the CPU away under a counted clock.
fn pass(turns: u64) {
    (0..turns).for_each(|turn| {
        black_box(turn);
    });
}

impl Outcome {
    /// Turns of all CPUs.
    pub fn all_turns(&self) -> u64 {
        self.turns.iter().sum()
    }

    /// Whether every increment is there.
    pub fn excluded(&self) -> bool {
        self.counted_turns == self.all_turns()
    }

    /// A count of the locks' slow paths.
    pub fn count(&self, counter: LockCounter) -> u64 {
        self.counted.locks(&[CLASS], counter)
    }

    /// The longest wait, in nanoseconds.
    pub fn longest_wait(&self) -> u64 {
        self.counted.peak(&[CLASS], LockPeak::WaitNanos)
    }

    /// The mean of those that waited, in nanoseconds.
    pub fn mean_wait(&self) -> u64 {
        self.count(LockCounter::WaitNanos).checked_div(self.count(LockCounter::Waited)).unwrap_or(0)
    }
}
