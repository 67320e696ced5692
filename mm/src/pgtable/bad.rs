//! Entries above the PTE level that are neither none, nor a pointer to a table, nor a huge page: somebody has written where
//! he should not have.
//!
//! Rule: a bad entry is reported and cleared by whoever finds it first, once, and is none from then on (spec 1.3). This is
//! the one store to an entry without its lock (I1): the finder may hold any lock, and nobody stores over an entry that is
//! not none but by exchange, so the exchange below takes nothing away but the bad entry itself. What the entry pointed to
//! stays where it is.
//!
//! Of two words, the exchange compares first the high one. Another finder held up in between may so take out what has come
//! instead, if that has the same low word: a table a multiple of 4 GiB away, in a slot that was corrupt a moment before.

use super::{Entry, Level, Slot};
use crate::machine::Machine;
use crate::stats::Counter;

/// The entry of `slot`, from one read; none in place of a bad one (`pmd_none_or_clear_bad`). Takes no lock.
pub(super) fn entry_or_clear_bad<M: Machine>(machine: M, slot: Slot<'_, M>) -> Entry {
    let raw = slot.load_raw_stable();
    let entry = slot.logical(raw);
    let level = slot.table().level();
    if !is_bad(entry, level) {
        return entry;
    }
    if slot.clear_raw(raw) {
        machine.local().stats.bump(Counter::BadEntries);
        machine.report_bad_entry(level, raw);
    }
    // Whatever came instead meanwhile is for the next look.
    Entry::NONE
}

fn is_bad(entry: Entry, level: Level) -> bool {
    let may_be_huge = matches!(level, Level::Pmd | Level::Pud);
    entry.is_present() && !entry.is_table() && !(entry.is_huge() && may_be_huge)
}

#[cfg(all(test, not(loom)))]
mod tests;
