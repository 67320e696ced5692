//! The simulated machine: `mm`'s host tests run on it.
//!
//! It has physical memory, and CPUs with TLBs and paging-structure caches that keep entries for as long as the architecture
//! allows; its walkers set A and D bits, its CPUs take interrupts wherever theirs are on, and each is a host thread, so
//! races are real. What hardware would carry out in silence (use of a stale translation, of a freed table, of a freed
//! frame) is caught here and named: see [`SimViolation`].
//!
//! # What the architecture leaves to the hardware
//!
//! Taken at random, from one seed:
//! - any CPU's walker, whether a thread runs the CPU or not, walks at any moment: an address near the last one used, near one it
//!   knows, or any that is mapped; for a load, so it sets A and never D. It begins at any table it has cached or at the top, and
//!   others come between two of its steps;
//! - what is cached of a table or a page is kept, used and forgotten in any mixture, upper entries also where nothing is mapped
//!   below them; a large leaf is cached whole or in small pieces, which one INVLPG drops;
//! - a translation that allows less than its entry is used, and faults;
//! - a store sets D and is done again from the start;
//! - an interrupt is late, and two that meet are one;
//! - the latched entries of a top table are read again.
//!
//! Not taken:
//! - the order of memory: host atomics decide, and they are strong on x86. The `loom` models have it;
//! - two translations of one page and size, an old and a new, side by side: the older is used until it is dropped;
//! - dropping more than an instruction asks for, as a rule: it only hides missing flushes. Evictions, seldom, are that;
//! - global translations and those of the kernel half: `mm` maps neither;
//! - execution: rights to it are compared by [`assert_coherent`](Sim::assert_coherent), but nothing is fetched;
//! - INVLPG that drops upper entries of its own address only (AMD's TCE), which a kernel has to turn on.
//!
//! A test makes a [`SimMachine`], hands its handle to `mm`, and runs closures as CPUs: [`Sim::run_cpu`] one on its own
//! thread, [`Sim::run`] several at once. Code "in ring 3" is [`Sim::user`], whose faults go to a handler of the test's.

#![allow(unsafe_code)]

mod config;
mod cpu;
mod current;
mod host;
mod mappings;
mod memory;
mod mmu;
mod run;
mod slot;
mod state;
#[cfg(test)]
mod tests;
mod user;
mod violation;
mod walk;

#[cfg(test)]
pub(crate) use config::ABOVE_4_GIB;
pub use config::SimConfig;
pub use run::Body;
pub use slot::{SimMode, SimSlot};
pub use user::User;
pub use violation::{Cached, SimViolation};

use super::{FrameUse, LocalFlush, Machine, PgdLoad, WaitingRule};
use crate::address::{Pfn, PhysAddr, VirtAddr, VirtRange};
use crate::cpu::{CpuId, CpuSet, Cpus};
use crate::page::MemMap;
use crate::pgtable::{Entry, HugeSize, Level, PagingMode, pgd_layout};
use crate::sync::BuildLock;
use cpu::{FLUSH, KICK, SimCpu};
use current::Passage;
use state::{State, Stopped};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// A simulated machine, and the verdict on what was done with it: dropping it panics if violations were collected and
/// nobody has taken them.
///
/// The machine's memory is never freed: its handle is `Copy` and `'static`, as [`Machine`] asks, so nothing can tell when
/// the last one is gone.
pub struct SimMachine<Mode: PagingMode> {
    handle: Sim<Mode>,
}

impl<Mode: PagingMode> SimMachine<Mode> {
    /// A machine with nothing in memory and all CPUs idle.
    pub fn new(config: SimConfig) -> Self {
        assert!((1..=crate::config::NR_CPUS).contains(&config.cpus), "a machine has 1 to NR_CPUS CPUs");
        Self { handle: Sim { state: Box::leak(Box::new(State::new(config))) } }
    }

    /// The machine as `mm` sees it.
    pub fn handle(&self) -> Sim<Mode> {
        self.handle
    }

    /// What was caught so far; it is then up to the caller. Only with
    /// [`stop_at_violation`](SimConfig::stop_at_violation) off is there more than one.
    pub fn take_violations(&self) -> Vec<SimViolation> {
        self.handle.state.take_violations()
    }
}

impl<Mode: PagingMode> Deref for SimMachine<Mode> {
    type Target = Sim<Mode>;

    fn deref(&self) -> &Sim<Mode> {
        &self.handle
    }
}

impl<Mode: PagingMode> Drop for SimMachine<Mode> {
    fn drop(&mut self) {
        let violations = self.take_violations();
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "simulated machine: {violations:#?}");
            #[cfg(shuttle)]
            self.handle.state.memory.hand_on();
        }
    }
}

/// The handle of a simulated machine.
pub struct Sim<Mode: PagingMode> {
    state: &'static State<Mode>,
}

impl<Mode: PagingMode> Clone for Sim<Mode> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Mode: PagingMode> Copy for Sim<Mode> {}

impl<Mode: PagingMode> Sim<Mode> {
    /// The descriptors of all memory.
    pub fn memmap(self) -> MemMap<BuildLock> {
        self.state.memmap
    }

    /// Complains if a CPU that has `top` loaded, and not lazily, can still translate an address of `range` (I29).
    pub fn assert_no_translation(self, top: impl Into<PhysAddr>, range: VirtRange) {
        let top = top.into();
        for cpu in &self.state.cpus {
            let is_lazy = self.state.is_lazy(cpu);
            let mmu = cpu.mmu();
            let in_use = mmu.top() == Some(top) && !is_lazy;
            let left: Vec<_> = mmu.translations_in(range).filter(|_| in_use).collect();
            drop(mmu);
            for (address, _, entry) in left {
                let pfn = walk::hw::pfn(entry);
                self.state.report(SimViolation::TranslationLeft { cpu: cpu.id(), address, pfn });
            }
        }
    }

    /// Complains if a CPU's cached translation leads elsewhere, or allows more, than the tables say. Only when no change
    /// of any table is under way. What a lazy CPU has cached, or any CPU of an address space not loaded, may be old.
    pub fn assert_coherent(self) {
        for cpu in self.state.cpus.iter().filter(|cpu| !self.state.is_lazy(cpu)) {
            let mmu = cpu.mmu();
            let cached: Vec<_> = mmu.translations().collect();
            let stale = mmu.latched_stale(&self.state.memory);
            let Some(top) = mmu.top() else { continue };
            drop(mmu);
            if let Some(index) = stale {
                self.state.report(SimViolation::LatchedStale { cpu: cpu.id(), index });
            }
            for (address, level, entry) in cached {
                let current = walk::peek::<Mode>(&self.state.memory, top, address);
                let pfn = mmu::frame_of::<Mode>(level, entry, address);
                let agrees = current.is_some_and(|(level, current)| {
                    mmu::frame_of::<Mode>(level, current, address) == pfn && !walk::hw::allows_more(entry, current)
                });
                if !agrees {
                    self.state.report(SimViolation::Incoherent { cpu: cpu.id(), address, pfn });
                }
            }
        }
    }

    /// The frame that the CPU this thread runs as has cached `address` to lead to.
    pub fn translation_of(self, address: VirtAddr) -> Option<Pfn> {
        let (level, leaf) = self.me().mmu().translation(address)?;
        Some(mmu::frame_of::<Mode>(level, leaf, address))
    }

    /// The entry the tables below `top` hold for `address` right now, as a walker sees it; `None` if not present.
    pub fn peek(self, top: impl Into<PhysAddr>, address: VirtAddr) -> Option<Entry> {
        walk::peek::<Mode>(&self.state.memory, top.into(), address).map(|(_, entry)| entry)
    }

    /// The contents of a frame, read past every CPU and cache.
    pub fn frame_words(self, pfn: Pfn) -> Vec<u64> {
        self.state.memory.slots_of(pfn).iter().map(|slot| slot.word().load(Ordering::Relaxed)).collect()
    }

    /// Changes a word of a frame, past every CPU and cache.
    pub fn set_frame_word(self, pfn: Pfn, index: usize, value: u64) {
        self.state.memory.slots_of(pfn)[index].word().store(value, Ordering::Relaxed);
    }

    /// Begins the random choices of all CPUs anew.
    pub fn reseed(self, seed: u64) {
        self.state.cpus.iter().for_each(|cpu| cpu.reseed(seed));
    }

    /// Interrupts `cpu` has taken so far. Some that were sent while others were pending are taken as one.
    pub fn interrupts_taken(self, cpu: CpuId) -> u64 {
        self.state.cpu(cpu).interrupts_taken()
    }

    /// The CPU this thread runs as.
    fn me(self) -> &'static SimCpu<Mode> {
        match current::cpu_of(self.state) {
            Some(cpu) => self.state.cpu(cpu),
            // The destructors of a test that failed. No CPU runs any more, so CPU 0 may lend its name.
            None if std::thread::panicking() => self.state.cpu(CpuId(0)),
            None => panic!("this thread runs as no CPU of the simulated machine; see `run` and `run_cpu`"),
        }
    }

    /// This CPU has mapped something that it has to end last in, first out.
    fn note_mapping(self, address: usize) {
        let cpu = self.me();
        if !cpu.mappings().begin(address) {
            self.state.report(SimViolation::TooManyMappings { cpu: cpu.id() });
        }
    }

    /// Runs `body` while this CPU has those of `frames` mapped that are high.
    fn with_mapped<const N: usize>(self, frames: [Pfn; N], body: impl FnOnce()) {
        let addresses = frames.map(|pfn| (self.is_high(pfn), self.state.memory.bytes(pfn).addr().get()));
        let high = || addresses.iter().filter(|(high, _)| *high).map(|(_, address)| *address);
        high().for_each(|address| self.note_mapping(address));
        body();
        high().rev().for_each(|address| {
            self.me().mappings().end(address);
        });
    }

    /// Complains if this CPU has just latched what a CPU refuses.
    fn check_latched(self) {
        let cpu = self.me();
        let refused = cpu.mmu().refused();
        if let Some(index) = refused {
            self.state.report(SimViolation::ReservedBits { cpu: cpu.id(), index });
        }
    }

    /// This CPU passes a point where anything may come between.
    fn passes(self) {
        self.state.passes(self.me().id());
    }
}

// SAFETY: a host thread runs as at most one CPU of a machine and a CPU is run by at most one thread (`enter`, `lend`); the
// destructors of a failed test run as CPU 0 when no thread runs it any more (`me`).
// `map_table` and `frame_bytes` give out the frame's own slots, which live as long as the process.
unsafe impl<Mode: PagingMode> Machine for Sim<Mode> {
    type Mode = SimMode<Mode>;
    type Lock = BuildLock;

    fn cpus(&self) -> &Cpus {
        &self.state.locals
    }

    fn cpu(self) -> CpuId {
        self.me().id()
    }

    fn online(self) -> CpuSet {
        CpuSet::first(self.state.cpus.len())
    }

    fn irqs_enabled(self) -> bool {
        self.me().irqs()
    }

    fn irq_save(self) -> bool {
        self.passes();
        self.me().set_irqs(false)
    }

    fn irq_restore(self, enabled: bool) {
        if enabled {
            self.me().set_irqs(true);
        }
        self.passes();
    }

    fn pause(self) {
        host::yield_now();
        self.passes();
    }

    fn halt_until_kicked(self) {
        self.halt();
    }

    fn kick(self, cpu: CpuId) {
        self.passes();
        self.interrupt(cpu, KICK);
    }

    fn waiting_rule(self) -> WaitingRule {
        self.state.config.waiting_rule
    }

    fn now(self) -> u64 {
        self.state.now()
    }

    fn block_while(self, key: usize, still: &mut dyn FnMut() -> bool) {
        self.passes();
        self.sleep(key, still);
    }

    fn wake(self, key: usize) {
        self.wake_sleepers(key);
        self.passes();
    }

    fn stuck(self, what: &'static str) -> ! {
        self.state.fail();
        let text = format!("simulated machine: stuck: {what}\n{}", self.state.describe());
        if std::thread::panicking() {
            eprintln!("{text}");
            std::process::abort();
        }
        panic!("{text}");
    }

    fn is_high(self, pfn: Pfn) -> bool {
        self.state.is_high(pfn)
    }

    fn walks(self, pfn: Pfn) -> bool {
        self.state.walks(pfn)
    }

    fn map_table(&self, pfn: Pfn, level: Level) -> &[SimSlot<Mode::Slot>] {
        self.passes();
        self.state.expect_use(pfn, FrameUse::Table);
        if !self.walks(pfn) {
            self.state.report(SimViolation::TableOutOfReach { pfn });
        }
        let slots = &self.state.memory.slots_of(pfn)[..Mode::entries(level)];
        // Any PTE table might have come from high memory.
        if level == Level::Pte || self.is_high(pfn) {
            self.note_mapping(slots.as_ptr().addr());
        }
        slots
    }

    fn map_small_top(&self, pgd: PhysAddr) -> &[SimSlot<Mode::Slot>] {
        self.passes();
        self.state.expect_use(pgd.pfn(), top_use::<Self>());
        let first = pgd.offset() / size_of::<SimSlot<Mode::Slot>>();
        &self.state.memory.slots_of(pgd.pfn())[first..first + Mode::entries(Mode::TOP)]
    }

    fn unmap_table(&self, table: &[SimSlot<Mode::Slot>]) {
        let cpu = self.me();
        if !cpu.mappings().end(table.as_ptr().addr()) {
            self.state.report(SimViolation::UnmappedOutOfOrder { cpu: cpu.id() });
        }
        self.passes();
    }

    fn mapped(self) -> usize {
        self.me().mappings().count()
    }

    fn zero_frame(self, pfn: Pfn) {
        self.passes();
        self.state.expect_use(pfn, FrameUse::Data);
        self.with_mapped([pfn], || self.state.memory.fill(pfn, 0));
    }

    fn copy_frame(self, from: Pfn, to: Pfn) {
        self.passes();
        self.state.expect_use(from, FrameUse::Data);
        self.state.expect_use(to, FrameUse::Data);
        self.with_mapped([from, to], || self.state.memory.copy(from, to));
    }

    fn frame_bytes(&self, pfn: Pfn) -> NonNull<u8> {
        if self.is_high(pfn) {
            self.state.report(SimViolation::HighFrameAddressed { pfn });
        }
        self.state.memory.bytes(pfn)
    }

    fn note_frame(self, pfn: Pfn, frame_use: FrameUse) {
        self.note_block(pfn, 0, frame_use);
    }

    fn note_block(self, first: Pfn, order: u32, frame_use: FrameUse) {
        self.state.note_block(first, order, frame_use);
        self.passes();
    }

    fn fill_kernel_entries(&self, _top: &[SimSlot<Mode::Slot>]) {}

    fn has_huge_pages(self, size: HugeSize) -> bool {
        size == HugeSize::Pmd || self.state.config.gigabyte_pages
    }

    fn has_no_execute(self) -> bool {
        self.state.config.no_execute
    }

    fn asids(self) -> usize {
        // Who latches the top table's entries tags nothing: PAE has no PCID.
        if Mode::LATCHED_TOP { 1 } else { self.state.config.asids }
    }

    fn load_pgd(self, load: PgdLoad) {
        self.passes();
        if let PgdLoad::User { pgd, .. } = load {
            self.state.expect_use(pgd.pfn(), top_use::<Self>());
        }
        let tagged = self.asids() > 1;
        let cpu = self.me();
        let stale = cpu.mmu().load(&self.state.memory, load, tagged);
        for (address, pfn) in stale {
            self.state.report(SimViolation::KeptStale { cpu: cpu.id(), address, pfn });
        }
        self.check_latched();
    }

    fn latched(self, index: usize) -> Option<Entry> {
        self.me().mmu().latched(index)
    }

    fn flush_local(self, flush: LocalFlush) {
        self.passes();
        let mut mmu = self.me().mmu();
        match flush {
            LocalFlush::Range { range, stride } => mmu.flush_range(&self.state.memory, range, stride),
            LocalFlush::AddressSpace => {
                mmu.flush_all(&self.state.memory);
                mmu.latch(&self.state.memory);
            }
        }
        drop(mmu);
        self.check_latched();
    }

    fn send_flush_ipi(self, cpu: CpuId) {
        self.passes();
        self.interrupt(cpu, FLUSH);
    }
}

/// What the frame of a top table is used for.
fn top_use<M: Machine>() -> FrameUse {
    if pgd_layout::<M>().is_some() { FrameUse::Data } else { FrameUse::Table }
}
