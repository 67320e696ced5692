//! The locks of `mm` in the reports of panics and hangs.

use arch_x86::machine::X86;
use mm::cpu::CpuId;
use mm::machine::Machine;

use crate::report::LockUse;

/// Lists the locks of `mm` that `cpu` holds or waits for. Takes none.
pub(super) fn list(cpu: CpuId, visit: &mut dyn FnMut(LockUse)) {
    let local = X86.cpus().of(cpu);
    for held in local.held.iter() {
        visit(LockUse { what: held.class.description(), address: held.lock, waits: false, ticket: None });
    }
    if let Some(wait) = local.parking.waiting_for() {
        visit(LockUse { what: wait.class.description(), address: wait.lock, waits: true, ticket: wait.ticket });
    }
}
