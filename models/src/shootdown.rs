//! Flushes against CPUs that come and go, stay lazily, and flush themselves (R20, R23 to R28, R31): change an entry, raise the
//! generation, read the mask, tell those in it, wait for them; against enter the mask, read the generation, load.
//!
//! Two CPUs flush one entry each, a third comes and goes. Page 0's flush frees its table too. Two kinds of hardware: tagged
//! TLBs, which keep what they have of an address space that is not loaded; and top tables that CPUs copy when they load them.
//! There `cached` is a copy of what was in an entry before its change: the entry of page 0 is taken out, and `page_table_lock`
//! is free again before the flush, which the gather does later; that of page 1 is filled, and the lock held until all who run on
//! the table know it. Nothing is put where page 0 was before its flush is over: its region has gone.

mod steps;

use crate::check::{breaks, holds};
use stateright::{Model, Property};

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// R20: the flush comes before anything is freed.
    FlushFirst,
    /// R23: a CPU enters the mask before it reads the generation.
    JoinFirst,
    /// R23: a flusher raises the generation before it reads the mask.
    RaiseFirst,
    /// I29: a CPU leaves the mask when it has loaded something else.
    LeaveLast,
    /// R24: single pages are dropped only by a CPU that has missed no flush.
    EveryFlush,
    /// I31: the generation that is noted was read before anything was dropped.
    ReadFirst,
    /// R25: lazy CPUs are told of tables that go.
    LazyToo,
    /// R26: a CPU that was lazy looks whether it has missed a flush.
    CatchUp,
    /// I29: a flusher waits for answers.
    Answers,
    /// R28: a flusher that waits serves others.
    Serving,
    /// R27: a CPU that waits for a lock serves others.
    Hearing,
    /// R31: to drop a page does not load a top table.
    Reload,
    /// R31: the lock of an entry that is filled is held until everyone knows the entry.
    UnlockLast,
}

/// What a flush is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hardware {
    /// Translations that are cached when a CPU likes, and kept under an ASID.
    Tagged,
    /// Entries of the top table, copied by each load of it; they are changed under one lock.
    Latched,
}

struct Shootdown {
    without: Without,
    hardware: Hardware,
}

/// Where a CPU is in what it does. Flushers go from `Start` to `Done`, the third CPU is mostly at `Rest`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Start,
    Locked,
    Changed,
    Raised,
    /// Has read the mask.
    Mask(u8),
    Told,
    /// Interrupts are off, the generation is read.
    Own(u8),
    Waiting,
    Done,
    Rest,
    // Interrupts are off here.
    Joining,
    /// The generation is read.
    Joined(u8),
    Leaving,
    Returning,
    Returned(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Cpu {
    at: At,
    /// Whether it has the address space loaded, rather than the kernel's own.
    loaded: bool,
    is_lazy: bool,
    /// How new it believes its translations are.
    tlb_gen: u8,
    /// What it has cached of the pages, a bit each.
    cached: u8,
    /// Who wants it to flush, a bit each.
    pending: u8,
    /// Who has not answered it.
    unanswered: u8,
    /// Whom it serves, with interrupts off, and the generation it has read.
    serving: Option<(usize, u8)>,
    /// Changes of address space it still makes.
    moves: u8,
}

const CPUS: usize = 3;
const FLUSHERS: usize = 2;
/// The page whose entry is filled, where entries are copied.
const FILLED: usize = 1;
const COMER: usize = 2;
const MOVES: u8 = 3;
const BOTH: u8 = 0b11;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    /// Entries that are as they were.
    unchanged: u8,
    /// The generation that each entry's flush has raised, 0 before it has.
    raised: [u8; FLUSHERS],
    /// Entries whose flush has returned.
    over: u8,
    tlb_gen: u8,
    mask: u8,
    locked: bool,
    cpus: [Cpu; CPUS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    /// A CPU goes on with what it does.
    Run(usize),
    /// The third CPU begins to join or to come back; to leave; to be lazy.
    Enter,
    Leave,
    Idle,
    /// A CPU takes the interrupt, or polls for it.
    Serve(usize),
    /// A CPU's walker caches a page, wanted or not.
    Walk(usize, usize),
}

impl Cpu {
    /// Whether its thread goes by what it has loaded. On its way back from laziness it has interrupts off until it has caught up.
    fn uses(&self) -> bool {
        self.loaded && !self.is_lazy && !matches!(self.at, At::Returning | At::Returned(_))
    }
}

impl Model for Shootdown {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let flusher = Cpu {
            at: At::Start,
            loaded: true,
            is_lazy: false,
            tlb_gen: 1,
            cached: BOTH,
            pending: 0,
            unanswered: 0,
            serving: None,
            moves: 0,
        };
        let comer = Cpu { at: At::Rest, moves: MOVES, ..flusher };
        let away = Cpu { loaded: false, ..comer };
        let state = |comer: Cpu, mask| State {
            unchanged: BOTH,
            raised: [0; FLUSHERS],
            over: 0,
            tlb_gen: 1,
            mask,
            locked: false,
            cpus: [flusher, flusher, comer],
        };
        vec![state(comer, 0b111), state(away, 0b011)]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Step>) {
        actions.extend((0..CPUS).flat_map(|number| [Step::Run(number), Step::Serve(number)]));
        actions.extend([Step::Enter, Step::Leave, Step::Idle]);
        actions.extend((0..CPUS).flat_map(|number| (0..FLUSHERS).map(move |page| Step::Walk(number, page))));
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        match step {
            Step::Run(number) => self.run(last, number),
            Step::Serve(number) => self.serve(last, number),
            Step::Enter | Step::Leave | Step::Idle => self.begin(last, step),
            Step::Walk(number, page) => {
                let found = last.unchanged & !last.cpus[number].cached & 1 << page;
                let walks = last.cpus[number].loaded && found != 0 && self.hardware == Hardware::Tagged;
                walks.then(|| {
                    let mut state = last.clone();
                    state.cpus[number].cached |= found;
                    state
                })
            }
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(STALE, |_, state: &State| {
                state.cpus.iter().filter(|cpu| cpu.uses()).all(|cpu| cpu.cached & state.over == 0)
            }),
            Property::always(UNKNOWN, |model: &Self, state: &State| {
                let is_judged = model.hardware == Hardware::Latched && !state.locked;
                let filled = if is_judged { !state.unchanged & 1 << FILLED } else { 0 };
                state.cpus.iter().filter(|cpu| cpu.uses()).all(|cpu| cpu.cached & filled == 0)
            }),
            Property::always(FREED, |_, state: &State| {
                let walks = |cpu: &&Cpu| cpu.loaded;
                state.cpus.iter().filter(walks).all(|cpu| cpu.cached & state.over & 1 == 0)
            }),
            Property::always(BEHIND, |_, state: &State| {
                let flushed = |cpu: &Cpu, page: usize| state.raised[page] != 0 && state.raised[page] <= cpu.tlb_gen;
                let is_old = |cpu: &Cpu, page: usize| flushed(cpu, page) && cpu.cached >> page & 1 != 0;
                state.cpus.iter().all(|cpu| (0..FLUSHERS).all(|page| !is_old(cpu, page)))
            }),
            Property::always(STUCK, |model, state: &State| {
                let has_ended = state.cpus[..FLUSHERS].iter().all(|cpu| cpu.at == At::Done);
                let mut steps = Vec::new();
                model.actions(state, &mut steps);
                steps.retain(|step| !matches!(step, Step::Walk(..)));
                has_ended || steps.into_iter().any(|step| model.next_state(state, step).is_some())
            }),
            Property::sometimes("a lazy CPU is not told", |_, state: &State| {
                state.cpus.iter().any(|cpu| cpu.is_lazy && cpu.cached & state.over != 0)
            }),
            Property::sometimes("a CPU that has left is not told", |_, state: &State| {
                state.cpus.iter().any(|cpu| !cpu.loaded && cpu.cached & state.over == BOTH)
            }),
            Property::sometimes("two flushers tell each other", |_, state: &State| {
                state.cpus[0].unanswered & 2 != 0 && state.cpus[1].unanswered & 1 != 0
            }),
            Property::sometimes("an entry is filled between another's change and its flush", |_, state: &State| {
                state.cpus[0].at == At::Changed && state.cpus[FILLED].at == At::Locked
            }),
        ]
    }
}

const STALE: &str = "nobody goes by what was there before a flush that has returned";
const UNKNOWN: &str = "an entry that was filled is known wherever it is used before its lock is free";
const FREED: &str = "no walker has a way into a table that was freed";
const BEHIND: &str = "nothing is cached that is older than its CPU believes";
const STUCK: &str = "nobody waits for ever";

fn tagged(without: Without) -> Shootdown {
    Shootdown { without, hardware: Hardware::Tagged }
}

fn latched(without: Without) -> Shootdown {
    Shootdown { without, hardware: Hardware::Latched }
}

#[test]
fn flushes_reach_whoever_has_something_to_forget() {
    holds(tagged(Without::Nothing));
}

/// R20, R23, R24, R26, I29, I31.
#[test]
fn each_rule_of_a_flush_is_needed() {
    for without in [
        Without::FlushFirst,
        Without::JoinFirst,
        Without::RaiseFirst,
        Without::LeaveLast,
        Without::EveryFlush,
        Without::CatchUp,
        Without::Answers,
    ] {
        breaks(tagged, without, STALE);
    }
    breaks(tagged, Without::ReadFirst, BEHIND);
    breaks(tagged, Without::LazyToo, FREED);
    breaks(tagged, Without::Serving, STUCK);
}

/// R31, I38: one entry of a top table is filled, another taken out, whose flush comes at any time after it.
#[test]
fn copies_of_a_top_table_are_made_anew() {
    holds(latched(Without::Nothing));
}

/// R27, R31.
#[test]
fn each_rule_for_copies_is_needed() {
    for without in [Without::Reload, Without::CatchUp] {
        breaks(latched, without, STALE);
    }
    breaks(latched, Without::LazyToo, FREED);
    breaks(latched, Without::UnlockLast, UNKNOWN);
    breaks(latched, Without::Hearing, STUCK);
}
