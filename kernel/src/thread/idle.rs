//! What a CPU does when no thread wants to run: nothing, and as cheaply for the others as possible.
//!
//! The hooks bracket the whole idle period, not each halt: `enter` makes the CPU one that nobody needs to wake or wait
//! for (an extended quiescent state), `leave` ends that before a thread runs again. A CPU starts idle, so its first hook
//! is `leave`.

use arch_x86::interrupts;
use spin::Once;

use super::scheduler::{set_halting, yield_now};

/// Called by the idle thread with interrupts on.
#[derive(Clone, Copy)]
pub struct IdleHooks {
    /// A thread is about to run.
    pub leave: fn(),
    /// The CPU becomes idle.
    pub enter: fn(),
    /// The CPU is idle and about to halt: after `enter`, and after every interrupt of the idle period.
    pub tidy: fn(),
}

static HOOKS: Once<IdleHooks> = Once::new();

/// Registers the hooks, before the first CPU is idle. Only the first call has an effect.
pub fn set_hooks(hooks: IdleHooks) {
    HOOKS.call_once(|| hooks);
}

/// The idle thread. Enables interrupts.
///
/// # Panics
/// Without hooks.
pub fn run() -> ! {
    let Some(hooks) = HOOKS.get() else { panic!("a CPU is idle before it is told how") };
    interrupts::enable();
    loop {
        halt_until_ready(hooks.tidy);
        (hooks.leave)();
        yield_now();
        (hooks.enter)();
    }
}

fn halt_until_ready(tidy: fn()) {
    loop {
        tidy();
        interrupts::disable();
        if set_halting(true) {
            break;
        }
        interrupts::enable_and_halt();
    }
    set_halting(false);
    interrupts::enable();
}
