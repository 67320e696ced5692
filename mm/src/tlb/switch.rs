//! Loading an address space on a CPU, keeping one lazily under a kernel thread, and leaving it.
//!
//! Rules kept:
//! - joiner and flusher, at least one sees the other (I32, R23): the joiner enters the mask, then reads the generation;
//!   the flusher raises the generation, then reads the mask; each with a full barrier between. A CPU on its way back from
//!   laziness does the same with `is_lazy` in the mask's place (R26).
//! - a CPU is in the mask of what it has loaded, from before the load until after the next one. It leaves at once, unlike in
//!   spec 8.4: nobody needs to tell a CPU that has left anything, the generation does when it comes back.
//! - a lazy CPU holds no reference. It stays in the mask, and the last owner of the address space interrupts it off before
//!   anything is freed (I36, R37). With interrupts off it cannot be interrupted off, and may so rely on what it has loaded.
//! - an idle CPU is not lazy: it loads the kernel's table before it halts, so that nobody needs to wake it.

use super::asid::Found;
use super::flush::{TlbFlush, flush};
use super::{MmTlb, TlbCpu};
use crate::address::{VirtAddr, VirtRange};
use crate::machine::{LocalFlush, Machine, PgdLoad};
use crate::pgtable::{Level, PagingMode};
use crate::stats::Counter;
use crate::sync::atomic::{Ordering, fence};

/// Has this CPU load `to`, or the kernel's own table for `None` (`switch_mm`).
///
/// # Safety
///
/// `to` stays in place until this CPU has left it: it is kept by a reference of the running thread while that runs, and
/// after [`enter_lazy`] by [`evict_lazy`], which comes before its end.
pub unsafe fn switch<M: Machine>(machine: M, to: Option<&MmTlb>) {
    let irqs = machine.irq_save();
    switch_irqs_off(machine, to);
    machine.irq_restore(irqs);
}

/// As [`switch`], with interrupts off.
pub(super) fn switch_irqs_off<M: Machine>(machine: M, to: Option<&MmTlb>) {
    let cpu = machine.cpu();
    let local = machine.local();
    let tlb = &local.tlb;
    let was_lazy = tlb.is_lazy.load(Ordering::Relaxed);
    if was_lazy {
        // Before the barrier that follows on each way, which orders it before the read of a generation (R26).
        tlb.is_lazy.store(false, Ordering::Release);
    }
    let from = tlb.loaded.load(Ordering::Relaxed);
    match to {
        Some(to) if tlb.has_loaded(to) => {
            if was_lazy {
                catch_up(machine, to);
            }
            return;
        }
        Some(to) => join(machine, to),
        None if from.is_null() => return,
        None => machine.load_pgd(PgdLoad::Kernel),
    }
    tlb.set_loaded(to);
    // SAFETY: this CPU is in the mask of what it had loaded. While its thread was in it, a reference of the thread's keeps
    // it until this returns; if it was lazy, whoever ends it waits for this CPU's answer first, and interrupts are off.
    if let Some(from) = unsafe { from.as_ref() } {
        // The last access: from here on it may go.
        from.cpus.remove(cpu);
    }
}

/// Enters the mask of `to` and loads it, with what the TLB has kept of it if that is current.
fn join<M: Machine>(machine: M, to: &MmTlb) {
    let local = machine.local();
    to.cpus.insert(machine.cpu());
    // Pairs with the fence in `flush`: either the flusher sees this CPU in the mask, or this CPU its generation (I32, R23).
    if !sabotaged!("join-fence") {
        fence(Ordering::SeqCst);
    }
    let count = machine.asids();
    let (asid, found) = local.tlb.asids.take(count, to.ctx_id, to.tlb_gen());
    local.stats.bump(match found {
        Found::Current => Counter::AsidCurrent,
        Found::Behind => Counter::AsidBehind,
        Found::Nothing => Counter::AsidNew,
    });
    machine.load_pgd(PgdLoad::User { pgd: to.pgd, asid, keep: count > 1 && found == Found::Current });
}

/// This CPU stops being lazy on `mm`, whose flushes may have passed it by.
fn catch_up<M: Machine>(machine: M, mm: &MmTlb) {
    let asids = &machine.local().tlb.asids;
    // Pairs with the fence in `flush`: either the flusher sees a CPU that is not lazy, or this CPU its generation (R26).
    fence(Ordering::SeqCst);
    let tlb_gen = mm.tlb_gen();
    if asids.tlb_gen() != tlb_gen && !sabotaged!("lazy-return") {
        machine.flush_local(LocalFlush::AddressSpace);
        asids.set_tlb_gen(tlb_gen);
        machine.local().stats.bump(Counter::LazyBehind);
    }
}

/// A kernel thread is about to run on this CPU: what is loaded stays loaded, unused (`enter_lazy_tlb`). The CPU stays in
/// the mask, but no flush interrupts it unless it frees tables, which this CPU might still walk speculatively (I33, R25).
/// No user address may be accessed until [`switch`].
pub fn enter_lazy<M: Machine>(machine: M) {
    let tlb: &TlbCpu = &machine.local().tlb;
    if !tlb.loaded.load(Ordering::Relaxed).is_null() {
        // Release: user accesses come before. A flusher that does not see it yet interrupts for nothing.
        tlb.is_lazy.store(true, Ordering::Release);
    }
}

/// Has every CPU that is lazy on `mm` leave it, before it is freed (I36, R37). Nobody has a reference to `mm` any more, so
/// nobody can load it again. Interrupts are on.
pub(crate) fn evict_lazy<M: Machine>(machine: M, mm: &MmTlb) {
    // Relaxed would do: a CPU entered the mask before the reference it did so with was dropped.
    if !mm.cpus().is_empty() && !sabotaged!("lazy-exit") {
        let range = VirtRange { start: VirtAddr(0), end: M::Mode::USER_END };
        flush(machine, mm, TlbFlush { range, stride: Level::Pte, freed_tables: true, top_changed: false });
    }
    assert!(mm.cpus().is_empty(), "an address space dies while a CPU has it loaded (I36)");
}
