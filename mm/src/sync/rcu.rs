//! Read-copy-update with quiescent-state reports: whoever unhooks a table or a VMA waits until no CPU can still be
//! reading it.
//!
//! A read section costs two stores of the own CPU's nesting count and one look at whether anybody waits. A CPU outside
//! of a section *reports*: it copies the number of the youngest requested grace period to `reported`. It does so at the
//! end of a section, in interrupts, at a context switch and on its way into idle. An idle CPU has no sections, so nobody
//! waits for it.
//!
//! Why a grace period with number `n` covers CPU `c` once `c.reported >= n` (C11 orders, checked by `tests/loom_lock.rs`):
//! - *Sections before the report are over.* The report is a Release after their last load; the waiter's poll acquires it.
//! - *Sections after the report see the unhooking.* The waiter unhooks, draws `n` (AcqRel), requests it (Release); the
//!   report acquires the request. If the number it acquires is larger, it was drawn later by another waiter, and that
//!   draw acquired this waiter's, since all draws are RMWs on one counter. That is why drawing is not relaxed.
//!
//! *Idle.* Entering and leaving are RMWs on the CPU's `idle` counter, and the waiter looks at it by an RMW too. Either
//! leaving comes first, and the waiter sees the CPU busy; or the waiter's RMW comes first, and leaving acquires it and
//! with it the unhooking. An even value the waiter saw was released after the CPU's last section.
//!
//! *Numbers come round* where words are small. A CPU that is waited for is asked for the number, so its own are of late. One that
//! need not be waited for, since it is idle or the waiter itself, is asked for every [`REFRESH`]th, and reports what it has been
//! asked for before it leaves idle or when it next reports.
//!
//! *Interrupts.* A handler reads the nesting count of the code it interrupted. Both run on one CPU, so program order is
//! enough, and compiler fences keep the section between its two stores.

use super::atomic::plain::{AtomicU32 as PlainU32, compiler_fence};
use super::atomic::{AtomicU32, AtomicUsize, Ordering, REFRESH, const_new, is_older};
use super::order;
use super::parking::STUCK_AFTER;
use crate::config::NR_CPUS;
use crate::cpu::CpuSet;
use crate::machine::Machine;
use crate::stats::Counter;
use core::marker::PhantomData;

/// The part of RCU that one CPU owns.
#[repr(align(64))]
pub struct RcuCpu {
    /// Read sections open on this CPU. No other CPU reads it.
    nesting: PlainU32,
    /// Number of the youngest grace period that somebody wants this CPU to report. Raised by waiters.
    requested: AtomicUsize,
    /// The youngest grace period that has no reader on this CPU any more.
    reported: AtomicUsize,
    /// Even while the CPU is idle or not started; it starts so.
    idle: AtomicU32,
}

impl RcuCpu {
    const_new! {
        /// A CPU that has not started.
        pub fn new() -> Self {
            Self {
                nesting: PlainU32::new(0),
                requested: AtomicUsize::new(0),
                reported: AtomicUsize::new(0),
                idle: AtomicU32::new(0),
            }
        }
    }

    fn nesting(&self) -> u32 {
        self.nesting.load(Ordering::Relaxed)
    }

    /// Says that no section older than this moment is open. Outside of read sections only.
    fn report(&self) {
        // Acquire pairs with the Release in `GracePeriod::start`: sections from here on see what was unhooked.
        let requested = self.requested.load(Ordering::Acquire);
        // Release pairs with the Acquire in `GracePeriod::poll`: sections up to here are over.
        let order = if sabotaged!("report-order") { Ordering::Relaxed } else { Ordering::Release };
        raise(&self.reported, requested, order);
    }

    /// Whether the CPU is idle, and will see all that this CPU did before when it is no longer.
    fn is_idle(&self) -> bool {
        let even = |value: u32| value.is_multiple_of(2);
        // Relaxed: only says whether the RMW is worth its cache line. AcqRel: see the module head.
        even(self.idle.load(Ordering::Relaxed)) && even(self.idle.fetch_add(0, Ordering::AcqRel))
    }
}

/// Makes `number` at least `to`; in between others, or a handler on this CPU, may make it more.
fn raise(number: &AtomicUsize, to: usize, order: Ordering) {
    let mut now = number.load(Ordering::Relaxed);
    while is_older(now, to) {
        match number.compare_exchange_weak(now, to, order, Ordering::Relaxed) {
            Ok(_) => return,
            Err(other) => now = other,
        }
    }
}

impl Default for RcuCpu {
    fn default() -> Self {
        Self::new()
    }
}

/// The source of grace-period numbers. One for all CPUs of a machine: they compare numbers.
pub struct Rcu {
    newest: AtomicUsize,
}

impl Rcu {
    /// No grace period yet.
    pub fn new() -> Self {
        Self { newest: AtomicUsize::new(0) }
    }
}

impl Default for Rcu {
    fn default() -> Self {
        Self::new()
    }
}

/// An open read section. What it found by loads from shared structures stays allocated until it is dropped.
#[must_use = "dropping it ends the read section"]
pub struct RcuRead<M: Machine> {
    machine: M,
    /// A section is closed by the CPU that opened it.
    not_send: PhantomData<*mut ()>,
}

/// Opens a read section on this CPU. Sections nest; no sleeping and no waiting for a grace period inside.
pub fn read_lock<M: Machine>(machine: M) -> RcuRead<M> {
    let rcu = &machine.local().rcu;
    debug_assert!(!rcu.idle.load(Ordering::Relaxed).is_multiple_of(2), "read section on a CPU that has not left idle");
    rcu.nesting.store(rcu.nesting() + 1, Ordering::Relaxed);
    // The section's loads stay behind the store, as seen by a handler on this CPU.
    compiler_fence(Ordering::SeqCst);
    RcuRead { machine, not_send: PhantomData }
}

impl<M: Machine> Drop for RcuRead<M> {
    fn drop(&mut self) {
        let rcu = &self.machine.local().rcu;
        // The section's loads stay before the store, as seen by a handler on this CPU.
        compiler_fence(Ordering::SeqCst);
        let nesting = rcu.nesting() - if sabotaged!("section-left") { 0 } else { 1 };
        rcu.nesting.store(nesting, Ordering::Relaxed);
        if nesting == 0 {
            rcu.report();
        }
    }
}

/// Whether this CPU is in a read section.
pub fn in_read_section<M: Machine>(machine: M) -> bool {
    machine.local().rcu.nesting() > 0
}

/// Reports if this CPU was interrupted outside of a read section. To be called by the handlers of tick, kick and flush.
pub fn on_interrupt<M: Machine>(machine: M) {
    let rcu = &machine.local().rcu;
    if rcu.nesting() == 0 {
        rcu.report();
    }
}

/// Reports from a place that is never inside a read section: a context switch.
pub fn quiescent<M: Machine>(machine: M) {
    debug_assert!(!in_read_section(machine), "context switch in a read section");
    machine.local().rcu.report();
}

/// From now on this CPU opens no read section, and nobody waits for it.
pub fn enter_idle<M: Machine>(machine: M) {
    quiescent(machine);
    // Release: the waiter that sees the CPU idle comes after its sections.
    let before = machine.local().rcu.idle.fetch_add(1, Ordering::Release);
    debug_assert!(!before.is_multiple_of(2), "enters idle twice");
}

/// From now on this CPU may open read sections. To be called once on every CPU that starts, before anything else of RCU.
pub fn exit_idle<M: Machine>(machine: M) {
    machine.local().rcu.report();
    // Acquire: what was unhooked by a waiter that found the CPU idle is not found any more.
    let before = machine.local().rcu.idle.fetch_add(1, Ordering::Acquire);
    debug_assert!(before.is_multiple_of(2), "leaves idle twice");
}

/// A wait for every read section that was open when it started. Dropping it is no harm, but proves nothing.
#[derive(Debug)]
pub struct GracePeriod {
    number: usize,
    remaining: CpuSet,
}

impl GracePeriod {
    /// Starts to wait for the readers of what the caller has unhooked.
    pub fn start<M: Machine>(rcu: &Rcu, machine: M) -> Self {
        // AcqRel: see the module head.
        let number = rcu.newest.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        let mut remaining = CpuSet::first(NR_CPUS);
        if !in_read_section(machine) {
            remaining = remaining.without(machine.cpu());
        }
        // CPUs that have not started are idle. All are asked, not only those online: one that starts just now would be
        // missed otherwise.
        for (cpu, local) in machine.cpus().iter() {
            if remaining.contains(cpu) && local.rcu.is_idle() {
                remaining = remaining.without(cpu);
            }
            if remaining.contains(cpu) || number.is_multiple_of(REFRESH) {
                // Release pairs with the Acquire in `report`.
                raise(&local.rcu.requested, number, Ordering::Release);
            }
        }
        Self { number, remaining }
    }

    /// Whether all those sections are over.
    pub fn poll<M: Machine>(&mut self, machine: M) -> bool {
        for cpu in self.remaining.iter() {
            let rcu = &machine.cpus().of(cpu).rcu;
            // Acquire pairs with the Release in `report`.
            if !is_older(rcu.reported.load(Ordering::Acquire), self.number) || rcu.is_idle() {
                self.remaining = self.remaining.without(cpu);
            }
        }
        self.remaining.is_empty() || sabotaged!("grace-period")
    }

    /// Interrupts the CPUs still waited for: those outside of a section report at once, the others when theirs ends.
    pub fn expedite<M: Machine>(&self, machine: M) {
        for cpu in self.remaining.without(machine.cpu()).iter() {
            machine.kick(cpu);
        }
    }
}

/// Waits until every read section that is open now has ended. With interrupts on, without a lock, outside of a section.
/// Other CPUs are left alone for a while: most report by themselves.
#[track_caller]
pub fn synchronize<M: Machine>(rcu: &Rcu, machine: M) {
    wait(rcu, machine, machine.waiting_rule().polls.max(1));
}

/// The same for those in a hurry: every CPU that might be reading is interrupted at once.
#[track_caller]
pub fn synchronize_expedited<M: Machine>(rcu: &Rcu, machine: M) {
    wait(rcu, machine, 1);
}

/// Waits for a grace period; after `patience` polls interrupts the CPUs it still waits for.
#[track_caller]
fn wait<M: Machine>(rcu: &Rcu, machine: M, patience: u32) {
    debug_assert!(machine.irqs_enabled(), "waits for a grace period with interrupts off");
    order::assert_may_wait(machine, "a grace period");
    debug_assert!(!in_read_section(machine), "waits for its own read section");
    let rule = machine.waiting_rule();
    let started = machine.now();
    let mut grace_period = GracePeriod::start(rcu, machine);
    let mut polls: u32 = 0;
    while !grace_period.poll(machine) {
        // A CPU that waits reads nothing: two that wait must not wait for each other.
        quiescent(machine);
        polls = polls.saturating_add(1);
        if polls == patience {
            grace_period.expedite(machine);
        }
        if polls.is_multiple_of(rule.polls_per_pause.max(1)) {
            machine.pause();
            if machine.now().saturating_sub(started) > STUCK_AFTER {
                machine.stuck("a grace period");
            }
        }
    }
    machine.local().stats.bump(Counter::GracePeriods);
}

#[cfg(all(test, not(loom)))]
mod tests;
