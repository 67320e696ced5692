//! An empty table that goes while its region stays (R7, R8): `madvise(DONTNEED)` clears it under its lock and tries the lock
//! above; else it lets go, takes both in their order and looks again. Two CPUs do so, while faults fill what they empty.

use crate::check::{breaks, holds};
use stateright::{Model, Property};

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// R7, I22: nobody waits for the lock above under a table's own.
    Trying,
    /// R8: who has let go looks whether the table is still empty.
    SecondLook,
    /// I16: a table leaves its slot under its own lock too.
    OwnLock,
}

const RECLAIMERS: usize = 2;
const FAULTS: usize = 2;
/// Tables, of one entry each. Each CPU that empties one takes at most one away, and a fault makes another.
const TABLES: usize = 1 + RECLAIMERS;

/// Where a CPU is that empties a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Reclaim {
    Start,
    /// Has seen a table in the slot.
    Saw(usize),
    /// Holds its lock.
    Locked(usize),
    /// And has cleared it.
    Cleared(usize),
    /// Holds nothing.
    LetGo,
    /// Holds the lock of the slot.
    Parent,
    /// Holds that and the table's.
    Both(usize),
    Done,
}

/// Where a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fault {
    Start,
    /// Found no table.
    None,
    /// Holds the lock of the slot, to put one there.
    Parent,
    Saw(usize),
    Locked(usize),
    Done,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    slot: Option<usize>,
    parent_locked: bool,
    locked: [bool; TABLES],
    /// Whether the table's entry is filled.
    filled: [bool; TABLES],
    /// The next table that a fault makes.
    next: usize,
    reclaims: [Reclaim; RECLAIMERS],
    faults: [Fault; FAULTS],
}

struct Reclaiming(Without);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    Reclaim(usize),
    /// A CPU that has cleared its table lets go without a try: others want its lock, or it has too many pages to free.
    LetGo(usize),
    Fault(usize),
}

impl Reclaiming {
    fn reclaim(&self, last: &State, number: usize) -> Option<State> {
        let mut state = last.clone();
        state.reclaims[number] = match last.reclaims[number] {
            Reclaim::Start => last.slot.map_or(Reclaim::Done, Reclaim::Saw),
            Reclaim::Saw(table) if last.locked[table] => return None,
            Reclaim::Saw(table) if last.slot == Some(table) => {
                state.locked[table] = true;
                Reclaim::Locked(table)
            }
            // It has gone: its lock was taken, and given up at once. Perhaps there is another.
            Reclaim::Saw(_) => Reclaim::Start,
            Reclaim::Locked(table) => {
                state.filled[table] = false;
                Reclaim::Cleared(table)
            }
            Reclaim::Cleared(_) if last.parent_locked && self.0 == Without::Trying => return None,
            Reclaim::Cleared(table) => {
                state.locked[table] = false;
                if last.parent_locked {
                    Reclaim::LetGo
                } else {
                    state.slot = None;
                    Reclaim::Done
                }
            }
            Reclaim::LetGo if last.parent_locked => return None,
            Reclaim::LetGo => {
                state.parent_locked = true;
                Reclaim::Parent
            }
            Reclaim::Parent => match last.slot {
                Some(table) if last.locked[table] && self.0 != Without::OwnLock => return None,
                Some(table) => {
                    state.locked[table] = true;
                    Reclaim::Both(table)
                }
                None => {
                    state.parent_locked = false;
                    Reclaim::Done
                }
            },
            Reclaim::Both(table) => {
                if !last.filled[table] || self.0 == Without::SecondLook {
                    state.slot = None;
                }
                (state.locked[table], state.parent_locked) = (false, false);
                Reclaim::Done
            }
            Reclaim::Done => return None,
        };
        Some(state)
    }

    fn fault(last: &State, number: usize) -> Option<State> {
        let mut state = last.clone();
        state.faults[number] = match last.faults[number] {
            Fault::Start => last.slot.map_or(Fault::None, Fault::Saw),
            Fault::None if last.parent_locked => return None,
            Fault::None => {
                state.parent_locked = true;
                Fault::Parent
            }
            Fault::Parent => {
                state.parent_locked = false;
                if last.slot.is_none() {
                    state.slot = Some(last.next);
                    state.next += 1;
                }
                Fault::Start
            }
            Fault::Saw(table) if last.locked[table] => return None,
            Fault::Saw(table) if last.slot == Some(table) => {
                state.locked[table] = true;
                Fault::Locked(table)
            }
            // It has gone: its lock was taken, and given up at once.
            Fault::Saw(_) => Fault::Start,
            Fault::Locked(table) => {
                state.filled[table] = true;
                state.locked[table] = false;
                Fault::Done
            }
            Fault::Done => return None,
        };
        Some(state)
    }
}

impl Model for Reclaiming {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut filled = [false; TABLES];
        filled[0] = true;
        vec![State {
            slot: Some(0),
            parent_locked: false,
            locked: [false; TABLES],
            filled,
            next: 1,
            reclaims: [Reclaim::Start; RECLAIMERS],
            faults: [Fault::Start; FAULTS],
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Step>) {
        actions.extend((0..RECLAIMERS).flat_map(|number| [Step::Reclaim(number), Step::LetGo(number)]));
        actions.extend((0..FAULTS).map(Step::Fault));
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        match step {
            Step::Reclaim(number) => self.reclaim(last, number),
            Step::LetGo(number) => {
                let Reclaim::Cleared(table) = last.reclaims[number] else { return None };
                let mut state = last.clone();
                state.locked[table] = false;
                state.reclaims[number] = Reclaim::LetGo;
                Some(state)
            }
            Step::Fault(number) => Self::fault(last, number),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LOST, |_, state: &State| {
                (0..TABLES).all(|table| !state.filled[table] || state.slot == Some(table))
            }),
            Property::always(STUCK, |model, state: &State| {
                let has_ended = state.reclaims.iter().all(|at| *at == Reclaim::Done)
                    && state.faults.iter().all(|at| *at == Fault::Done);
                let mut steps = Vec::new();
                model.actions(state, &mut steps);
                steps.retain(|step| !matches!(step, Step::LetGo(_)));
                has_ended || steps.into_iter().any(|step| model.next_state(state, step).is_some())
            }),
            Property::sometimes("a second look finds nothing", |_, state: &State| {
                state.reclaims.iter().any(|at| matches!(at, Reclaim::Both(table) if !state.filled[*table]))
            }),
            Property::sometimes("a second look finds a page", |_, state: &State| {
                state.reclaims.iter().any(|at| matches!(at, Reclaim::Both(table) if state.filled[*table]))
            }),
        ]
    }
}

const LOST: &str = "no page is lost with its table";
const STUCK: &str = "nobody waits for ever";

#[test]
fn empty_tables_go_and_others_stay() {
    holds(Reclaiming(Without::Nothing));
}

#[test]
fn each_rule_is_needed() {
    breaks(Reclaiming, Without::Trying, STUCK);
    breaks(Reclaiming, Without::SecondLook, LOST);
    breaks(Reclaiming, Without::OwnLock, LOST);
}
