//! What the kernel's interrupt vectors mean, and calling a function on other CPUs.
//!
//! A call is a record on the caller's stack that the targets find through [`CALL`]. The caller sleeps until earlier calls
//! are over and until its targets have run the function, so its CPU answers other callers meanwhile (I37), and a vCPU
//! that the host does not run is not waited for by spinning.
//!
//! Rule: what a handler maps of high memory, on top of what the interrupted program has mapped, it ends before it returns.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use arch_x86::idt::exception;
use arch_x86::ipi::{self, Vector};
use arch_x86::machine::X86;
use arch_x86::{apic, interrupts, percpu, time};
use mm::config::CHECK_LOCK_ORDER;
use mm::cpu::{CpuId, CpuSet};
use mm::machine::Machine;
use spin::Once;

use crate::thread::{self, block_until};
use crate::watchdog;

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
    let mapped = X86.mapped();
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
    if CHECK_LOCK_ORDER && X86.mapped() != mapped {
        let (cpu, now) = (percpu::cpu().0, X86.mapped());
        panic!("cpu {cpu} had {mapped} frames mapped, and has {now} after a {vector:?} interrupt");
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
    /// How many CPUs have not run it yet. Each counts itself with release; the caller's acquire load of 0 is after all.
    pending: AtomicUsize,
}

/// The call under way. Set by its caller with release, found by targets with acquire; null when none is.
static CALL: AtomicPtr<Call> = AtomicPtr::new(ptr::null_mut());

/// Runs `function` on each CPU of `targets`, interrupts off, and returns when all have. The running CPU, if among
/// them, runs it too. Sleeps meanwhile.
///
/// # Panics
/// If a CPU does not answer in 20 s: it has had interrupts off all that time. Where a thread must not sleep.
pub fn call_on(targets: CpuSet, function: &(dyn Fn() + Sync)) {
    let here = percpu::cpu();
    let others = targets.without(here);
    if !others.is_empty() {
        let call = Call { function, pending: AtomicUsize::new(others.iter().count()) };
        let record = ptr::from_ref(&call).cast_mut().cast::<Call<'static>>();
        let deadline = time::now_nanos().saturating_add(CALL_LIMIT_NANOS);
        let has_turn = block_until(turn_key(), deadline, &mut || {
            CALL.compare_exchange(ptr::null_mut(), record, Ordering::AcqRel, Ordering::Relaxed).is_err()
        });
        assert!(has_turn, "cpu {} has waited too long for its turn to call", here.0);
        for cpu in others.iter() {
            send(cpu, Vector::Call);
        }
        let is_done = block_until(done_key(), deadline, &mut || call.pending.load(Ordering::Acquire) != 0);
        assert!(is_done, "{} CPUs have not run a call", call.pending.load(Ordering::Relaxed));
        // No target looks at the record any more: each counts itself after its last look.
        CALL.store(ptr::null_mut(), Ordering::Release);
        thread::wake(turn_key());
    }
    if targets.contains(here) {
        interrupts::without(function);
    }
}

/// What callers sleep on until they have their turn.
fn turn_key() -> usize {
    (&raw const CALL).addr()
}

/// What the caller that has its turn sleeps on until its targets are done; an address within `CALL` other than that.
fn done_key() -> usize {
    turn_key() + 1
}

fn answer_call() {
    let record = CALL.load(Ordering::Acquire);
    // SAFETY: a record stays in `CALL`, and its caller asleep, until all targets are counted. A CPU gets one call interrupt
    // for each time it is a target and is counted in it, so it is not counted yet and the record valid until below.
    let Some(call) = (unsafe { record.as_ref() }) else { return };
    (call.function)();
    if call.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
        thread::wake(done_key());
    }
}

fn send(cpu: CpuId, vector: Vector) {
    if ipi::send(cpu, vector).is_err() {
        panic!("{vector:?} cannot be sent to cpu {}", cpu.0);
    }
}

/// Wakes `cpu` if it halts.
pub fn kick(cpu: CpuId) {
    send(cpu, Vector::Kick);
}

mod tests;
