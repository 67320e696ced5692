//! A simulated CPU: its interrupts, its sleep, its dice.
//!
//! Rules: an interrupt is taken wherever the CPU enters the machine or touches a page-table entry with interrupts on, and
//! nowhere else. A CPU that no host thread runs is idle with interrupts on, and takes interrupts on the sender's thread.

use super::config::{SimConfig, mix};
use super::current::{self, Passage};
use super::host::{self, Condvar, lock};
use super::mappings::Mappings;
use super::mmu::Mmu;
use super::violation::SimViolation;
use super::walk::Whim;
use super::{Sim, State};
use crate::address::VirtAddr;
use crate::cpu::CpuId;
use crate::machine::Machine;
use crate::pgtable::PagingMode;
use crate::sync::rcu;
use crate::tlb;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// An interrupt that asks the CPU to serve flush requests.
pub(super) const FLUSH: u32 = 1;
/// An interrupt that only wakes.
pub(super) const KICK: u32 = 2;

/// How long a wait sleeps before it looks at the clock.
const NAP: Duration = Duration::from_millis(20);

/// What a CPU is doing, for reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Activity {
    /// No host thread runs it.
    Stopped,
    /// Runs its body.
    Running,
    /// In `halt_until_kicked`.
    Halted,
    /// In `block_while`, with this key.
    Sleeping(usize),
    /// Done with its body, takes interrupts until the others are.
    Idle,
}

/// What the sleeper and whoever wakes it agree on: `wake` was called with the key the CPU sleeps on.
type Woken = bool;

/// The state of one CPU.
pub(super) struct SimCpu<Mode> {
    id: CpuId,
    /// A host thread runs as this CPU.
    running: AtomicBool,
    irqs: AtomicBool,
    pending: AtomicU32,
    /// Interrupts taken so far.
    taken: AtomicU64,
    bell: host::BellMutex<Woken>,
    rung: Condvar,
    activity: Mutex<Activity>,
    mmu: Mutex<Mmu<Mode>>,
    mappings: Mappings,
    dice: AtomicU64,
    /// Where user code was last, to guess where it goes next.
    last_address: AtomicU64,
}

impl<Mode: PagingMode> SimCpu<Mode> {
    pub(super) fn new(id: CpuId, seed: u64) -> Self {
        Self {
            id,
            running: AtomicBool::new(false),
            irqs: AtomicBool::new(true),
            pending: AtomicU32::new(0),
            taken: AtomicU64::new(0),
            bell: host::BellMutex::new(false),
            rung: Condvar::new(),
            activity: Mutex::new(Activity::Stopped),
            mmu: Mutex::new(Mmu::new()),
            mappings: Mappings::new(),
            dice: AtomicU64::new(first_roll(seed, id)),
            last_address: AtomicU64::new(0),
        }
    }

    pub(super) fn id(&self) -> CpuId {
        self.id
    }

    pub(super) fn irqs(&self) -> bool {
        // Relaxed: only the thread that runs the CPU asks, or a report.
        self.irqs.load(Ordering::Relaxed)
    }

    /// Switches interrupts and says whether they were on.
    pub(super) fn set_irqs(&self, on: bool) -> bool {
        self.irqs.swap(on, Ordering::Relaxed)
    }

    pub(super) fn mmu(&self) -> MutexGuard<'_, Mmu<Mode>> {
        lock(&self.mmu)
    }

    pub(super) fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    fn bell(&self) -> host::BellGuard<'_, Woken> {
        host::lock_bell(&self.bell)
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    pub(super) fn ring(&self) {
        drop(self.bell());
        self.rung.notify_all();
    }

    pub(super) fn interrupts_taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How the walker goes about its next walk.
    pub(super) fn whim<'p>(&self, config: &SimConfig, pause: &'p dyn Fn()) -> Whim<'p> {
        let passed_over = if self.chance(config.passing_over) { 1 + self.roll() as usize % 4 } else { 0 };
        Whim { passed_over, fracture: self.chance(config.fracturing), pause }
    }

    pub(super) fn touched(&self, address: VirtAddr) {
        self.last_address.store(address.0, Ordering::Relaxed);
    }

    pub(super) fn last_address(&self) -> u64 {
        self.last_address.load(Ordering::Relaxed)
    }

    /// Begins the random choices anew.
    pub(super) fn reseed(&self, seed: u64) {
        self.dice.store(first_roll(seed, self.id), Ordering::Relaxed);
    }

    /// A random number.
    pub(super) fn roll(&self) -> u64 {
        mix(self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// True once in `one_in` times; never for 0.
    pub(super) fn chance(&self, one_in: u32) -> bool {
        one_in != 0 && self.roll().is_multiple_of(u64::from(one_in))
    }

    fn activity(&self) -> Activity {
        *lock(&self.activity)
    }

    /// Says what the CPU does from now on; returns what it did before.
    fn set_activity(&self, activity: Activity) -> Activity {
        std::mem::replace(&mut lock(&self.activity), activity)
    }

    fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }

    fn nap<'a>(&self, bell: host::BellGuard<'a, Woken>) -> host::BellGuard<'a, Woken> {
        host::wait(&self.rung, bell, NAP)
    }
}

impl<Mode: PagingMode> fmt::Display for SimCpu<Mode> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cpu {}: {:?}, interrupts {}, pending {:#b}, last user access {:#x}",
            self.id.0,
            self.activity(),
            if self.irqs() { "on" } else { "off" },
            self.pending.load(Ordering::Relaxed),
            self.last_address(),
        )
    }
}

/// Where the dice of a CPU begin.
fn first_roll(seed: u64, id: CpuId) -> u64 {
    mix(mix(seed) ^ mix(u64::from(id.0) + 1))
}

impl<Mode: PagingMode> Sim<Mode> {
    /// Starts running as `cpu` on this thread, until the returned value is dropped.
    pub(super) fn enter(self, cpu: CpuId) -> Entered<Mode> {
        let state = self.state.cpu(cpu);
        // SeqCst, with the store in `leave`: see `lend`. Somebody may just be lending it a thread, for a moment.
        while state.running.compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            assert_eq!(state.activity(), Activity::Stopped, "two threads run as {cpu:?}");
            self.state.check_alive();
            host::yield_now();
        }
        state.set_activity(Activity::Running);
        let _became = current::become_cpu(self.state, cpu);
        rcu::exit_idle(self);
        Entered { machine: self, cpu, _became }
    }

    /// Interrupts `target`.
    pub(super) fn interrupt(self, target: CpuId, interrupt: u32) {
        let cpu = self.state.cpu(target);
        cpu.pending.fetch_or(interrupt, Ordering::SeqCst);
        cpu.ring();
        self.lend(target);
    }

    /// Takes the interrupts of `target` in its name if nobody runs it.
    fn lend(self, target: CpuId) {
        let cpu = self.state.cpu(target);
        // Again until nothing is pending, or someone else runs the CPU: one who stops running it looks here once more
        // after `running` is false, we look after `pending` is set, both SeqCst, so one of us sees it.
        while cpu.is_pending() {
            if cpu.running.compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                return;
            }
            if cpu.irqs() {
                let _became = current::become_cpu(self.state, target);
                self.take_interrupts();
                cpu.running.store(false, Ordering::SeqCst);
            } else {
                cpu.running.store(false, Ordering::SeqCst);
                self.state.report(SimViolation::InterruptToDeafCpu { cpu: target });
                return;
            }
        }
    }

    /// Takes what is pending on the CPU this thread runs as, if its interrupts are on.
    pub(super) fn take_interrupts(self) {
        let cpu = self.me();
        while cpu.irqs() && cpu.is_pending() {
            // Acquire and more: what the sender did before is visible to the handler.
            let pending = cpu.pending.swap(0, Ordering::SeqCst);
            cpu.taken.fetch_add(1, Ordering::Relaxed);
            cpu.set_irqs(false);
            if pending & FLUSH != 0 {
                tlb::service(self);
            }
            rcu::on_interrupt(self);
            cpu.set_irqs(true);
        }
    }

    /// Waits with interrupts off for an interrupt, turns them on and takes it.
    pub(super) fn halt(self) {
        let cpu = self.me();
        if cpu.set_irqs(false) {
            self.state.report(SimViolation::HaltWithInterruptsOn { cpu: cpu.id });
        }
        let before = cpu.set_activity(Activity::Halted);
        let mut bell = cpu.bell();
        while !cpu.is_pending() && self.state.is_alive() {
            bell = cpu.nap(bell);
        }
        drop(bell);
        cpu.set_activity(before);
        cpu.set_irqs(true);
        self.state.check_alive();
        self.take_interrupts();
    }

    /// Sleeps while `still` says so and nobody has called `wake_sleepers(key)`; takes interrupts meanwhile.
    pub(super) fn sleep(self, key: usize, still: &mut dyn FnMut() -> bool) {
        let cpu = self.me();
        let mut bell = cpu.bell();
        loop {
            // Whoever wakes has to take the bell, so no wake-up is lost between this question and the nap. Interrupts
            // are off, because a handler may ring another CPU's bell, whose owner may be ringing ours.
            let irqs = cpu.set_irqs(false);
            let again = still();
            cpu.set_irqs(irqs);
            if !again {
                break;
            }
            if cpu.mappings.count() > 0 {
                self.state.report(SimViolation::MappingKept { cpu: cpu.id });
            }
            let before = cpu.set_activity(Activity::Sleeping(key));
            *bell = false;
            // Other threads of this CPU would run now, or its idle loop.
            rcu::enter_idle(self);
            while !*bell && self.state.is_alive() {
                if cpu.is_pending() {
                    drop(bell);
                    self.take_interrupts();
                    bell = cpu.bell();
                } else {
                    bell = cpu.nap(bell);
                }
            }
            rcu::exit_idle(self);
            cpu.set_activity(before);
            if !self.state.is_alive() {
                break;
            }
        }
        drop(bell);
        self.state.check_alive();
    }

    /// Wakes the CPUs that sleep on `key`.
    pub(super) fn wake_sleepers(self, key: usize) {
        for cpu in &self.state.cpus {
            let mut woken = cpu.bell();
            if cpu.activity() == Activity::Sleeping(key) {
                *woken = true;
                cpu.rung.notify_all();
            }
        }
    }

    /// Takes interrupts until `done`, as an idle CPU does.
    pub(super) fn idle_until(self, done: impl Fn() -> bool) {
        let cpu = self.me();
        cpu.set_activity(Activity::Idle);
        let mut bell = cpu.bell();
        rcu::enter_idle(self);
        while !done() && self.state.is_alive() {
            if cpu.is_pending() {
                drop(bell);
                self.take_interrupts();
                bell = cpu.bell();
            } else {
                bell = cpu.nap(bell);
            }
        }
        rcu::exit_idle(self);
    }
}

/// This thread runs as a CPU.
pub(super) struct Entered<Mode: PagingMode> {
    machine: Sim<Mode>,
    cpu: CpuId,
    _became: current::Became,
}

impl<Mode: PagingMode> Drop for Entered<Mode> {
    fn drop(&mut self) {
        let cpu = self.machine.state.cpu(self.cpu);
        if std::thread::panicking() {
            // Whoever clears up after the failure shall not have to wait for this CPU.
            cpu.set_irqs(true);
            cpu.mappings.forget();
        } else {
            if cpu.mappings.count() > 0 {
                self.machine.state.report(SimViolation::MappingKept { cpu: self.cpu });
            }
            assert_eq!(self.machine.local().held.count(), 0, "{:?} stops with locks held", self.cpu);
        }
        if !rcu::in_read_section(self.machine) {
            rcu::enter_idle(self.machine);
        }
        cpu.set_activity(Activity::Stopped);
        cpu.running.store(false, Ordering::SeqCst);
        if !std::thread::panicking() {
            self.machine.lend(self.cpu);
        }
    }
}

impl<Mode: PagingMode> Passage for State<Mode> {
    fn passes(&'static self, id: CpuId) {
        host::point();
        if std::thread::panicking() {
            return;
        }
        self.check_alive();
        let cpu = self.cpu(id);
        if cpu.chance(self.config.delay) {
            dawdle(cpu.roll());
        }
        if cpu.chance(self.config.speculation) {
            self.speculate(cpu, self.any_cpu(cpu.roll()));
        }
        if cpu.chance(self.config.eviction) {
            self.forget(cpu.roll(), self.any_cpu(cpu.roll()));
        }
        if !cpu.chance(self.config.lateness) {
            Sim { state: self }.take_interrupts();
        }
    }
}

/// Gives the other CPUs a chance to get in between; mostly a short one.
pub(super) fn dawdle(roll: u64) {
    match roll % 16 {
        0 => host::sleep(Duration::from_micros(roll >> 8 & 63)),
        1..4 => (0..roll >> 8 & 255).for_each(|_| std::hint::spin_loop()),
        _ => host::yield_now(),
    }
}
