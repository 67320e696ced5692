//! Flushes against CPUs that come and go, stay lazily, and flush themselves (R20, R23 to R28, R31): change an entry, raise the
//! generation, read the mask, tell those in it, wait for them; against enter the mask, read the generation, load.
//!
//! Two CPUs flush one entry each, a third comes and goes. Page 0's flush frees its table too. Two kinds of hardware: tagged
//! TLBs, which keep what they have of an address space that is not loaded; and top tables that CPUs copy when they load them.
//! There `cached` is a copy of what was in an entry before it was filled or taken out.

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
}

/// What a flush is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hardware {
    /// Translations that are cached when a CPU likes, and kept under an ASID.
    Tagged,
    /// Entries of the top table, copied by each load of it.
    Latched,
}

struct Shootdown {
    without: Without,
    hardware: Hardware,
    /// Both flushers take one page-table lock, and flush under it.
    one_lock: bool,
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

impl Shootdown {
    /// Whether `cpu` takes interrupts.
    fn hears(&self, cpu: &Cpu) -> bool {
        match cpu.at {
            At::Start => self.without != Without::Hearing,
            At::Waiting => self.without != Without::Serving,
            At::Locked | At::Changed | At::Raised | At::Mask(_) | At::Told | At::Done | At::Rest => true,
            At::Own(_) | At::Joining | At::Joined(_) | At::Leaving | At::Returning | At::Returned(_) => false,
        }
    }

    /// What `cpu` has after it has dropped everything.
    fn dropped(&self, state: &State) -> u8 {
        if self.hardware == Hardware::Latched { state.unchanged } else { 0 }
    }

    /// Does on `cpu`, which has the address space loaded and is not lazy, what the flusher of `page` asks. It has read `mm_gen`.
    fn apply(&self, state: &mut State, number: usize, page: usize, mm_gen: u8) {
        let (request, everything) = (state.raised[page], self.dropped(state));
        let latest = state.tlb_gen;
        let cpu = &mut state.cpus[number];
        if cpu.tlb_gen >= request {
            return;
        }
        let is_next = request == cpu.tlb_gen + 1 && request == mm_gen || self.without == Without::EveryFlush;
        let single = self.hardware == Hardware::Tagged || self.without == Without::Reload;
        match (single && is_next, self.hardware) {
            (true, Hardware::Tagged) => cpu.cached &= !(1 << page),
            (true, Hardware::Latched) => {}
            (false, _) => cpu.cached = everything,
        }
        cpu.tlb_gen = if self.without == Without::ReadFirst { latest } else { mm_gen };
    }

    /// `cpu` loads the kernel's table in place of the address space.
    fn unload(state: &mut State, number: usize) {
        let cpu = &mut state.cpus[number];
        (cpu.loaded, cpu.is_lazy) = (false, false);
    }

    fn serve(&self, last: &State, number: usize) -> Option<State> {
        let mut state = last.clone();
        let cpu = &last.cpus[number];
        let Some((initiator, mm_gen)) = cpu.serving else {
            let initiator = (0..CPUS).find(|other| cpu.pending >> other & 1 != 0)?;
            if !self.hears(cpu) {
                return None;
            }
            state.cpus[number].pending &= !(1 << initiator);
            state.cpus[number].serving = Some((initiator, last.tlb_gen));
            return Some(state);
        };
        if cpu.is_lazy {
            Self::unload(&mut state, number);
            state.mask &= !(1 << number);
        } else if cpu.loaded {
            self.apply(&mut state, number, initiator, mm_gen);
        }
        state.cpus[number].serving = None;
        state.cpus[initiator].unanswered &= !(1 << number);
        Some(state)
    }

    fn run(&self, last: &State, number: usize) -> Option<State> {
        let mut state = last.clone();
        let cpu = last.cpus[number];
        if cpu.serving.is_some() {
            return None;
        }
        // A flusher's page has its number.
        let page = number;
        let raise = |state: &mut State| {
            state.tlb_gen += 1;
            state.raised[page] = state.tlb_gen;
        };
        let at = match cpu.at {
            At::Start if self.one_lock && last.locked => return None,
            At::Start => {
                state.locked = self.one_lock;
                At::Locked
            }
            At::Locked => {
                state.unchanged &= !(1 << page);
                if self.without == Without::FlushFirst {
                    state.over |= 1 << page;
                }
                At::Changed
            }
            At::Changed if self.without == Without::RaiseFirst => At::Mask(last.mask),
            At::Changed => {
                raise(&mut state);
                At::Raised
            }
            At::Raised => At::Mask(last.mask),
            At::Mask(mask) => {
                if self.without == Without::RaiseFirst {
                    raise(&mut state);
                }
                let lazy_too = page == 0 && self.without != Without::LazyToo;
                let is_told = |other: &usize| *other != number && mask >> other & 1 != 0;
                for other in (0..CPUS).filter(is_told).filter(|other| lazy_too || !last.cpus[*other].is_lazy) {
                    state.cpus[other].pending |= 1 << number;
                    state.cpus[number].unanswered |= 1 << other;
                }
                At::Told
            }
            At::Told => At::Own(last.tlb_gen),
            At::Own(mm_gen) => {
                self.apply(&mut state, number, page, mm_gen);
                At::Waiting
            }
            At::Waiting if cpu.unanswered != 0 && self.without != Without::Answers => return None,
            At::Waiting => {
                state.over |= 1 << page;
                state.locked = false;
                At::Done
            }
            At::Joining => At::Joined(last.tlb_gen),
            At::Joined(mm_gen) => {
                // It has been in it since it began.
                state.mask |= 1 << number;
                self.load(&mut state, number, mm_gen);
                At::Rest
            }
            At::Leaving => {
                if self.without == Without::LeaveLast {
                    Self::unload(&mut state, number);
                } else {
                    state.mask &= !(1 << number);
                }
                At::Rest
            }
            At::Returning if self.without == Without::CatchUp => At::Rest,
            At::Returning => At::Returned(last.tlb_gen),
            At::Returned(mm_gen) => {
                if cpu.tlb_gen != mm_gen {
                    state.cpus[number].cached = self.dropped(last);
                    state.cpus[number].tlb_gen = mm_gen;
                }
                At::Rest
            }
            At::Done | At::Rest => return None,
        };
        state.cpus[number].at = at;
        Some(state)
    }

    /// `cpu` loads the address space, with what it has kept of it if that is as new as `mm_gen`.
    fn load(&self, state: &mut State, number: usize, mm_gen: u8) {
        let everything = self.dropped(state);
        let cpu = &mut state.cpus[number];
        if self.hardware == Hardware::Latched || cpu.tlb_gen != mm_gen {
            cpu.cached = everything;
        }
        cpu.tlb_gen = mm_gen;
        cpu.loaded = true;
    }

    /// The third CPU begins `step`.
    fn begin(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let cpu = last.cpus[COMER];
        if cpu.at != At::Rest || cpu.serving.is_some() || cpu.moves == 0 {
            return None;
        }
        let at = match step {
            Step::Enter if !cpu.loaded && self.without == Without::JoinFirst => At::Joined(last.tlb_gen),
            Step::Enter if !cpu.loaded => {
                state.mask |= 1 << COMER;
                At::Joining
            }
            Step::Enter if cpu.is_lazy => {
                state.cpus[COMER].is_lazy = false;
                At::Returning
            }
            Step::Leave if cpu.loaded => {
                if self.without == Without::LeaveLast {
                    state.mask &= !(1 << COMER);
                } else {
                    Self::unload(&mut state, COMER);
                }
                At::Leaving
            }
            Step::Idle if cpu.loaded && !cpu.is_lazy => {
                state.cpus[COMER].is_lazy = true;
                At::Rest
            }
            _ => return None,
        };
        state.cpus[COMER].at = at;
        state.cpus[COMER].moves -= 1;
        Some(state)
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
                // One that comes back from laziness has interrupts off until it has caught up.
                let uses =
                    |cpu: &&Cpu| cpu.loaded && !cpu.is_lazy && !matches!(cpu.at, At::Returning | At::Returned(_));
                state.cpus.iter().filter(uses).all(|cpu| cpu.cached & state.over == 0)
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
            Property::sometimes("two flushers tell each other", |model: &Self, state: &State| {
                model.one_lock || state.cpus[0].unanswered & 2 != 0 && state.cpus[1].unanswered & 1 != 0
            }),
        ]
    }
}

const STALE: &str = "nobody goes by what was there before a flush that has returned";
const FREED: &str = "no walker has a way into a table that was freed";
const BEHIND: &str = "nothing is cached that is older than its CPU believes";
const STUCK: &str = "nobody waits for ever";

fn tagged(without: Without) -> Shootdown {
    Shootdown { without, hardware: Hardware::Tagged, one_lock: false }
}

fn latched(without: Without) -> Shootdown {
    Shootdown { hardware: Hardware::Latched, one_lock: true, ..tagged(without) }
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
        breaks(tagged(without), STALE);
    }
    breaks(tagged(Without::ReadFirst), BEHIND);
    breaks(tagged(Without::LazyToo), FREED);
    breaks(tagged(Without::Serving), STUCK);
}

/// R31: entries of a top table are filled or taken out, under `page_table_lock`.
#[test]
fn copies_of_a_top_table_are_made_anew() {
    holds(latched(Without::Nothing));
}

/// R27, R31.
#[test]
fn each_rule_for_copies_is_needed() {
    for without in [Without::Reload, Without::CatchUp] {
        breaks(latched(without), STALE);
    }
    breaks(latched(Without::LazyToo), FREED);
    breaks(latched(Without::Hearing), STUCK);
}
