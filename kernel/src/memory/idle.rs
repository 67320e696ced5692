//! What `mm` has a CPU do that has nothing to do: nobody waits for it, and it frees what has waited long enough.

use arch_x86::machine::X86;
use mm::sync::rcu;

use super::MEMORY;
use crate::thread::IdleHooks;

pub(super) const HOOKS: IdleHooks = IdleHooks { leave: || rcu::exit_idle(X86), enter: || rcu::enter_idle(X86), tidy };

/// Once before each halt, so with every tick as long as something waits.
fn tidy() {
    if let Some(memory) = MEMORY.get() {
        memory.advance_deferred();
    }
}
