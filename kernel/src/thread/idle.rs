//! What a CPU does when no thread wants to run: nothing, and as cheaply for the others as possible.
//!
//! The hooks bracket the whole idle period, not each halt: `enter` makes the CPU one that nobody needs to wake or wait
//! for (the kernel's own page table, an extended quiescent state), `leave` ends that before a thread runs again.

use arch_x86::interrupts;
use spin::Once;

use super::scheduler::{set_halting, yield_now};

/// Called by the idle thread with interrupts on.
#[derive(Clone, Copy)]
pub struct IdleHooks {
    /// The CPU becomes idle.
    pub enter: fn(),
    /// A thread is about to run.
    pub leave: fn(),
}

static HOOKS: Once<IdleHooks> = Once::new();

/// Registers the hooks. Only the first call has an effect.
pub fn set_hooks(hooks: IdleHooks) {
    HOOKS.call_once(|| hooks);
}

/// The idle thread. Enables interrupts.
pub fn run() -> ! {
    interrupts::enable();
    loop {
        yield_now();
        let hooks = HOOKS.get();
        if let Some(hooks) = hooks {
            (hooks.enter)();
        }
        halt_until_ready();
        if let Some(hooks) = hooks {
            (hooks.leave)();
        }
    }
}

fn halt_until_ready() {
    loop {
        interrupts::disable();
        if set_halting(true) {
            break;
        }
        interrupts::enable_and_halt();
    }
    set_halting(false);
    interrupts::enable();
}
