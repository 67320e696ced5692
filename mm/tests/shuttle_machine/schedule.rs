//! The schedule of a seed, in one of three manners: any task at every point; mostly the same task, for a stretch; or always
//! the first by a random order of precedence, which changes at a few points only (probabilistic concurrency testing).
//!
//! The second finds what takes two CPUs in step, the third what takes one CPU to stand still at one point while others do
//! much. A task that says it waits goes behind all others in the third, and is not taken again at once in the others.

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Random numbers: splitmix64.
pub struct Dice(u64);

impl Dice {
    /// Those of `seed`, and among them those of one purpose.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ purpose << 32);
        dice.roll();
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

enum Manner {
    /// Another task at one in so many points.
    Any(u64),
    /// The order of precedence of each task, the least first; the number the next one to step back gets; the points at which
    /// the running task does.
    Precedence { ranks: Vec<u64>, last: u64, changes: Vec<u64> },
}

/// One schedule for each of some seeds.
pub struct Schedules {
    seeds: Range<u64>,
    current: Arc<AtomicU64>,
    dice: Dice,
    manner: Manner,
    /// Points passed at which there was a choice.
    points: u64,
}

impl Schedules {
    /// Those of `seeds`; `current` says which it is.
    pub fn new(seeds: Range<u64>, current: Arc<AtomicU64>) -> Self {
        Self { seeds, current, dice: Dice::new(0, 0), manner: Manner::Any(1), points: 0 }
    }
}

/// Ranks of tasks that have not stepped back are below.
const STEPPED_BACK: u64 = 1 << 32;

impl Manner {
    fn choose(dice: &mut Dice) -> Self {
        match dice.below(4) {
            0 => Self::Any(1),
            1 => Self::Any(4 << dice.below(6)),
            _ => {
                // Runs differ in length: any order of magnitude is as likely.
                let change = |dice: &mut Dice| {
                    let end = 64 << dice.below(11);
                    dice.below(end)
                };
                let count = 1 + dice.below(4);
                let changes = (0..count).map(|_| change(dice)).collect();
                Self::Precedence { ranks: Vec::new(), last: STEPPED_BACK, changes }
            }
        }
    }
}

impl Scheduler for Schedules {
    fn new_execution(&mut self) -> Option<Schedule> {
        let seed = self.seeds.next()?;
        self.current.store(seed, Ordering::Relaxed);
        self.dice = Dice::new(seed, 0);
        self.manner = Manner::choose(&mut self.dice);
        self.points = 0;
        Some(Schedule::new(seed))
    }

    fn next_task(&mut self, tasks: &[&Task], current: Option<TaskId>, is_waiting: bool) -> Option<TaskId> {
        let dice = &mut self.dice;
        let [_, _, ..] = tasks else { return Some(tasks[0].id()) };
        self.points += 1;
        let current = current.filter(|current| tasks.iter().any(|task| task.id() == *current));
        match &mut self.manner {
            Manner::Any(one_in) => {
                let stays = current.filter(|_| !is_waiting && dice.below(*one_in) != 0);
                let may_be_next = |task: &&&Task| !is_waiting || Some(task.id()) != current;
                let next: Vec<_> = tasks.iter().filter(may_be_next).map(|task| task.id()).collect();
                Some(stays.unwrap_or_else(|| next[dice.below(next.len() as u64) as usize]))
            }
            Manner::Precedence { ranks, last, changes } => {
                let most = tasks.iter().map(|task| usize::from(task.id())).max()?;
                while ranks.len() <= most {
                    ranks.push(dice.below(STEPPED_BACK));
                }
                if let Some(current) = current
                    && (is_waiting || changes.contains(&self.points))
                {
                    *last += 1;
                    ranks[usize::from(current)] = *last;
                }
                tasks.iter().map(|task| task.id()).min_by_key(|task| ranks[usize::from(*task)])
            }
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.dice.roll()
    }
}
