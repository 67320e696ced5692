//! How a CPU waits for a lock: what it shows to others meanwhile, how it halts, and how an unlocker finds it.
//!
//! A CPU waits for one lock at a time, so one slot per CPU is enough. The slot is shown during the whole wait (the
//! watchdog reads it); while the CPU sleeps, or is about to, the slot says so, and only then is it worth a kick.
//!
//! Rules:
//! - Only the own CPU stores to its slot, except that an unlocker may turn ASLEEP into ASLEEP|KICKED.
//! - ASLEEP appears and disappears with interrupts off or the CPU awake: a kick sent on its account stays pending until
//!   the halt, which it ends.
//! - KICKED means that a kick follows or has followed. Whoever sets it sends the kick.
//! - A slot shows a lock until its CPU owns it, and no longer when that CPU gives the lock up. A waiter thus never
//!   leaves without having taken the lock.

use super::LockClass;
use super::atomic::plain::{AtomicU8, AtomicUsize as PlainUsize, Solo64};
use super::atomic::{AtomicU32, AtomicUsize, Ordering, const_new, fence};
use crate::config::NR_CPUS;
use crate::cpu::{CpuId, CpuLocal, CpuSet};
use crate::machine::{Machine, WaitingRule};
use crate::stats::{LockCounter, LockPeak};

/// Nanoseconds after which a wait for a lock can only be a bug. The kernel's watchdog normally speaks up long before.
pub(super) const STUCK_AFTER: u64 = 60_000_000_000;

/// The waiter holds the ticket in the low bits.
const TICKET: u32 = 1 << 31;
/// The waiter sleeps or is about to.
const ASLEEP: u32 = 1 << 30;
/// An unlocker has decided to kick the sleeper. Only outside the queue.
const KICKED: u32 = 1 << 29;

/// One waiter outside the queue: locks that have such count them in the lowest bits of their word.
const OUTSIDER: u32 = 1;

/// What one CPU waits for.
#[repr(align(64))]
pub struct ParkingSlot {
    /// Address of the lock, 0 for none. Used as a key only.
    lock: AtomicUsize,
    /// [`TICKET`] and a ticket or nothing, [`ASLEEP`], [`KICKED`].
    state: AtomicU32,
    class: AtomicU8,
    since: Solo64,
    /// Where this CPU's next search for a sleeper starts, so that every sleeper has its turn.
    search_from: PlainUsize,
}

/// What a waiting CPU waits for, as others see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitingFor {
    /// Address of the lock.
    pub lock: usize,
    /// The ticket it holds, or `None` outside the queue.
    pub ticket: Option<u32>,
    /// What the lock protects.
    pub class: LockClass,
    /// When it began to wait, by [`Machine::now`].
    pub since_ns: u64,
    /// Whether it sleeps.
    pub asleep: bool,
}

impl ParkingSlot {
    const_new! {
        /// Waits for nothing.
        pub fn new() -> Self {
            Self {
                lock: AtomicUsize::new(0),
                state: AtomicU32::new(0),
                class: AtomicU8::new(0),
                since: Solo64::new(0),
                search_from: PlainUsize::new(0),
            }
        }
    }

    /// What the CPU waits for at this moment, for reports: the parts may stem from two waits in a row.
    pub fn waiting_for(&self) -> Option<WaitingFor> {
        // Acquire pairs with the Release in `Wait::begin`: class and time belong to this wait or a later one.
        let lock = self.lock.load(Ordering::Acquire);
        let state = self.state.load(Ordering::Relaxed);
        (lock != 0).then(|| WaitingFor {
            lock,
            ticket: (state & TICKET != 0).then_some(state & !(TICKET | ASLEEP | KICKED)),
            class: LockClass::from_index(self.class.load(Ordering::Relaxed)),
            since_ns: self.since.get(),
            asleep: state & ASLEEP != 0,
        })
    }
}

impl Default for ParkingSlot {
    fn default() -> Self {
        Self::new()
    }
}

/// One wait of this CPU for one lock.
pub(super) struct Wait<'m, M: Machine> {
    /// The machine of this CPU.
    pub(super) machine: &'m M,
    local: &'m CpuLocal,
    /// How this machine waits.
    pub(super) rule: WaitingRule,
    /// What the lock protects.
    pub(super) class: LockClass,
    since: u64,
    rounds_outside: u32,
}

impl<'m, M: Machine> Wait<'m, M> {
    /// Shows that this CPU waits for the lock at address `lock`.
    pub(super) fn begin(machine: &'m M, lock: usize, class: LockClass) -> Self {
        let (local, since) = (machine.local(), machine.now());
        let slot = &local.parking;
        slot.class.store(class as u8, Ordering::Relaxed);
        slot.since.set(since);
        // Relaxed: what orders this slot for unlockers is each lock's own business; see the stores of ASLEEP.
        slot.state.store(0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `waiting_for`.
        slot.lock.store(lock, Ordering::Release);
        Self { machine, local, rule: machine.waiting_rule(), class, since, rounds_outside: 0 }
    }

    /// From now on this CPU waits with `ticket`, after `turns` others.
    pub(super) fn take_ticket(&self, ticket: u32, turns: u32) {
        self.local.stats.raise(self.class, LockPeak::TurnsInQueue, turns.into());
        self.local.parking.state.store(TICKET | ticket, Ordering::Relaxed);
    }

    /// Polls for one round until `done` says so; whether it did.
    pub(super) fn poll(&self, mut done: impl FnMut() -> bool) -> bool {
        let per_pause = self.rule.polls_per_pause.max(1);
        for poll in 1..=self.rule.polls.max(1) {
            if done() {
                return true;
            }
            if poll.is_multiple_of(per_pause) {
                self.machine.pause();
            }
        }
        self.assert_not_stuck();
        false
    }

    /// Ends the run if this wait has gone on for too long.
    pub(super) fn assert_not_stuck(&self) {
        if self.machine.now().saturating_sub(self.since) > STUCK_AFTER {
            self.machine.stuck(self.class.description());
        }
    }

    /// Polls and halts until `mine`, which an unlocker makes true before it looks for this CPU by [`kick_ticket`].
    pub(super) fn sleep_until(&self, mine: impl Fn() -> bool) {
        while !self.poll(&mine) {
            self.halt(|| {
                // Pairs with the fence in `kick_ticket`.
                if !sabotaged!("sleep-fence") {
                    fence(Ordering::SeqCst);
                }
                !mine()
            });
        }
    }

    /// Ends a round outside the queue in vain: joins the outsiders that `word` counts, and halts if `taken` says of the
    /// word before that the lock was taken.
    pub(super) fn halt_outside(&mut self, word: &AtomicU32, taken: impl FnOnce(u32) -> bool) {
        self.rounds_outside += 1;
        // Release: the slot, for the unlocker that counts this waiter. Leaving publishes nothing.
        if self.halt(|| taken(word.fetch_add(OUTSIDER, Ordering::Release))) {
            word.fetch_sub(OUTSIDER, Ordering::Relaxed);
        }
    }

    /// Shows that this CPU sleeps, asks `still` whether there is anything to sleep for, and if so halts until a kick
    /// or any other interrupt. With interrupts off it does nothing, since no kick would end the halt. Returns whether
    /// `still` was asked.
    ///
    /// The store of ASLEEP is relaxed. `still` must begin with what orders it before the question: a releasing RMW on
    /// the word that the unlocker also changes by an RMW, or a SeqCst fence.
    fn halt(&self, still: impl FnOnce() -> bool) -> bool {
        if !self.machine.irq_save() {
            return false;
        }
        let state = &self.local.parking.state;
        let awake = state.load(Ordering::Relaxed);
        state.store(awake | ASLEEP, Ordering::Relaxed);
        if still() {
            self.machine.halt_until_kicked();
            self.local.stats.add_lock(self.class, LockCounter::Halts, 1);
        } else {
            self.machine.irq_restore(true);
        }
        // Clears KICKED with it.
        state.store(awake, Ordering::Relaxed);
        true
    }

    /// This CPU owns the lock.
    pub(super) fn end(self) {
        // Relaxed: the releasing RMW of this CPU's unlock orders it before anything the next owner does.
        self.local.parking.lock.store(0, Ordering::Relaxed);
        let waited = self.machine.now().saturating_sub(self.since);
        let stats = &self.local.stats;
        stats.add_lock(self.class, LockCounter::Waited, 1);
        stats.add_lock(self.class, LockCounter::WaitNanos, waited);
        stats.raise(self.class, LockPeak::WaitNanos, waited);
        stats.raise(self.class, LockPeak::RoundsOutside, self.rounds_outside.into());
    }
}

/// Kicks the CPU that sleeps with `ticket` for the lock at address `lock`, if it sleeps. Returns whether one did.
///
/// The caller has just stored what that CPU waits to see.
pub(super) fn kick_ticket<M: Machine>(machine: M, lock: usize, ticket: u32) -> bool {
    // Pairs with the fence in `sleep_until`.
    fence(Ordering::SeqCst);
    let sleeper = machine.online().iter().find(|&cpu| {
        let slot = &machine.cpus().of(cpu).parking;
        // Relaxed: if this reads an old state, the waiter's own look at the head, after its fence, reads the new head.
        slot.lock.load(Ordering::Relaxed) == lock && slot.state.load(Ordering::Relaxed) == TICKET | ASLEEP | ticket
    });
    if let Some(cpu) = sleeper.filter(|_| !sabotaged!("kick-in-queue")) {
        machine.kick(cpu);
    }
    sleeper.is_some()
}

/// Kicks one CPU that sleeps outside the queue of the lock at address `lock`, unless one has been kicked and is not awake
/// yet: that one will try the lock, and kick the next when it gives it up. Returns whether it kicked one.
///
/// The caller's releasing RMW on the lock word was also an Acquire.
pub(super) fn kick_outsider<M: Machine>(machine: M, lock: usize) -> bool {
    let cursor = &machine.local().parking.search_from;
    let mut sleeper = None;
    for cpu in from(machine.online(), cursor.load(Ordering::Relaxed)) {
        let slot = &machine.cpus().of(cpu).parking;
        // Relaxed: a sleeper that this unlocker has to wake is ordered by the RMWs on the lock word.
        if slot.lock.load(Ordering::Relaxed) != lock {
            continue;
        }
        match slot.state.load(Ordering::Relaxed) {
            state if state == ASLEEP | KICKED => return false,
            ASLEEP => sleeper = sleeper.or(Some(cpu)),
            _ => {}
        }
    }
    let Some(cpu) = sleeper else { return false };
    cursor.store(cpu.index() + 1, Ordering::Relaxed);
    let state = &machine.cpus().of(cpu).parking.state;
    // Fails if the sleeper woke by itself, or another unlocker was faster: either way it is about to try the lock. If the
    // CPU has gone to sleep anew since the look above, on this lock or another, KICKED and the kick are right for that.
    let chosen = state.compare_exchange(ASLEEP, ASLEEP | KICKED, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if chosen && !sabotaged!("kick-outside") {
        machine.kick(cpu);
    }
    chosen
}

/// The members of `set`, beginning with CPU number `start` and going round.
fn from(set: CpuSet, start: usize) -> impl Iterator<Item = CpuId> {
    (0..NR_CPUS).map(move |step| CpuId(((start + step) % NR_CPUS) as u32)).filter(move |&cpu| set.contains(cpu))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{ASLEEP, KICKED, TICKET, kick_outsider, kick_ticket};
    use crate::cpu::CpuId;
    use crate::machine::Machine;
    use crate::sync::atomic::Ordering::Relaxed;
    use crate::sync::testing::{TestMachine, machine};

    const LOCK: usize = 0x1000;
    const OTHER_LOCK: usize = 0x2000;

    fn show(machine: TestMachine, cpu: u32, lock: usize, state: u32) {
        let slot = &machine.cpus().of(CpuId(cpu)).parking;
        slot.lock.store(lock, Relaxed);
        slot.state.store(state, Relaxed);
    }

    /// CPUs that have been interrupted.
    fn kicked(machine: TestMachine) -> Vec<u32> {
        machine.online().iter().filter(|&cpu| machine.interrupts_taken(cpu) > 0).map(|cpu| cpu.0).collect()
    }

    #[test]
    fn a_second_outsider_is_not_kicked_while_the_first_wakes_up() {
        let sim = machine(3, 1, 1);
        let machine = sim.handle();
        show(machine, 1, LOCK, ASLEEP);
        show(machine, 2, LOCK, ASLEEP);
        machine.run_cpu(CpuId(0), || {
            assert!(kick_outsider(machine, LOCK));
            assert!(!kick_outsider(machine, LOCK));
        });
        assert_eq!(kicked(machine), [1]);
        assert_eq!(machine.cpus().of(CpuId(1)).parking.state.load(Relaxed), ASLEEP | KICKED);
    }

    #[test]
    fn outsiders_are_kicked_in_turn() {
        let sim = machine(3, 1, 1);
        let machine = sim.handle();
        show(machine, 1, LOCK, ASLEEP);
        show(machine, 2, LOCK, ASLEEP);
        machine.run_cpu(CpuId(0), || {
            assert!(kick_outsider(machine, LOCK));
            // CPU 1 woke, failed to get the lock and sleeps again; it must not be preferred to CPU 2 for ever.
            show(machine, 1, LOCK, ASLEEP);
            assert!(kick_outsider(machine, LOCK));
        });
        assert_eq!(kicked(machine), [1, 2]);
    }

    #[test]
    fn who_is_awake_or_waits_for_another_lock_is_not_kicked() {
        let sim = machine(4, 1, 1);
        let machine = sim.handle();
        show(machine, 1, LOCK, 0);
        show(machine, 2, OTHER_LOCK, ASLEEP);
        show(machine, 3, LOCK, TICKET | ASLEEP | 5);
        machine.run_cpu(CpuId(0), || {
            assert!(!kick_outsider(machine, LOCK));
            assert!(!kick_ticket(machine, LOCK, 4));
            assert!(!kick_ticket(machine, OTHER_LOCK, 5));
            assert!(kicked(machine).is_empty());
            assert!(kick_ticket(machine, LOCK, 5));
        });
        assert_eq!(kicked(machine), [3]);
    }
}
