//! What each CPU does next.

use super::{At, COMER, CPUS, Cpu, FILLED, Hardware, Shootdown, State, Step, Without};

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

    pub(super) fn serve(&self, last: &State, number: usize) -> Option<State> {
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

    pub(super) fn run(&self, last: &State, number: usize) -> Option<State> {
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
            At::Start if last.locked => return None,
            At::Start => {
                state.locked = self.hardware == Hardware::Latched;
                At::Locked
            }
            At::Locked => {
                state.unchanged &= !(1 << page);
                // Who takes an entry out lets go of the lock, who fills one flushes first.
                state.locked &= page == FILLED && self.without != Without::UnlockLast;
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
                state.locked &= page != FILLED;
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
    pub(super) fn begin(&self, last: &State, step: Step) -> Option<State> {
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
