//! Which CPU has which address space loaded, and the shootdown that reaches exactly those.
//!
//! A request lies in its initiator's block. The initiator sets its own bit in each target's `pending`, interrupts it, and
//! waits until every target has cleared its bit in the initiator's `unanswered`.
//!
//! Rules kept:
//! - joiner and flusher, at least one sees the other (I32, R23): the joiner inserts itself and then reads tables, the
//!   flusher changes tables and then reads the mask, each with a full barrier between;
//! - the deaf-waiter rule (I24, I37, R27, R28): a flush starts with interrupts on, and its waiter answers other CPUs'
//!   requests while it waits;
//! - a CPU that has another address space loaded answers without flushing: loading dropped what it had.

use crate::address::VirtRange;
use crate::address_space::Mm;

use crate::cpu::{CpuMask, CpuSet};
use crate::machine::{LocalFlush, Machine};
use crate::stats::Counter;
use crate::sync::atomic::{AtomicU64, Ordering, const_new, fence};

/// More pages than this are flushed by dropping the whole address space (spec 8.4).
const FLUSH_CEILING: u64 = 33;

/// A shootdown not answered for this long will never be.
const ANSWER_LIMIT_NANOS: u64 = 60_000_000_000;

/// An address space's side: its identity for flush requests, and who has it loaded.
#[repr(align(64))]
pub struct MmTlb {
    id: u64,
    cpus: CpuMask,
}

impl MmTlb {
    /// Of an address space nobody has loaded. `id` is never 0 and never used again.
    pub(crate) fn new(id: u64) -> Self {
        Self { id, cpus: CpuMask::new() }
    }

    /// The CPUs that have the address space loaded (`mm_cpumask`).
    pub fn cpus(&self) -> CpuSet {
        self.cpus.snapshot()
    }
}

/// A CPU's side; on lines of its own, because other CPUs write `pending` and `unanswered`.
#[repr(align(64))]
pub struct TlbCpu {
    /// Identity of the address space this CPU has loaded, 0 for the kernel's own. Only this CPU uses it.
    loaded: AtomicU64,
    /// The request this CPU has out: which address space, and from where to where. Written before the targets' `pending`
    /// bits, which publish it, and not again before all of them have answered.
    request_id: AtomicU64,
    request_start: AtomicU64,
    request_end: AtomicU64,
    /// Targets that have not answered this CPU's request.
    unanswered: AtomicU64,
    /// Initiators whose request this CPU has to serve.
    pending: AtomicU64,
}

impl TlbCpu {
    const_new! {
        /// Of a CPU with the kernel's table loaded.
        pub(crate) fn new() -> Self {
            Self {
                loaded: AtomicU64::new(0),
                request_id: AtomicU64::new(0),
                request_start: AtomicU64::new(0),
                request_end: AtomicU64::new(0),
                unanswered: AtomicU64::new(0),
                pending: AtomicU64::new(0),
            }
        }
    }

    /// The CPUs this one still waits for; for the report of a hang.
    pub fn unanswered(&self) -> CpuSet {
        CpuSet(self.unanswered.load(Ordering::Relaxed))
    }
}

/// Switches this CPU from one address space to another (`switch_mm`); `None` is the kernel's own, which an idle CPU loads
/// before it halts, so that nobody needs to wake it.
pub(crate) fn switch<M: Machine>(machine: M, from: Option<&Mm<M>>, to: Option<&Mm<M>>) {
    let irqs = machine.irq_save();
    let cpu = machine.cpu();
    if let Some(to) = to {
        // A full barrier: from here on a flusher sees this CPU, or this CPU's walks see the flusher's change (I32).
        to.tlb().cpus.insert(cpu);
    }
    machine.local().tlb.loaded.store(to.map_or(0, |mm| mm.tlb().id), Ordering::Relaxed);
    machine.load_pgd(to.map(Mm::pgd));
    if let Some(from) = from
        && to.is_none_or(|to| to.tlb().id != from.tlb().id)
    {
        from.tlb().cpus.remove(cpu);
    }
    machine.irq_restore(irqs);
}

/// Makes sure that no CPU translates any address of `range` by what the tables said before the call (I29). The caller has
/// changed the tables. Interrupts are on; a page-table lock may be held.
pub(crate) fn flush_range<M: Machine>(mm: &Mm<M>, range: VirtRange) {
    let machine = mm.machine();
    let me = machine.cpu();
    // Orders the table changes before the read of the mask; pairs with `CpuMask::insert` (I32).
    fence(Ordering::SeqCst);
    let loaded = mm.tlb().cpus.snapshot();
    let others = loaded.without(me);
    if !others.is_empty() {
        post(machine, mm.tlb().id, range, others);
    }
    if loaded.contains(me) {
        machine.flush_local(local_flush(range));
    }
    if !others.is_empty() {
        await_answers(machine);
    }
}

fn local_flush(range: VirtRange) -> LocalFlush {
    if range.pages() > FLUSH_CEILING { LocalFlush::AddressSpace } else { LocalFlush::Range(range) }
}

/// Publishes the request and interrupts the targets.
fn post<M: Machine>(machine: M, id: u64, range: VirtRange, targets: CpuSet) {
    debug_assert!(machine.irqs_enabled(), "a CPU that waits for answers must itself answer (I24, R28)");
    let me = machine.cpu();
    let local = machine.local();
    debug_assert!(local.tlb.unanswered().is_empty(), "two requests of one CPU");
    local.tlb.request_id.store(id, Ordering::Relaxed);
    local.tlb.request_start.store(range.start.0, Ordering::Relaxed);
    local.tlb.request_end.store(range.end.0, Ordering::Relaxed);
    local.tlb.unanswered.store(targets.0, Ordering::Relaxed);
    local.stats.bump(Counter::ShootdownsSent);
    for target in targets.iter() {
        // Release: publishes the request; pairs with the swap in `service`.
        machine.cpus().of(target).tlb.pending.fetch_or(1 << me.0, Ordering::Release);
        local.stats.bump(Counter::ShootdownTargets);
        machine.send_flush_ipi(target);
    }
}

/// Waits until every target has answered, serving other CPUs' requests meanwhile (R28).
fn await_answers<M: Machine>(machine: M) {
    let local = machine.local();
    let per_pause = machine.waiting_rule().polls_per_pause.max(1);
    let started = machine.now();
    let mut polls: u32 = 0;
    // Acquire: pairs with the answer in `service`; the targets' flushes are over when the caller goes on.
    while local.tlb.unanswered.load(Ordering::Acquire) != 0 {
        // With interrupts off, so that this and the flush interrupt do not count over each other.
        let irqs = machine.irq_save();
        service(machine);
        machine.irq_restore(irqs);
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(per_pause) {
            machine.pause();
            if machine.now().saturating_sub(started) > ANSWER_LIMIT_NANOS {
                machine.stuck("TLB shootdown: a CPU does not answer");
            }
        }
    }
}

/// Serves the flush requests of other CPUs that this one has pending. Called with interrupts off: by the flush interrupt,
/// and by whoever waits for answers itself.
pub fn service<M: Machine>(machine: M) {
    let me = machine.cpu();
    let local = machine.local();
    if local.tlb.pending.load(Ordering::Relaxed) == 0 {
        return;
    }
    // Acquire: the requests' contents; pairs with `post`.
    let initiators = CpuSet(local.tlb.pending.swap(0, Ordering::Acquire));
    for initiator in initiators.iter() {
        let request = &machine.cpus().of(initiator).tlb;
        if request.request_id.load(Ordering::Relaxed) == local.tlb.loaded.load(Ordering::Relaxed) {
            let range = VirtRange::new(
                request.request_start.load(Ordering::Relaxed),
                request.request_end.load(Ordering::Relaxed),
            );
            machine.flush_local(range.map_or(LocalFlush::AddressSpace, local_flush));
        }
        local.stats.bump(Counter::FlushesServed);
        // Release: the flush is over; pairs with `await_answers`. The request may be overwritten from here on.
        request.unanswered.fetch_and(!(1 << me.0), Ordering::Release);
    }
}
