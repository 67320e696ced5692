//! Faults against an unmapping that takes their table away (R3 to R5): look at the slot without a lock, lock the table it names,
//! look again; against lock, clear, wait for who looks, free.

use crate::check::{breaks, holds};
use stateright::{Model, Property};

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Without {
    Nothing,
    /// R3: the look at the slot under the lock.
    Recheck,
    /// R4: the wait for those who look.
    GracePeriod,
}

/// Where a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fault {
    Outside,
    /// In a read section, with what it saw in the slot.
    Saw(u8),
    /// Holds the lock of the table it saw.
    Locked(u8),
    Done,
}

/// Where an unmapping is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Unmap {
    Start,
    Locked,
    Cleared,
    /// Waits for the read sections that were open: a bit for each fault.
    Waiting(u8),
    Done,
}

const FAULTS: usize = 2;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    /// The table it names.
    slot: Option<u8>,
    /// The lock of the one table there is, which lies in that table's descriptor.
    locked: bool,
    freed: bool,
    faults: [Fault; FAULTS],
    unmap: Unmap,
    stale_store: bool,
    use_after_free: bool,
}

struct Tables(Without);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    Fault(usize),
    Unmap,
}

impl Model for Tables {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            slot: Some(0),
            locked: false,
            freed: false,
            faults: [Fault::Outside; FAULTS],
            unmap: Unmap::Start,
            stale_store: false,
            use_after_free: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Step>) {
        actions.extend((0..FAULTS).map(Step::Fault));
        actions.push(Step::Unmap);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Fault(number) => {
                let fault = match last.faults[number] {
                    Fault::Outside => last.slot.map_or(Fault::Done, Fault::Saw),
                    Fault::Saw(_) if last.locked => {
                        // The lock lies in the table's own descriptor.
                        state.use_after_free |= last.freed;
                        return (state.use_after_free != last.use_after_free).then_some(state);
                    }
                    Fault::Saw(table) => {
                        state.use_after_free |= last.freed;
                        state.locked = true;
                        Fault::Locked(table)
                    }
                    Fault::Locked(table) => {
                        let goes_on = self.0 == Without::Recheck || last.slot == Some(table);
                        state.stale_store |= goes_on && last.slot != Some(table);
                        state.use_after_free |= last.freed;
                        state.locked = false;
                        if goes_on { Fault::Done } else { Fault::Outside }
                    }
                    Fault::Done => return None,
                };
                state.faults[number] = fault;
            }
            Step::Unmap => {
                state.unmap = match last.unmap {
                    Unmap::Start if last.locked => return None,
                    Unmap::Start => {
                        state.locked = true;
                        Unmap::Locked
                    }
                    Unmap::Locked => {
                        state.slot = None;
                        state.locked = false;
                        Unmap::Cleared
                    }
                    Unmap::Cleared => {
                        let reads = |fault: &Fault| matches!(fault, Fault::Saw(_) | Fault::Locked(_));
                        let readers = (0..FAULTS).filter(|number| reads(&last.faults[*number]));
                        Unmap::Waiting(readers.fold(0, |set, number| set | 1 << number))
                    }
                    Unmap::Waiting(readers) => {
                        let is_over = |number: usize| {
                            readers >> number & 1 == 0 || matches!(last.faults[number], Fault::Outside | Fault::Done)
                        };
                        if self.0 != Without::GracePeriod && !(0..FAULTS).all(is_over) {
                            return None;
                        }
                        state.freed = true;
                        Unmap::Done
                    }
                    Unmap::Done => return None,
                };
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(STALE_STORE, |_, state: &State| !state.stale_store),
            Property::always(USE_AFTER_FREE, |_, state: &State| !state.use_after_free),
            Property::eventually("everything ends", |_, state: &State| {
                state.unmap == Unmap::Done && state.faults.iter().all(|fault| *fault == Fault::Done)
            }),
        ]
    }
}

const STALE_STORE: &str = "no store into a table that has gone";
const USE_AFTER_FREE: &str = "no table is used after it was freed";

#[test]
fn a_fault_and_an_unmapping_get_along() {
    holds(Tables(Without::Nothing));
}

#[test]
fn each_rule_is_needed() {
    breaks(Tables(Without::Recheck), STALE_STORE);
    breaks(Tables(Without::GracePeriod), USE_AFTER_FREE);
}
