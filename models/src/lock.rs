//! The ticket lock whose waiters halt, in the queue and outside of it (I44, I47, R38, R40): show that you sleep, look once more,
//! halt; against hand the lock on, look for who sleeps, kick.
//!
//! Each CPU takes the lock twice. Tickets are counted to four, so that they wrap. A kick is an interrupt: it ends a halt, stays
//! pending while interrupts are off, and is forgotten by who is awake, at once or late.

use crate::check::{breaks, holds};
use stateright::{Model, Property};

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// R38: who holds a ticket looks at the head after it has shown that it sleeps.
    SecondLook,
    /// I47: the next owner is kicked.
    KickInQueue,
    /// I47: of those outside, one is kicked.
    KickOutside,
    /// R38: a waiter outside is counted before it halts.
    Counting,
    /// R38: a waiter outside halts only if the lock was taken when it was counted.
    CountedLook,
    /// R40: the head wraps without a carry into the tail.
    Wrapping,
    /// I44: who finds the lock taken waits for its turn.
    Turns,
}

const CPUS: usize = 3;
const TURNS: u8 = 2;
const TICKETS: u8 = 4;

/// Where a CPU is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Away,
    /// Waits, without a ticket.
    Outside,
    /// Has looked at the lock in vain, with a ticket or none.
    Polled(Option<u8>),
    /// Shows that it sleeps, with interrupts off; then it is counted.
    GoesToSleepOutside,
    SleepsOutside,
    /// Has shown that it is awake, is still counted.
    Counted,
    /// Has a ticket that it does not show yet.
    Queues(u8),
    Queued(u8),
    /// Shows that it sleeps, with interrupts off; then it looks at the head.
    GoesToSleep(u8),
    Sleeps(u8),
    Owner,
    /// Has handed the lock on, and looks for the CPU with this ticket.
    SeeksTicket(u8),
    /// Has handed the lock on, and looks at this CPU; the sleeper it has found.
    SeeksOutsider(usize, Option<usize>),
    /// Will kick it, if it still sleeps.
    Chose(usize),
    Kicks(usize),
}

/// What a CPU shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Shows {
    Nothing,
    Awake,
    AsleepOutside,
    KickedOutside,
    Asleep(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Cpu {
    at: At,
    shows: Shows,
    kicked: bool,
    /// Times it still waits outside before it takes a ticket, in this turn.
    rounds: u8,
    /// Times it still takes the lock.
    turns: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    head: u8,
    tail: u8,
    outsiders: u8,
    cpus: [Cpu; CPUS],
}

struct Lock {
    without: Without,
    /// How often a waiter stays outside before it queues.
    rounds: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    Run(usize),
    /// A kick finds the CPU awake.
    Forget(usize),
}

impl State {
    fn is_locked(&self) -> bool {
        self.head != self.tail
    }

    fn take_ticket(&mut self) -> u8 {
        let ticket = self.tail;
        self.tail = (self.tail + 1) % TICKETS;
        ticket
    }
}

impl Lock {
    fn run(&self, last: &State, number: usize) -> Option<State> {
        let mut state = last.clone();
        let cpu = last.cpus[number];
        let (at, shows) = match cpu.at {
            At::Away if cpu.turns == 0 => return None,
            // Whatever the lock is: a ticket may be served at once.
            At::Outside if cpu.rounds == 0 => (At::Queues(state.take_ticket()), Shows::Awake),
            At::Away | At::Outside if !last.is_locked() => {
                state.take_ticket();
                (At::Owner, Shows::Nothing)
            }
            At::Away => {
                state.cpus[number].rounds = self.rounds;
                (At::Outside, Shows::Awake)
            }
            At::Outside => {
                state.cpus[number].rounds -= 1;
                (At::Polled(None), Shows::Awake)
            }
            At::Polled(None) => (At::GoesToSleepOutside, Shows::AsleepOutside),
            At::Polled(Some(ticket)) => (At::GoesToSleep(ticket), Shows::Asleep(ticket)),
            At::GoesToSleepOutside => {
                let is_locked = last.is_locked();
                if self.without != Without::Counting {
                    state.outsiders += 1;
                }
                if is_locked || self.without == Without::CountedLook {
                    (At::SleepsOutside, cpu.shows)
                } else {
                    (At::Counted, Shows::Awake)
                }
            }
            At::SleepsOutside if !cpu.kicked => return None,
            At::SleepsOutside => {
                state.cpus[number].kicked = false;
                (At::Counted, Shows::Awake)
            }
            At::Counted => {
                if self.without != Without::Counting {
                    state.outsiders -= 1;
                }
                (At::Outside, Shows::Awake)
            }
            At::Queues(ticket) => (At::Queued(ticket), Shows::Awake),
            At::Queued(ticket) if last.head == ticket || self.without == Without::Turns => (At::Owner, Shows::Nothing),
            At::Queued(ticket) => (At::Polled(Some(ticket)), Shows::Awake),
            At::GoesToSleep(ticket) if last.head == ticket && self.without != Without::SecondLook => {
                (At::Queued(ticket), Shows::Awake)
            }
            At::GoesToSleep(ticket) => (At::Sleeps(ticket), cpu.shows),
            At::Sleeps(_) if !cpu.kicked => return None,
            At::Sleeps(ticket) => {
                state.cpus[number].kicked = false;
                (At::Queued(ticket), Shows::Awake)
            }
            At::Owner => {
                state.cpus[number].turns -= 1;
                state.head = (last.head + 1) % TICKETS;
                if self.without == Without::Wrapping && state.head == 0 {
                    state.tail = (last.tail + 1) % TICKETS;
                }
                let at = match (last.tail + TICKETS - last.head) % TICKETS {
                    1 if last.outsiders > 0 => At::SeeksOutsider(0, None),
                    1 => At::Away,
                    _ => At::SeeksTicket(state.head),
                };
                (at, cpu.shows)
            }
            At::SeeksTicket(ticket) => {
                let sleeper = (0..CPUS).find(|other| last.cpus[*other].shows == Shows::Asleep(ticket));
                let kicks = sleeper.filter(|_| self.without != Without::KickInQueue);
                (kicks.map_or(At::Away, At::Kicks), cpu.shows)
            }
            At::SeeksOutsider(CPUS, found) => (found.map_or(At::Away, At::Chose), cpu.shows),
            At::SeeksOutsider(other, found) => {
                let at = match last.cpus[other].shows {
                    Shows::KickedOutside => At::Away,
                    Shows::AsleepOutside => At::SeeksOutsider(other + 1, found.or(Some(other))),
                    _ => At::SeeksOutsider(other + 1, found),
                };
                (at, cpu.shows)
            }
            At::Chose(other) if last.cpus[other].shows == Shows::AsleepOutside => {
                state.cpus[other].shows = Shows::KickedOutside;
                (if self.without == Without::KickOutside { At::Away } else { At::Kicks(other) }, cpu.shows)
            }
            At::Chose(_) => (At::Away, cpu.shows),
            At::Kicks(other) => {
                state.cpus[other].kicked = true;
                (At::Away, cpu.shows)
            }
        };
        let cpu = &mut state.cpus[number];
        (cpu.at, cpu.shows) = (at, shows);
        Some(state)
    }
}

impl Model for Lock {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let cpu = Cpu { at: At::Away, shows: Shows::Nothing, kicked: false, rounds: 0, turns: TURNS };
        vec![State { head: 0, tail: 0, outsiders: 0, cpus: [cpu; CPUS] }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Step>) {
        actions.extend((0..CPUS).flat_map(|number| [Step::Run(number), Step::Forget(number)]));
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        match step {
            Step::Run(number) => self.run(last, number),
            Step::Forget(number) => {
                let cpu = &last.cpus[number];
                let is_deaf =
                    matches!(cpu.at, At::GoesToSleepOutside | At::SleepsOutside | At::GoesToSleep(_) | At::Sleeps(_));
                (cpu.kicked && !is_deaf).then(|| {
                    let mut state = last.clone();
                    state.cpus[number].kicked = false;
                    state
                })
            }
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(EXCLUDES, |_, state: &State| {
                state.cpus.iter().filter(|cpu| cpu.at == At::Owner).count() <= 1
            }),
            Property::always(STUCK, |model, state: &State| {
                let has_ended = state.cpus.iter().all(|cpu| cpu.at == At::Away && cpu.turns == 0);
                has_ended || (0..CPUS).any(|number| model.run(state, number).is_some())
            }),
            Property::sometimes("a sleeper in the queue is kicked", |_, state: &State| {
                state.cpus.iter().any(|cpu| cpu.kicked && matches!(cpu.at, At::Sleeps(_)))
            }),
            Property::sometimes("a ticket is served at once", |model: &Self, state: &State| {
                let has_ticket = |next: State, number: usize| matches!(next.cpus[number].at, At::Queues(_));
                let takes = |number| model.run(state, number).is_some_and(|next| has_ticket(next, number));
                !state.is_locked() && (0..CPUS).any(takes)
            }),
        ]
    }
}

const EXCLUDES: &str = "one CPU owns the lock";
const STUCK: &str = "nobody waits for ever";

fn lock(rounds: u8, without: Without) -> Lock {
    Lock { without, rounds }
}

#[test]
fn waiters_in_the_queue_have_their_turn() {
    holds(lock(0, Without::Nothing));
}

#[test]
fn waiters_outside_the_queue_have_their_turn() {
    holds(lock(1, Without::Nothing));
}

#[test]
fn each_rule_is_needed() {
    let [queued, outside] = [0, 1].map(|rounds| move |without| lock(rounds, without));
    for without in [Without::SecondLook, Without::KickInQueue, Without::Wrapping] {
        breaks(queued, without, STUCK);
    }
    for without in [Without::KickOutside, Without::Counting, Without::CountedLook] {
        breaks(outside, without, STUCK);
    }
    breaks(queued, Without::Turns, EXCLUDES);
}
