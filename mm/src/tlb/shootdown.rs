//! Asking other CPUs to flush, and waiting until all have.
//!
//! A request lies in its initiator's block. The initiator sets its own bit in each target's `pending`, interrupts it, and
//! waits until every target has cleared its bit in the initiator's `unanswered`.
//!
//! Rule kept, the deaf-waiter rule (I24, I37, R27, R28): a flush starts with interrupts on, and its waiter answers other
//! CPUs' requests while it waits.

use super::MmTlb;
use super::flush::{Request, apply};
use crate::address::{VirtAddr, VirtRange};
use crate::cpu::{CpuMask, CpuSet};
use crate::machine::Machine;
use crate::stats::Counter;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, const_new};

/// A shootdown not answered for this long will never be.
const ANSWER_LIMIT_NANOS: u64 = 60_000_000_000;

/// One CPU's request to others, and others' to it.
pub(super) struct Requests {
    /// The request this CPU has out, and whose address space it is about; null asks for nothing but an answer. Written before
    /// the targets' `pending` bits, which publish it, and not again before all of them have answered.
    mm: AtomicPtr<MmTlb>,
    start: AtomicUsize,
    end: AtomicUsize,
    stride: AtomicUsize,
    top_changed: AtomicBool,
    tlb_gen: AtomicUsize,
    /// Targets that have not answered this CPU's request.
    unanswered: CpuMask,
    /// Initiators whose request this CPU has to serve.
    pending: CpuMask,
}

impl Requests {
    const_new! {
        pub(super) fn new() -> Self {
            Self {
                mm: AtomicPtr::new(core::ptr::null_mut()),
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
                stride: AtomicUsize::new(0),
                top_changed: AtomicBool::new(false),
                tlb_gen: AtomicUsize::new(0),
                unanswered: CpuMask::new(),
                pending: CpuMask::new(),
            }
        }
    }

    pub(super) fn unanswered(&self) -> CpuSet {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Relaxed: published by the targets' `pending` bits.
    fn write(&self, what: Option<(&MmTlb, Request)>, targets: CpuSet) {
        debug_assert!(self.unanswered().is_empty(), "two requests of one CPU");
        let mm = what.map_or(core::ptr::null_mut(), |(mm, _)| core::ptr::from_ref(mm).cast_mut());
        self.mm.store(mm, Ordering::Relaxed);
        if let Some((_, request)) = what {
            self.start.store(request.range.start.0 as usize, Ordering::Relaxed);
            self.end.store(request.range.end.0 as usize, Ordering::Relaxed);
            self.stride.store(request.stride as usize, Ordering::Relaxed);
            self.top_changed.store(request.top_changed, Ordering::Relaxed);
            self.tlb_gen.store(request.tlb_gen, Ordering::Relaxed);
        }
        self.unanswered.store(targets, Ordering::Relaxed);
    }

    /// Relaxed: whoever reads has seen its `pending` bit.
    fn read(&self) -> Request {
        let address = |word: &AtomicUsize| VirtAddr(word.load(Ordering::Relaxed) as u64);
        Request {
            range: VirtRange { start: address(&self.start), end: address(&self.end) },
            stride: self.stride.load(Ordering::Relaxed) as u64,
            top_changed: self.top_changed.load(Ordering::Relaxed),
            tlb_gen: self.tlb_gen.load(Ordering::Relaxed),
        }
    }
}

/// Returns when every other CPU has taken an interrupt since the call, and so has left whatever it did with interrupts off.
/// Interrupts are on, also those of CPUs that wait for locks the caller holds (I24).
pub fn sync_all_cpus<M: Machine>(machine: M) {
    debug_assert!(machine.irqs_enabled(), "a CPU that waits for answers must itself answer (I24, R28)");
    let others = machine.online().without(machine.cpu());
    if !others.is_empty() {
        post(machine, None, others);
        await_answers(machine);
    }
}

/// Publishes a request, or the wish for an answer and no more, and interrupts the targets. [`await_answers`] follows.
pub(super) fn post<M: Machine>(machine: M, what: Option<(&MmTlb, Request)>, targets: CpuSet) {
    let me = machine.cpu();
    let local = machine.local();
    local.tlb.requests.write(what, targets);
    local.stats.bump(Counter::ShootdownsSent);
    for target in targets.iter() {
        // Release: publishes the request; pairs with the swap in `service`.
        machine.cpus().of(target).tlb.requests.pending.add(me, Ordering::Release);
        local.stats.bump(Counter::ShootdownTargets);
        machine.send_flush_ipi(target);
    }
}

/// Waits until every target has answered, serving other CPUs' requests meanwhile (R28).
pub(super) fn await_answers<M: Machine>(machine: M) {
    let requests = &machine.local().tlb.requests;
    let per_pause = machine.waiting_rule().polls_per_pause.max(1);
    let started = machine.now();
    let mut polls: u32 = 0;
    // Acquire: pairs with the answer in `service`; the targets' flushes are over when the caller goes on.
    while !requests.unanswered.load(Ordering::Acquire).is_empty() && !sabotaged!("answers") {
        // Relaxed: what is not seen yet is seen at a later poll, or by the interrupt.
        if !requests.pending.load(Ordering::Relaxed).is_empty() {
            // With interrupts off, so that this and the flush interrupt do not count over each other.
            let irqs = machine.irq_save();
            service(machine);
            machine.irq_restore(irqs);
        }
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
    // Acquire: the requests' contents; pairs with `post`. An exchange, since a plain load might be behind the interrupt that
    // says there is something, and nobody says so twice.
    let initiators = local.tlb.requests.pending.take_all(Ordering::Acquire);
    for initiator in initiators.iter() {
        let requests = &machine.cpus().of(initiator).tlb.requests;
        // SAFETY: the initiator holds a reference to the address space until this CPU, among others, has answered.
        if let Some(mm) = unsafe { requests.mm.load(Ordering::Relaxed).as_ref() } {
            apply(machine, mm, requests.read());
        }
        local.stats.bump(Counter::FlushesServed);
        // Release: the flush is over; pairs with `await_answers`. The request may be overwritten from here on.
        requests.unanswered.take_out(me, Ordering::Release);
    }
}
