//! Clearing the entries of a range (`unmap_page_range`), for `munmap` and for `madvise(DONTNEED)`.
//!
//! Rules kept: an entry is judged and cleared under the lock of its slot, by one exchange (I35), and its page goes to the
//! gather. The lock is given up now and then: when the gather is full, when somebody waits for the lock, when another
//! thread should run (spec 2.3). What is waited for or allocated, is so without the lock (I25).
//!
//! *None slots.* `munmap` looks at none slots under their lock too: its regions are detached, and a fault that still
//! believes in one has stored already, and is seen, or will recheck under that lock and give up. `DONTNEED` leaves the
//! regions as they are: a fault may fill a slot at any moment, and whether just before or just after makes no difference
//! to anybody. What was mapped before the call it finds all the same. A PTE slot shows none for a moment while a fault
//! replaces its page (R17), so PTE slots are judged under their lock; a slot above shows none only when nothing is below
//! (I28), and needs none.

use super::reclaim::{try_unlink_empty, try_unlink_held};
use super::remove::{Regions, entry_end, lowest_table_of};
use super::{HugeLocked, Level, PagingMode, PteLocked, Slot, pte_offset_map_lock};
use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::address_space::{Mm, MmapHeld};
use crate::config::{PAGE_SHIFT, PAGE_SIZE};
use crate::gather::MmuGather;
use crate::machine::Machine;
use crate::sync::rcu;

/// Entries cleared between two looks at who else needs the lock or the CPU.
const PATIENCE: u64 = 32;

/// How far one hold of a PTE lock has brought it.
struct Step {
    /// Where to go on.
    next: VirtAddr,
    /// The gather must be flushed first.
    full: bool,
    /// A PTE table that has been unlinked.
    unlinked: Option<Pfn>,
    /// The table that ends here may be empty, but could not be unlinked under its lock.
    perhaps_empty: bool,
}

impl Step {
    const fn to(next: VirtAddr) -> Self {
        Self { next, full: false, unlinked: None, perhaps_empty: false }
    }
}

/// Clears every entry of `range`; the pages and tables belong to `gather` then. Takes and drops PTE locks, and PMD locks
/// where tables go. With [`Regions::Detached`] `mmap_lock` is held for writing.
pub(crate) fn unmap_page_range<M: Machine>(
    mm: &Mm<M>,
    _held: &impl MmapHeld,
    range: VirtRange,
    regions: Regions,
    gather: &mut MmuGather<'_, M>,
) {
    let mut address = range.start;
    while address < range.end {
        let step = zap_pmd(mm, range, address, regions, gather);
        let unlinked = step.unlinked.or_else(|| step.perhaps_empty.then(|| try_unlink_empty(mm, address)).flatten());
        if let Some(pfn) = unlinked {
            gather.pte_free_tlb(pfn, address);
        }
        if step.full {
            gather.flush();
        }
        mm.machine().cond_resched();
        address = step.next;
    }
}

/// Clears what one PMD slot leads to, from `address` on, as far as one hold of the PTE lock goes (`zap_pte_range`).
fn zap_pmd<M: Machine>(
    mm: &Mm<M>,
    range: VirtRange,
    address: VirtAddr,
    regions: Regions,
    gather: &mut MmuGather<'_, M>,
) -> Step {
    let rcu = rcu::read_lock(mm.machine());
    let (table, entry) = lowest_table_of(mm, &rcu, address, regions);
    let pmd = table.slot(address);
    let end = entry_end::<M>(table.level(), address, range.end);
    if entry.is_huge() {
        return zap_huge(mm, pmd, range, address, regions, gather);
    }
    if table.level() != Level::Pmd || !entry.is_table() {
        return Step::to(end);
    }
    gather.reserve((end.0 - address.0) >> PAGE_SHIFT);
    let Some(mut pte) = pte_offset_map_lock(mm, pmd, address) else {
        // Another CPU has taken the table away, and perhaps there is a new one (spec 1.4). What is no table has nothing
        // below it: a huge page is a fault's, of a moment ago.
        return Step::to(if pmd.load().is_table() { address } else { end });
    };
    let mut next = address;
    let mut full = false;
    let mut cleared = 0;
    while next < end && !full {
        pte.move_to(next);
        full = zap_pte(mm, &pte, next, gather);
        next = VirtAddr(next.0 + PAGE_SIZE as u64);
        cleared += 1;
        if cleared % PATIENCE == 0 && (pte.is_contended() || mm.machine().need_resched()) {
            break;
        }
    }
    let start = VirtAddr(address.0 & !(M::Mode::entry_span(Level::Pmd) - 1));
    let whole = range.start <= start && next.0 == start.0 + M::Mode::entry_span(Level::Pmd);
    if regions == Regions::Detached || !whole {
        return Step { full, ..Step::to(next) };
    }
    // Cleared from its first to its last entry under one hold of the lock, the table is empty.
    let unlinked = if address == start { try_unlink_held(mm, &pte, pmd) } else { None };
    Step { next, full, unlinked, perhaps_empty: unlinked.is_none() }
}

/// Clears the huge entry of `slot` if all it translates lies in `range` (`zap_huge_pmd`), else splits it. The deposit goes at
/// once: nobody has seen it (`deposit`).
///
/// Where faults go on, the next may put small pages in its place. So no CPU may know the huge one any more when the lock
/// drops (I34). Other ways to small pages are closed until the gather's end: the region is gone, or wants huge pages only.
fn zap_huge<M: Machine>(
    mm: &Mm<M>,
    slot: Slot<'_, M>,
    range: VirtRange,
    address: VirtAddr,
    regions: Regions,
    gather: &mut MmuGather<'_, M>,
) -> Step {
    let Some(huge) = HugeLocked::lock(mm, slot, address).and_then(|huge| huge.inside(range)) else {
        return Step::to(address);
    };
    let (span, level) = (huge.span(), huge.level());
    // Freed last, without the lock.
    let (entry, _deposit) = huge.clear();
    let full = gather.remove_huge_page(entry.pfn(), span.start, level);
    if regions == Regions::Kept && !entry.is_explicit() {
        gather.invalidate();
    }
    drop(huge);
    Step { full, ..Step::to(span.end) }
}

/// Clears one entry; its page belongs to the gather then. True when the gather is full.
fn zap_pte<M: Machine>(mm: &Mm<M>, pte: &PteLocked<'_, M>, address: VirtAddr, gather: &mut MmuGather<'_, M>) -> bool {
    if pte.load().is_none() {
        return false;
    }
    let entry = pte.clear();
    if entry.is_special() {
        gather.widen(address);
        return false;
    }
    mm.memory().memmap().page(entry.pfn()).unmap();
    gather.remove_page(entry.pfn(), address)
}
