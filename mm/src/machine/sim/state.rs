//! The whole of a simulated machine, and its verdict: alive, or failed and why.

use super::config::SimConfig;
use super::cpu::{SimCpu, dawdle};
use super::host::{self, Instant, lock};
use super::memory::PhysicalMemory;
use super::violation::{Cached, SimViolation};
use super::walk::{self, WalkError};
use crate::address::{Pfn, VirtAddr};
use crate::config::PAGE_SIZE;
use crate::cpu::{CpuId, Cpus};
use crate::machine::FrameUse;
use crate::page::{MemMap, Page};
use crate::pgtable::PagingMode;
use crate::sync::BuildLock;
use std::fmt::Write;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a CPU unwinds with when the machine has failed elsewhere.
pub(super) struct Stopped;

pub(super) struct State<Mode: PagingMode> {
    pub(super) config: SimConfig,
    pub(super) locals: Cpus,
    pub(super) cpus: Box<[SimCpu<Mode>]>,
    pub(super) memory: PhysicalMemory<Mode::Slot>,
    pub(super) memmap: MemMap<BuildLock>,
    epoch: Instant,
    /// Nanoseconds since the epoch by the host's clock; 0 while nothing runs.
    deadline: AtomicU64,
    failed: AtomicBool,
    /// Why, until someone has told it.
    verdict: Mutex<Option<String>>,
    violations: Mutex<Vec<SimViolation>>,
}

impl<Mode: PagingMode> State<Mode> {
    pub(super) fn new(config: SimConfig) -> Self {
        let pages = (0..config.frames).map(|_| Page::new()).collect::<Vec<_>>().leak();
        Self {
            config,
            locals: Cpus::new(),
            cpus: (0..config.cpus as u32).map(|cpu| SimCpu::new(CpuId(cpu), config.seed)).collect(),
            memory: PhysicalMemory::new(config.first_frame, config.frames),
            memmap: MemMap::new(config.first_frame, pages),
            epoch: Instant::now(),
            deadline: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            verdict: Mutex::new(None),
            violations: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn cpu(&self, cpu: CpuId) -> &SimCpu<Mode> {
        match self.cpus.get(cpu.index()) {
            Some(cpu) => cpu,
            None => panic!("simulated machine: there is no {cpu:?}"),
        }
    }

    /// By the machine's clock.
    pub(super) fn now(&self) -> u64 {
        self.elapsed() * self.config.clock_rate
    }

    /// Nanoseconds since the epoch, by the host's clock.
    fn elapsed(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    // Verdict

    /// Starts the clock of a run, if it is not running for an outer one, until the returned value is dropped.
    pub(super) fn limit_time(&'static self) -> TimeLimit {
        let deadline = self.elapsed() + self.config.time_limit.as_nanos() as u64;
        let was_set = self.deadline.compare_exchange(0, deadline, Ordering::Relaxed, Ordering::Relaxed).is_err();
        TimeLimit { deadline: (!was_set).then_some(&self.deadline) }
    }

    /// Whether the machine has neither failed nor run out of time.
    pub(super) fn is_alive(&self) -> bool {
        if self.failed.load(Ordering::Relaxed) {
            return false;
        }
        let deadline = self.deadline.load(Ordering::Relaxed);
        if deadline == 0 || self.elapsed() <= deadline {
            return true;
        }
        self.fail_with(|| format!("simulated machine: time limit passed\n{}", self.describe()));
        false
    }

    /// Unwinds if the machine has failed, telling why if nobody has told it yet.
    pub(super) fn check_alive(&self) {
        if !self.is_alive() && !std::thread::panicking() {
            match self.verdict() {
                Some(verdict) => panic!("{verdict}"),
                None => resume_unwind(Box::new(Stopped)),
            }
        }
    }

    /// Stops all CPUs; whoever calls this tells why.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    fn fail_with(&self, verdict: impl FnOnce() -> String) {
        let mut slot = lock(&self.verdict);
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        // Before the machine counts as failed: from then on its CPUs leave what they were doing, which is what is told.
        let verdict = verdict();
        if !self.failed.swap(true, Ordering::Relaxed) {
            *slot = Some(verdict);
        }
    }

    /// Why the machine failed, to one caller.
    pub(super) fn verdict(&self) -> Option<String> {
        lock(&self.verdict).take()
    }

    pub(super) fn report(&self, violation: SimViolation) {
        lock(&self.violations).push(violation);
        if self.config.stop_at_violation && !std::thread::panicking() {
            self.fail();
            panic!("{violation}");
        }
    }

    pub(super) fn take_violations(&self) -> Vec<SimViolation> {
        std::mem::take(&mut lock(&self.violations))
    }

    /// What every CPU is doing.
    pub(super) fn describe(&self) -> String {
        host::quietly(|| self.describe_all())
    }

    fn describe_all(&self) -> String {
        let mut text = String::new();
        for cpu in &self.cpus {
            let local = self.locals.of(cpu.id());
            let held: Vec<_> = local.held.iter().collect();
            let (waits, unanswered) = (local.parking.waiting_for(), local.tlb.unanswered());
            // Writing to a `String` cannot fail.
            let _ =
                writeln!(text, "{cpu}, holds {held:x?}, waits for {waits:x?}, flush not answered by {unanswered:x?}");
        }
        text
    }

    pub(super) fn anyone_runs(&self) -> bool {
        self.cpus.iter().any(SimCpu::is_running)
    }

    pub(super) fn ring_all(&self) {
        self.cpus.iter().for_each(SimCpu::ring);
    }

    // Memory

    /// Checks and records that a block of frames is used differently from now on.
    pub(super) fn note_block(&self, first: Pfn, order: u32, to: FrameUse) {
        let frames = first.0..first.0 + (1 << order);
        let used_before: Vec<_> = frames.clone().map(|frame| self.memory.frame_use(Pfn(frame))).collect();
        for (frame, from) in frames.clone().zip(&used_before) {
            self.check_change(Pfn(frame), *from, to);
        }
        if to == FrameUse::Free && used_before.iter().any(Option::is_some) {
            self.check_unmapped(&frames);
            frames.clone().for_each(|frame| self.memory.fill_with_garbage(Pfn(frame)));
        }
        frames.for_each(|frame| self.memory.set_use(Pfn(frame), to));
    }

    fn check_change(&self, pfn: Pfn, from: Option<FrameUse>, to: FrameUse) {
        let is_expected = matches!(
            (from, to),
            (None | Some(FrameUse::Table | FrameUse::Data), FrameUse::Free)
                | (Some(FrameUse::Free | FrameUse::Table), FrameUse::Data)
                | (Some(FrameUse::Data), FrameUse::Table)
        );
        if !is_expected {
            self.report(SimViolation::WrongTransition { pfn, from, to });
        }
        self.memory.end_life(pfn);
        if self.memory.is_named(pfn) {
            for cpu in &self.cpus {
                let uses_translations = self.uses_translations(cpu);
                let cached: Option<Cached> = cpu.mmu().knows(pfn);
                if let Some(cached) = cached
                    && (uses_translations || !matches!(cached, Cached::Translation(_)))
                {
                    self.report(SimViolation::RetiredWhileCached { pfn, becomes: to, cpu: cpu.id(), cached });
                }
            }
        }
    }

    /// Whether a translation that `cpu` has cached could be used. A lazy CPU's are not, and one that stops being lazy does
    /// so with interrupts off, and looks for what it has missed before they come on; if it does not, the next use tells.
    pub(super) fn uses_translations(&self, cpu: &SimCpu<Mode>) -> bool {
        !self.is_lazy(cpu) && cpu.irqs()
    }

    /// Whether `cpu` has an address space loaded for nobody.
    pub(super) fn is_lazy(&self, cpu: &SimCpu<Mode>) -> bool {
        host::quietly(|| self.locals.of(cpu.id()).tlb.is_lazy())
    }

    /// Whether `pfn` is high memory.
    pub(super) fn is_high(&self, pfn: Pfn) -> bool {
        self.config.low_frames.is_some_and(|low| pfn.0 >= self.config.first_frame.0 + low as u64)
    }

    /// Whether walkers find a table in `pfn`.
    pub(super) fn walks(&self, pfn: Pfn) -> bool {
        self.config.table_frames.is_none_or(|tables| pfn.0 < self.config.first_frame.0 + tables as u64)
    }

    /// Complains if a table still has an entry for one of `frames`.
    fn check_unmapped(&self, frames: &Range<u64>) {
        let mut found = Vec::new();
        self.memory.for_each_table(|table, slots| {
            if frames.contains(&table.0) {
                return;
            }
            for (index, slot) in slots.iter().enumerate() {
                let entry = slot.hardware().load();
                let pfn = walk::hw::pfn(entry);
                if walk::hw::is_present(entry) && frames.contains(&pfn.0) {
                    found.push(SimViolation::FreedWhileMapped { pfn, table, index });
                }
            }
        });
        found.into_iter().for_each(|violation| self.report(violation));
    }

    /// Complains unless `pfn` is used as `expected`.
    pub(super) fn expect_use(&self, pfn: Pfn, expected: FrameUse) {
        if self.memory.frame_use(pfn) != Some(expected) {
            self.report(match expected {
                FrameUse::Table => SimViolation::NotATable { pfn },
                _ => SimViolation::NotData { pfn },
            });
        }
    }

    /// A CPU of `roll`'s choice: hardware acts on its own account whatever the CPU's code does, and if it runs none.
    pub(super) fn any_cpu(&self, roll: u64) -> &SimCpu<Mode> {
        &self.cpus[(roll % self.cpus.len() as u64) as usize]
    }

    /// Lets the others come between two steps of a walk. Not where a scheduler runs the CPUs: the walker holds its caches.
    pub(super) fn pause_walk(&self, cpu: &SimCpu<Mode>) {
        if !cfg!(shuttle) && cpu.chance(self.config.delay) {
            dawdle(cpu.roll());
        }
    }

    /// Has `cpu` drop something it has cached, or take up the top table's entries anew, as those do that read them from memory.
    pub(super) fn forget(&self, roll: u64, cpu: &SimCpu<Mode>) {
        let mut mmu = cpu.mmu();
        if roll.is_multiple_of(4) {
            mmu.latch(&self.memory);
        } else {
            mmu.evict(&self.memory, (roll >> 2) as usize);
        }
    }

    /// Has `cpu` walk an address as hardware does on its own account; the dice are `by`'s, which runs this. It may be one that
    /// it seems to want next, one near what it knows, or any that is mapped.
    pub(super) fn speculate(&self, by: &SimCpu<Mode>, cpu: &SimCpu<Mode>) {
        let roll = by.roll();
        let pause = || self.pause_walk(by);
        let from_top = roll >> 6 & 3 == 0;
        let mut whim = by.whim(&self.config, &pause);
        if from_top {
            whim.passed_over = usize::MAX;
        }
        let mut mmu = cpu.mmu();
        let known = match roll & 3 {
            0 => mmu.known_address(roll as usize >> 8),
            1 => mmu.top().and_then(|top| walk::mapped_address::<Mode>(&self.memory, top, by.roll())),
            _ => None,
        };
        let near = known.map_or(cpu.last_address(), |address| address.0);
        let offset = (roll >> 2 & 7) * PAGE_SIZE as u64;
        let address = if roll & 32 == 0 { near.saturating_add(offset) } else { near.saturating_sub(offset) };
        let walk = if from_top || roll >> 5 & 1 == 0 { walk::walk } else { walk::translate };
        let outcome = walk(&self.memory, &mut mmu, VirtAddr(address), false, &whim);
        drop(mmu);
        let (cpu, address) = (cpu.id(), VirtAddr(address));
        match outcome {
            Err(WalkError::NotATable(pfn)) => {
                self.report(SimViolation::WalkThroughNonTable { cpu, address, pfn });
            }
            Err(WalkError::MixedSizes(cached, found)) => {
                self.report(SimViolation::MixedSizes { cpu, address, cached, found });
            }
            Ok(_) | Err(WalkError::PageFault) => {}
        }
    }
}

/// The running clock of a run.
pub(super) struct TimeLimit {
    deadline: Option<&'static AtomicU64>,
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        if let Some(deadline) = self.deadline {
            deadline.store(0, Ordering::Relaxed);
        }
    }
}
