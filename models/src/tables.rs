//! Faults against one who takes their table away (R3 to R5): look at the slot without a lock, lock the table it names, look
//! again; against lock, clear, wait for who looks, free.
//!
//! There are two tables. One is taken out of the slot twice, and faults put the other there, or the same again once it is free:
//! another life of it.

use crate::check::{breaks, holds};
use stateright::{Model, Property};

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// R3: the look at the slot under the lock.
    Recheck,
    /// I16: a table leaves its slot under its own lock too.
    OwnLock,
    /// R4, R5: the wait for those who look.
    GracePeriod,
}

const TABLES: usize = 2;
const FAULTS: usize = 2;
const REMOVALS: u8 = 2;

/// A table as long as it is in use, and which of its uses that is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Life {
    table: usize,
    number: u8,
}

/// Where a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fault {
    Outside,
    /// In a read section, with what it saw in the slot; so until it lets go.
    Saw(Life),
    /// Holds the lock of the table it saw.
    Locked(Life),
    /// And has looked at the slot again: it stores.
    Stores(Life),
    Done,
}

/// Where the CPU is that takes tables away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Remove {
    Start,
    /// Holds the lock of the slot and the table's own.
    Locked(usize),
    /// Has cleared the slot and unlocked.
    Cleared(usize),
    /// Waits for the read sections that were open.
    Waiting(usize),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    /// The table it names.
    slot: Option<usize>,
    /// The lock of each table, which lies in its descriptor.
    locked: [bool; TABLES],
    free: [bool; TABLES],
    /// The number of each table's last life.
    lives: [u8; TABLES],
    /// Faults whose read section is waited for, a bit each.
    readers: u8,
    faults: [Fault; FAULTS],
    remove: Remove,
    removals: u8,
}

struct Tables(Without);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    Fault(usize),
    /// A fault that finds no table puts this one there, in one step: it holds the lock of the slot meanwhile.
    Install(usize, usize),
    Remove,
}

impl State {
    /// Of what the slot names.
    fn life(&self, table: usize) -> Life {
        Life { table, number: self.lives[table] }
    }
}

impl Tables {
    fn fault(&self, last: &State, number: usize) -> Option<State> {
        let mut state = last.clone();
        let leave = |state: &mut State, table: usize| {
            state.locked[table] = false;
            state.readers &= !(1 << number);
        };
        state.faults[number] = match last.faults[number] {
            Fault::Outside => Fault::Saw(last.life(last.slot?)),
            Fault::Saw(life) if last.locked[life.table] => return None,
            Fault::Saw(life) => {
                state.locked[life.table] = true;
                Fault::Locked(life)
            }
            Fault::Locked(life) if last.slot == Some(life.table) || self.0 == Without::Recheck => Fault::Stores(life),
            Fault::Locked(life) => {
                leave(&mut state, life.table);
                Fault::Outside
            }
            Fault::Stores(life) => {
                leave(&mut state, life.table);
                Fault::Done
            }
            Fault::Done => return None,
        };
        Some(state)
    }

    fn remove(&self, last: &State) -> Option<State> {
        let mut state = last.clone();
        state.remove = match last.remove {
            Remove::Start if last.removals == 0 => return None,
            Remove::Start => {
                let table = last.slot?;
                if last.locked[table] && self.0 != Without::OwnLock {
                    return None;
                }
                state.removals -= 1;
                state.locked[table] = true;
                Remove::Locked(table)
            }
            Remove::Locked(table) => {
                state.slot = None;
                state.locked[table] = false;
                Remove::Cleared(table)
            }
            Remove::Cleared(table) => {
                let reads = |number: &usize| !matches!(last.faults[*number], Fault::Outside | Fault::Done);
                state.readers = (0..FAULTS).filter(reads).fold(0, |set, number| set | 1 << number);
                Remove::Waiting(table)
            }
            Remove::Waiting(_) if last.readers != 0 && self.0 != Without::GracePeriod => return None,
            Remove::Waiting(table) => {
                state.free[table] = true;
                Remove::Start
            }
        };
        Some(state)
    }
}

impl Model for Tables {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            slot: Some(0),
            locked: [false; TABLES],
            free: [false, true],
            lives: [0; TABLES],
            readers: 0,
            faults: [Fault::Outside; FAULTS],
            remove: Remove::Start,
            removals: REMOVALS,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Step>) {
        actions.extend((0..FAULTS).map(Step::Fault));
        actions.extend((0..FAULTS).flat_map(|number| (0..TABLES).map(move |table| Step::Install(number, table))));
        actions.push(Step::Remove);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        match step {
            Step::Fault(number) => self.fault(last, number),
            Step::Install(number, table) => {
                let installs = last.faults[number] == Fault::Outside && last.slot.is_none() && last.free[table];
                installs.then(|| {
                    let mut state = last.clone();
                    (state.slot, state.free[table], state.locked[table]) = (Some(table), false, false);
                    state.lives[table] += 1;
                    state
                })
            }
            Step::Remove => self.remove(last),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(STALE_STORE, |_, state: &State| {
                let is_there = |fault: &Fault| !matches!(fault, Fault::Stores(life) if state.slot != Some(life.table));
                state.faults.iter().all(is_there)
            }),
            Property::always(OTHER_LIFE, |_, state: &State| {
                let is_it = |fault: &Fault| !matches!(fault, Fault::Stores(life) if state.life(life.table) != *life);
                state.faults.iter().all(is_it)
            }),
            Property::always(USE_AFTER_FREE, |_, state: &State| {
                state.faults.iter().all(|fault| match fault {
                    Fault::Locked(life) | Fault::Stores(life) => !state.free[life.table],
                    Fault::Outside | Fault::Saw(_) | Fault::Done => true,
                })
            }),
            Property::eventually("everything ends", |_, state: &State| {
                state.remove == Remove::Start && state.faults.iter().all(|fault| *fault == Fault::Done)
            }),
            Property::sometimes("a fault has locked a table, and another is in its place", |_, state: &State| {
                let is_late = |life: &Life| state.slot.is_some_and(|table| table != life.table);
                state.faults.iter().any(|fault| matches!(fault, Fault::Locked(life) if is_late(life)))
            }),
            Property::sometimes("a table comes back to its slot", |_, state: &State| {
                state.slot == Some(0) && state.lives[0] > 0
            }),
        ]
    }
}

const STALE_STORE: &str = "no store into a table that has gone";
const OTHER_LIFE: &str = "a look at the slot that succeeds is about the table that was seen, in the same life";
const USE_AFTER_FREE: &str = "no table is used after it was freed";

#[test]
fn a_fault_and_an_unmapping_get_along() {
    holds(Tables(Without::Nothing));
}

/// I16, R3 to R5.
#[test]
fn each_rule_is_needed() {
    for without in [Without::Recheck, Without::OwnLock] {
        breaks(Tables, without, STALE_STORE);
    }
    for property in [OTHER_LIFE, USE_AFTER_FREE] {
        breaks(Tables, Without::GracePeriod, property);
    }
}
