//! The kernel's last words: one CPU stops the others by non-maskable interrupt, prints what each was doing, and ends the
//! run. Also: asking a running CPU where it is.
//!
//! Rules. One report per run: the first CPU to [`claim`] it writes it, later ones stop where they are. Nothing here waits
//! without a limit, takes a lock (but the serial port's, which gives way) or allocates.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use arch_x86::backtrace::Backtrace;
use arch_x86::entry::TrapFrame;
use arch_x86::{interrupts, ipi, percpu, time};
use mm::config::NR_CPUS;
use mm::cpu::{CpuId, CpuSet};
use spin::Once;

use crate::exit::{ExitCode, exit};
use crate::record::Record;
use crate::{serial, smp, sync, thread};

/// How long a CPU may take to answer a non-maskable interrupt.
const ANSWER_LIMIT_NANOS: u64 = 2_000_000_000;

/// What a CPU does with a lock.
#[derive(Clone, Copy, Debug)]
pub struct LockUse {
    /// What the lock protects.
    pub what: &'static str,
    /// The lock.
    pub address: usize,
    /// Whether it is waited for; otherwise it is held.
    pub waits: bool,
    /// The ticket waited with, where the lock has tickets.
    pub ticket: Option<u32>,
}

/// Lists what a CPU does with some kind of lock. Called while that CPU stands still or for a report that may be stale.
pub type LockLister = fn(CpuId, &mut dyn FnMut(LockUse));

static LOCK_LISTER: Once<LockLister> = Once::new();

/// Registers who knows the locks that are not this crate's. Only the first call has an effect.
pub fn set_lock_lister(lister: LockLister) {
    LOCK_LISTER.call_once(|| lister);
}

/// Visits the locks `cpu` holds or waits for.
pub fn for_each_lock(cpu: CpuId, visit: &mut dyn FnMut(LockUse)) {
    for (what, address) in sync::held_by(cpu) {
        visit(LockUse { what, address, waits: false, ticket: None });
    }
    if let Some((what, address)) = sync::awaited_by(cpu) {
        visit(LockUse { what, address, waits: true, ticket: None });
    }
    if let Some(lister) = LOCK_LISTER.get() {
        lister(cpu, visit);
    }
}

/// The CPU that writes the report, plus 1; 0 as long as there is none.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Takes the right to write the report, interrupts off from now on. Returns only to the CPU that has it; any other, which
/// found an error of its own at the same time, gives `own` to the report and stops. `false`: this CPU had the right
/// already, so something went wrong while reporting.
pub fn claim(own: &Snapshot) -> bool {
    interrupts::disable();
    let me = percpu::cpu().0 + 1;
    match OWNER.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            serial::expect_dead_holders();
            true
        }
        Err(owner) if owner == me => false,
        Err(_) => hand_in(own),
    }
}

/// Answers as [`answer`] does, but without the interrupt: this CPU may be serving one, and would not get another.
fn hand_in(own: &Snapshot) -> ! {
    let desk = &DESKS[percpu::cpu().index()];
    while desk.state.load(Ordering::Acquire) != WANTED_AND_STOP {
        core::hint::spin_loop();
    }
    desk.fill(own);
    interrupts::halt_forever()
}

/// What a CPU was doing at one moment.
#[derive(Clone, Copy)]
pub struct Snapshot {
    /// Its registers, unless it is the CPU that found the error without a trap.
    pub frame: Option<TrapFrame>,
    /// The calls that led there.
    pub trace: Backtrace,
    /// The thread it ran.
    pub thread: thread::ShortName,
    /// Whether that was its idle thread.
    pub idle: bool,
}

impl Snapshot {
    const EMPTY: Self = Self { frame: None, trace: Backtrace::EMPTY, thread: thread::ShortName::EMPTY, idle: false };

    /// Of the running CPU, by the caller, without a trap.
    #[inline(always)]
    pub fn here() -> Self {
        Self { frame: None, trace: Backtrace::here(), thread: thread::current_name(), idle: thread::is_idle() }
    }

    /// Of the running CPU as a trap interrupted it.
    pub fn of_frame(frame: &TrapFrame) -> Self {
        Self { frame: Some(*frame), trace: Backtrace::of_frame(frame), ..Self::here() }
    }
}

const NOTHING: u32 = 0;
const WANTED: u32 = 1;
const WANTED_AND_STOP: u32 = 2;
const TAKEN: u32 = 3;

/// Where a CPU leaves its snapshot.
struct Desk {
    /// Who may touch `snapshot`: the CPU itself while the state is `WANTED…`, whoever asked once it is `TAKEN`. The CPU
    /// stores `TAKEN` with release, the asker loads it with acquire.
    state: AtomicU32,
    snapshot: UnsafeCell<Snapshot>,
}

// SAFETY: `state` says who may touch `snapshot`.
unsafe impl Sync for Desk {}

impl Desk {
    /// Leaves `snapshot` for whoever asked. Called by the desk's own CPU in one of the states that want it.
    fn fill(&self, snapshot: &Snapshot) {
        // SAFETY: the state gives this CPU the right to write. A non-maskable interrupt between the store and `TAKEN` that
        // fills the desk too writes it whole and stops this CPU, so the asker never sees a mixture.
        unsafe { self.snapshot.get().write(*snapshot) };
        self.state.store(TAKEN, Ordering::Release);
    }
}

static DESKS: [Desk; NR_CPUS] =
    [const { Desk { state: AtomicU32::new(NOTHING), snapshot: UnsafeCell::new(Snapshot::EMPTY) } }; NR_CPUS];

/// Serves a non-maskable interrupt that [`ask`] raised. `false`: nobody asked.
pub fn answer(frame: &TrapFrame) -> bool {
    let desk = &DESKS[percpu::cpu().index()];
    let state = desk.state.load(Ordering::Acquire);
    if state != WANTED && state != WANTED_AND_STOP {
        return false;
    }
    desk.fill(&Snapshot::of_frame(frame));
    if state == WANTED_AND_STOP {
        interrupts::halt_forever();
    }
    true
}

/// Asks `cpus` what they do; those that answered in time are returned.
fn ask(cpus: CpuSet, state: u32) -> CpuSet {
    let mut asked = CpuSet::default();
    for cpu in cpus.iter() {
        DESKS[cpu.index()].state.store(state, Ordering::Release);
        if ipi::send_non_maskable(cpu).is_ok() {
            asked.0 |= CpuSet::only(cpu).0;
        }
    }
    let give_up = time::now_nanos().saturating_add(ANSWER_LIMIT_NANOS);
    let mut answered = CpuSet::default();
    while answered != asked && time::now_nanos() < give_up {
        for cpu in asked.iter() {
            if DESKS[cpu.index()].state.load(Ordering::Acquire) == TAKEN {
                answered.0 |= CpuSet::only(cpu).0;
            }
        }
        core::hint::spin_loop();
    }
    answered
}

/// What `cpu`, which is another one, does at this moment; `None` if it does not answer. It goes on afterwards, whether it
/// had interrupts on or off. For one caller at a time.
pub fn snapshot_of(cpu: CpuId) -> Option<Snapshot> {
    let answered = ask(CpuSet::only(cpu), WANTED);
    answered.contains(cpu).then(|| read_desk(cpu))
}

fn read_desk(cpu: CpuId) -> Snapshot {
    // SAFETY: called after the CPU stored `TAKEN`, so it writes no more until asked again.
    unsafe { *DESKS[cpu.index()].snapshot.get() }
}

/// All CPUs standing still, for the CPU that writes the report.
pub struct Standstill {
    own: Snapshot,
    answered: CpuSet,
}

impl Standstill {
    /// Stops all other CPUs for good. Only after [`claim`].
    pub fn bring_about(own: Snapshot) -> Self {
        let others = smp::online().without(percpu::cpu());
        Self { own, answered: ask(others, WANTED_AND_STOP) }
    }

    /// What `cpu` was doing; `None` if it did not answer.
    pub fn snapshot(&self, cpu: CpuId) -> Option<Snapshot> {
        if cpu == percpu::cpu() { Some(self.own) } else { self.answered.contains(cpu).then(|| read_desk(cpu)) }
    }

    /// Prints every CPU and ends the run.
    pub fn print_and_exit(&self, reason: &str, code: ExitCode) -> ! {
        let me = percpu::cpu();
        for cpu in smp::online().iter() {
            match self.snapshot(cpu) {
                Some(snapshot) => print(cpu, &snapshot, if cpu == me { reason } else { "stopped" }),
                None => log::error!("cpu {} does not answer a non-maskable interrupt", cpu.0),
            }
            for_each_lock(cpu, &mut |lock| log::error!("cpu {} {lock}", cpu.0));
        }
        exit(code)
    }
}

impl fmt::Display for LockUse {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let verb = if self.waits { "waits for" } else { "holds" };
        write!(out, "{verb} {} at {:#x}", self.what, self.address)?;
        match self.ticket {
            Some(ticket) => write!(out, " with ticket {ticket}"),
            None => Ok(()),
        }
    }
}

fn print(cpu: CpuId, snapshot: &Snapshot, reason: &str) {
    let number = cpu.0;
    log::error!("cpu {number}, thread {}:", snapshot.thread);
    if let Some(frame) = &snapshot.frame {
        frame.registers(&mut |line| log::error!("  {line}"));
    }
    let mut addresses = snapshot.trace.addresses().iter().map(|address| *address as u64);
    let rip = addresses.next().unwrap_or(0);
    Record::new("bt")
        .number("cpu", number)
        .text("reason", reason)
        .address("rip", rip)
        .addresses("frames", addresses)
        .emit();
}

mod tests;
