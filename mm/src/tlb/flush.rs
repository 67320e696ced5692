//! A flush: what it drops, whom it reaches, and what each CPU it reaches does.
//!
//! Rules kept:
//! - when a flush returns, no CPU translates by what the tables said before it, except lazily, where nobody uses it (I29);
//! - a flush that frees tables reaches lazy CPUs too, since those still walk (I33, R25); another passes them by;
//! - a changed entry of a top table that CPUs latch is loaded again by each of them (I38, R31);
//! - generations may arrive out of order: a CPU drops single pages only if that brings it exactly from one generation to
//!   the next and up to date, else everything, and so never notes a generation it has skipped a part of (I31, R24).

use super::{MmTlb, shootdown, switch};
use crate::address::{VirtAddr, VirtRange};
use crate::address_space::Mm;
use crate::cpu::CpuSet;
use crate::machine::{LocalFlush, Machine, SlotOf};
use crate::pgtable::{EntrySlot, Level, PagingMode};
use crate::stats::Counter;
use crate::sync::atomic::{Ordering, REFRESH, fence, is_older};

/// More instructions than this are replaced by one that drops the whole address space (spec 8.4).
pub const FLUSH_CEILING: u64 = 33;

/// What has been changed in the tables of an address space, and so must be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbFlush {
    /// The addresses whose translations have changed.
    pub range: VirtRange,
    /// The smallest level an entry was changed at. One instruction drops what one entry of that level maps.
    pub stride: Level,
    /// Tables have been unhooked, or a huge leaf has changed its size: lazy CPUs have to be told, since their walkers go on.
    /// One page of the range below each table is enough, because any flush of a page drops every cached pointer to a
    /// table (spec 8.5).
    pub freed_tables: bool,
    /// An entry of a top table has changed that CPUs latch (spec 6.1): those that run on it load it again. Lazy ones do so when
    /// they come back, unless tables have been freed besides.
    pub top_changed: bool,
}

/// A flush as a CPU gets it: one generation of one address space.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) range: VirtRange,
    /// Bytes one instruction drops.
    pub(super) stride: u64,
    /// Only a load of the top table will do.
    pub(super) top_changed: bool,
    /// The generation the flush brings the address space to.
    pub(super) tlb_gen: usize,
}

impl Request {
    /// The flush by itself.
    fn ranged(&self) -> Option<LocalFlush> {
        let start = self.range.start.0 & !(self.stride - 1);
        let strides = (self.range.end.0 - start).div_ceil(self.stride);
        (strides <= FLUSH_CEILING && !self.top_changed)
            .then_some(LocalFlush::Range { range: self.range, stride: self.stride })
    }
}

/// Makes sure that no CPU translates any address of the pages in `range` by what their entries said before the call
/// (`flush_tlb_mm_range`, `flush_tlb_page`). The caller has changed PTEs. Interrupts are on; a page-table lock may be held.
pub(crate) fn flush_range<M: Machine>(mm: &Mm<M>, range: VirtRange) {
    flush_mm_range(mm, TlbFlush { range, stride: Level::Pte, freed_tables: false, top_changed: false });
}

/// Makes sure that no CPU translates by what the tables said before the call, within `what`. The caller has changed them.
/// Interrupts are on; a page-table lock may be held.
pub(crate) fn flush_mm_range<M: Machine>(mm: &Mm<M>, what: TlbFlush) {
    flush(mm.machine(), mm.tlb(), what);
}

/// As [`flush_mm_range`], of a PMD entry that pointed to a table. Where such an entry is two words, every CPU has besides taken
/// an interrupt when this returns, so that none still holds one half of it (R29, R30).
pub(crate) fn flush_and_sync<M: Machine>(mm: &Mm<M>, what: TlbFlush) {
    flush_to(mm.machine(), mm.tlb(), what, !<SlotOf<M> as EntrySlot>::ONE_ACCESS);
}

/// Makes sure that every CPU that runs on `mm` knows an entry of its top table that was none and is not any more, if CPUs latch
/// those: a CPU that does not know it faults for ever (R31). Interrupts are on; `page_table_lock` is held.
pub(crate) fn flush_top<M: Machine>(mm: &Mm<M>) {
    if M::Mode::LATCHED_TOP {
        let range = VirtRange { start: VirtAddr(0), end: M::Mode::USER_END };
        flush_mm_range(mm, TlbFlush { range, stride: M::Mode::TOP, freed_tables: false, top_changed: true });
    }
}

/// As [`flush_mm_range`], for the address space that `mm` belongs to.
pub fn flush<M: Machine>(machine: M, mm: &MmTlb, what: TlbFlush) {
    flush_to(machine, mm, what, false);
}

/// As [`flush`]; with `everyone` all CPUs are interrupted, whatever they have loaded.
fn flush_to<M: Machine>(machine: M, mm: &MmTlb, what: TlbFlush, everyone: bool) {
    debug_assert!(machine.irqs_enabled(), "a CPU that waits for answers must itself answer (I24, R28)");
    let me = machine.cpu();
    // Release, for the tables changed before; pairs with `MmTlb::tlb_gen`.
    let tlb_gen = mm.tlb_gen.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
    // Pairs with the fences in `switch`: whoever joins or stops being lazy is seen below, or sees the generation (I32).
    if !sabotaged!("flush-fence") {
        fence(Ordering::SeqCst);
    }
    let loaded = mm.cpus();
    let others = if everyone {
        machine.online().without(me)
    } else {
        targets(machine, loaded.without(me), what.freed_tables || tlb_gen.is_multiple_of(REFRESH))
    };
    let others = if sabotaged!("forget-a-cpu") { CpuSet(others.0 & others.0.wrapping_sub(1)) } else { others };
    let TlbFlush { range, top_changed, .. } = what;
    let request = Request { range, stride: M::Mode::entry_span(what.stride), top_changed, tlb_gen };
    if !others.is_empty() {
        shootdown::post(machine, Some((mm, request)), others);
    }
    if loaded.contains(me) {
        // With interrupts off, so that this and the flush interrupt do not see each other's halves.
        let irqs = machine.irq_save();
        apply(machine, mm, request);
        machine.irq_restore(irqs);
    }
    if !others.is_empty() {
        shootdown::await_answers(machine);
    }
}

/// Those of `loaded` that have to be told.
fn targets<M: Machine>(machine: M, loaded: CpuSet, lazy_too: bool) -> CpuSet {
    if lazy_too && !sabotaged!("lazy-cpus") {
        return loaded;
    }
    let lazy = |cpu: &crate::cpu::CpuId| machine.cpus().of(*cpu).tlb.is_lazy();
    let skipped = loaded.iter().filter(lazy).fold(CpuSet::default(), |set, cpu| CpuSet(set.0 | CpuSet::only(cpu).0));
    machine.local().stats.add(Counter::LazySkipped, u64::from(skipped.0.count_ones()));
    CpuSet(loaded.0 & !skipped.0)
}

/// Does on this CPU what `request` asks of those that have `mm` loaded. Interrupts are off.
pub(super) fn apply<M: Machine>(machine: M, mm: &MmTlb, request: Request) {
    let local = machine.local();
    if !local.tlb.has_loaded(mm) {
        // It has left since, and will find itself behind when it comes back.
        return;
    }
    if local.tlb.is_lazy() {
        local.stats.bump(Counter::LazyLeft);
        switch::switch_irqs_off(machine, None);
        return;
    }
    let asids = &local.tlb.asids;
    let (current, mm_gen) = (asids.tlb_gen(), mm.tlb_gen());
    if !is_older(current, request.tlb_gen) {
        return;
    }
    let is_next = request.tlb_gen == current.wrapping_add(1) && request.tlb_gen == mm_gen || sabotaged!("generations");
    match request.ranged().filter(|_| is_next) {
        Some(ranged) => {
            local.stats.bump(Counter::FlushesRanged);
            machine.flush_local(ranged);
        }
        None => {
            local.stats.bump(Counter::FlushesFull);
            machine.flush_local(LocalFlush::AddressSpace);
        }
    }
    asids.set_tlb_gen(mm_gen);
}
