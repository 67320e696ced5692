//! What the kernel's interrupt vectors mean, and calling a function on other CPUs.
//!
//! A call is a record on the caller's stack that the targets find through [`CALL`]. The caller waits with interrupts on
//! for the calls before its own and for its targets, so two callers never wait for each other's deaf CPU (I37).

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use arch_x86::idt::exception;
use arch_x86::ipi::{self, Vector};
use arch_x86::{apic, interrupts, percpu, time};
use mm::cpu::{CpuId, CpuSet};
use spin::Once;

use crate::{thread, watchdog};

/// Timer interrupts a second on each CPU.
pub const TICKS_PER_SECOND: u64 = 100;

/// How long a CPU may take to run a called function before the machine counts as broken. Generous: the host may leave
/// a vCPU waiting.
const CALL_LIMIT_NANOS: u64 = 20_000_000_000;

/// Called in the interrupts of the same name, with interrupts off.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Another CPU wants translations flushed here.
    pub flush: fn(),
    /// After every timer, kick, call and flush interrupt.
    pub after_any: fn(),
}

static HOOKS: Once<Hooks> = Once::new();

/// Registers the hooks. Only the first call has an effect.
pub fn set_hooks(hooks: Hooks) {
    HOOKS.call_once(|| hooks);
}

/// Starts the running CPU's timer.
pub fn start_timer() {
    apic::start_periodic_timer(Vector::Timer as u8, time::apic_timer_ticks(1_000_000_000 / TICKS_PER_SECOND));
}

/// Serves an interrupt; runs with interrupts off.
pub fn handle(number: u64) {
    let Some(vector) = Vector::from_number(number) else {
        unexpected(number);
        return;
    };
    match vector {
        // Not an interrupt in service: it must not be ended.
        Vector::Spurious => return,
        Vector::Error => log::error!("local APIC error {:#x}", apic::take_errors()),
        Vector::Timer => {
            watchdog::tick();
            thread::tick();
        }
        Vector::Kick => {}
        Vector::Call => answer_call(),
        Vector::Flush => {
            if let Some(hooks) = HOOKS.get() {
                (hooks.flush)();
            }
        }
    }
    if let Some(hooks) = HOOKS.get() {
        (hooks.after_any)();
    }
    apic::end_of_interrupt();
}

fn unexpected(number: u64) {
    let legacy = u64::from(ipi::LEGACY_FIRST)..u64::from(ipi::LEGACY_FIRST + ipi::LEGACY_COUNT);
    if legacy.contains(&number) {
        // The masked controllers raise nothing but their own spurious interrupts, which want no answer.
        return;
    }
    debug_assert!(number >= exception::COUNT);
    log::warn!("interrupt {number:#x} has no meaning");
    apic::end_of_interrupt();
}

/// A function that other CPUs are to run.
struct Call<'a> {
    function: &'a (dyn Fn() + Sync),
    /// CPUs that have not run it yet. Each clears its bit with release; the caller's acquire load of 0 is after all.
    pending: AtomicU64,
}

/// The call under way. Set by its caller with release, found by targets with acquire; null when none is.
static CALL: AtomicPtr<Call> = AtomicPtr::new(ptr::null_mut());

/// Runs `function` on each CPU of `targets`, interrupts off, and returns when all have. The running CPU, if among
/// them, runs it too.
///
/// # Panics
/// If a CPU does not answer in 20 s: it has had interrupts off all that time. Also if called with interrupts off.
pub fn call_on(targets: CpuSet, function: &(dyn Fn() + Sync)) {
    assert!(interrupts::enabled(), "a CPU that waits for others must answer them");
    let here = percpu::cpu();
    let others = targets.without(here);
    if !others.is_empty() {
        let call = Call { function, pending: AtomicU64::new(others.0) };
        let record = ptr::from_ref(&call).cast_mut().cast::<Call<'static>>();
        let give_up = time::now_nanos().saturating_add(CALL_LIMIT_NANOS);
        wait_until(give_up, "its turn to call", || {
            CALL.compare_exchange(ptr::null_mut(), record, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        for cpu in others.iter() {
            if ipi::send(cpu, Vector::Call).is_err() {
                panic!("the call for cpu {} cannot be sent", cpu.0);
            }
        }
        wait_until(give_up, "other CPUs to run a call", || call.pending.load(Ordering::Acquire) == 0);
        // From here on no target looks at the record: each has cleared its bit after its last look.
        CALL.store(ptr::null_mut(), Ordering::Release);
    }
    if targets.contains(here) {
        interrupts::without(function);
    }
}

fn wait_until(give_up: u64, what: &str, mut done: impl FnMut() -> bool) {
    while !done() {
        assert!(time::now_nanos() < give_up, "cpu {} waited too long for {what}", percpu::cpu().0);
        core::hint::spin_loop();
    }
}

fn answer_call() {
    let mine = CpuSet::only(percpu::cpu()).0;
    let record = CALL.load(Ordering::Acquire);
    // SAFETY: a record stays in `CALL` until its caller has seen all bits cleared. If it is not null and this CPU's bit
    // is set, it stays until this CPU clears the bit below. If the bit is clear, the interrupt is a late one of an
    // earlier call, and the record may be on its way out: but a CPU has one call interrupt for each time its bit was
    // set, and clears the bit in that interrupt, so the bit is set.
    let Some(call) = (unsafe { record.as_ref() }) else { return };
    if call.pending.load(Ordering::Acquire) & mine != 0 {
        (call.function)();
        call.pending.fetch_and(!mine, Ordering::Release);
    }
}

/// Wakes `cpu` if it halts.
pub fn kick(cpu: CpuId) {
    if ipi::send(cpu, Vector::Kick).is_err() {
        panic!("the kick for cpu {} cannot be sent", cpu.0);
    }
}

mod tests;
