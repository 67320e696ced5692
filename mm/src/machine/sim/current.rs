//! Which simulated CPU the host thread runs as.

use crate::cpu::CpuId;
#[cfg(shuttle)]
use shuttle::thread_local;
use std::cell::Cell;

/// What every machine does for a thread that runs as one of its CPUs, whatever its paging mode.
pub(super) trait Passage: Sync {
    /// The CPU passes a point where anything may come between.
    fn passes(&'static self, cpu: CpuId);
}

type Current = Option<(&'static dyn Passage, CpuId)>;

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(None) };
}

/// Has this thread run as `cpu` of `machine` until the returned value is dropped.
pub(super) fn become_cpu(machine: &'static dyn Passage, cpu: CpuId) -> Became {
    Became(CURRENT.with(|current| current.replace(Some((machine, cpu)))))
}

/// Restores what the thread ran as before.
pub(super) struct Became(Current);

impl Drop for Became {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(self.0));
    }
}

/// The CPU of `machine` this thread runs as.
pub(super) fn cpu_of(machine: &dyn Passage) -> Option<CpuId> {
    let (current, cpu) = CURRENT.with(Cell::get)?;
    std::ptr::addr_eq(current, machine).then_some(cpu)
}

/// The CPU this thread runs as, if any, passes a point where anything may come between.
pub(super) fn passes() {
    if let Some((machine, cpu)) = CURRENT.with(Cell::get) {
        machine.passes(cpu);
    }
}
