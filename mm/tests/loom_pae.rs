//! Models of an entry that is two words (spec 6.2): the real code of `SlotPae`, and of `sync_all_cpus` where a slot is filled
//! again. A model named `…_is_found` is the check on the check: a rule is broken on purpose, and the model has to fail.
#![cfg(loom)]

mod loom_machine;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom_machine::{Cpu, Model};
use mm::address::Pfn;
use mm::machine::Machine;
use mm::pgtable::{Entry, EntrySlot, Protection, SlotPae};
use mm::tlb;

/// Tables whose pointers have the same low word, and one whose pointer has neither word in common with them.
const ONE: Entry = Entry::table(Pfn(0x12345 + (3 << 20)));
const OTHER: Entry = Entry::table(Pfn(0x12345 + (5 << 20)));
const THIRD: Entry = Entry::table(Pfn(0x23456 + (7 << 20)));

/// A slot, and the CPUs that are done.
struct Shared {
    slot: SlotPae,
    done: AtomicUsize,
}

impl Shared {
    fn new(entry: Entry) -> Self {
        Self { slot: SlotPae::new(entry), done: AtomicUsize::new(0) }
    }

    /// This CPU does no more than answer until the other does no more either.
    fn answer(&self, cpu: Cpu) {
        self.done.fetch_add(1, Ordering::AcqRel);
        while self.done.load(Ordering::Acquire) < 2 {
            cpu.pause();
        }
    }
}

/// CPU 0 does `write`, CPU 1 does `read`, with interrupts off.
fn race(first: Entry, write: fn(&SlotPae, Cpu), read: fn(&SlotPae)) {
    Model::new(2, 0).run(
        move || Shared::new(first),
        move |shared, cpu| {
            if cpu.cpu().index() == 0 {
                write(&shared.slot, cpu);
            } else {
                let irqs = cpu.irq_save();
                read(&shared.slot);
                cpu.irq_restore(irqs);
            }
            shared.answer(cpu);
        },
        |_, _| (),
    );
}

/// Fails if the slot seems to hold what it never did (I40).
fn sees_no_mix(slot: &SlotPae) {
    let seen = slot.load();
    assert!([Entry::NONE, ONE, OTHER, THIRD].contains(&seen), "a mix: {seen:?}");
}

/// Has the slot point to three tables in turn.
fn refill(slot: &SlotPae, sync: impl Fn()) {
    assert_eq!(slot.swap(Entry::NONE), ONE);
    sync();
    slot.store(THIRD);
    assert_eq!(slot.swap(Entry::NONE), THIRD);
    sync();
    slot.store(OTHER);
}

/// R29, R30: a slot that pointed to one table and soon points to others, which a CPU reads that has nothing to do with the
/// address space. The first and the last pointer have the same low word, so that to look at it twice does not help:
///
/// ```text
///   CPU 1: reads the low word of the first
///                                CPU 0: takes it out, stores the second
///   CPU 1: reads the high word
///                                CPU 0: takes the second out, stores the third
///   CPU 1: reads the low word again; it is the same
/// ```
///
/// CPU 0 has all CPUs take an interrupt before it fills the slot again, and CPU 1 takes none before it has read all.
#[test]
fn a_slot_that_is_filled_again_is_never_seen_mixed() {
    race(ONE, |slot, cpu| refill(slot, || tlb::sync_all_cpus(cpu)), sees_no_mix);
}

#[test]
#[should_panic(expected = "a mix")]
fn a_slot_filled_again_at_once_is_found() {
    race(ONE, |slot, _| refill(slot, || ()), sees_no_mix);
}

/// The high word comes first, so that a low word with P in it has its high word beside it.
#[test]
fn a_slot_that_is_filled_is_never_seen_half() {
    race(Entry::NONE, |slot, _| slot.store(OTHER), sees_no_mix);
}

/// A page that may be stored to and executed, and the same that may only be read: both words differ.
const BOTH: Protection = Protection { write: true, execute: true };
const EXECUTABLE: Entry = Entry::page(Pfn(0x54321), BOTH);
const PLAIN: Entry = Entry::page(Pfn(0x54321), Protection::READ);

/// R17, I40: an entry whose high word changes is for a moment none, and never a third one.
#[test]
fn an_entry_that_changes_in_both_words_is_the_one_or_the_other_or_none() {
    race(
        EXECUTABLE,
        |slot, _| assert_eq!(slot.compare_exchange(EXECUTABLE, PLAIN), Ok(())),
        |slot| {
            let seen = slot.load();
            assert!([Entry::NONE, EXECUTABLE, PLAIN].contains(&seen), "a mix: {seen:?}");
        },
    );
}

/// I28: a huge one is never none.
#[test]
fn a_huge_entry_that_changes_in_both_words_is_never_none() {
    const BEFORE: Entry = Entry::huge_page(Pfn(0x54200), BOTH);
    const AFTER: Entry = Entry::huge_page(Pfn(0x54200), Protection::READ);
    race(
        BEFORE,
        |slot, _| assert_eq!(slot.compare_exchange(BEFORE, AFTER), Ok(())),
        |slot| {
            let seen = slot.load();
            assert!(seen.is_huge(), "{seen:?}");
            assert!(!seen.is_present() || seen == BEFORE || seen == AFTER, "{seen:?}");
        },
    );
}

/// What a walker does for a store: sets D, in one step with the check that the entry is still there.
fn store_through(slot: &SlotPae) -> bool {
    let mut entry = slot.load();
    while entry.is_present() {
        match slot.compare_exchange(entry, entry.touched(true)) {
            Ok(()) => return true,
            Err(current) => entry = current,
        }
    }
    false
}

/// A page that nobody has stored to.
const CLEAN: Entry = Entry::page(Pfn(0x54321), Protection { write: false, execute: false });

/// CPU 0 does `take`, which returns what it took out, while CPU 1's walker stores through the entry.
fn no_store_is_lost(take: fn(&SlotPae) -> Entry) {
    Model::new(2, 0).run(
        || (SlotPae::new(CLEAN), AtomicUsize::new(0)),
        move |(slot, outcome), cpu| {
            let mine = if cpu.cpu().index() == 0 {
                usize::from(take(slot).is_dirty())
            } else {
                usize::from(store_through(slot)) << 1
            };
            outcome.fetch_add(mine, Ordering::AcqRel);
        },
        |(slot, outcome), _| {
            let outcome = outcome.load(Ordering::Acquire);
            assert!(outcome & 2 == 0 || outcome & 1 != 0 || slot.load().is_dirty(), "a store is lost");
        },
    );
}

/// I35, R19: D is in the low word, which alone is exchanged.
#[test]
fn clearing_against_a_store() {
    no_store_is_lost(|slot| slot.swap(Entry::NONE));
}

#[test]
#[should_panic(expected = "a store is lost")]
fn clearing_by_a_load_and_a_store_is_found() {
    no_store_is_lost(|slot| {
        let entry = slot.load();
        slot.store(Entry::NONE);
        entry
    });
}

/// I35 where the high word changes too: the new entry has the D bit that the old one got.
#[test]
fn a_change_of_both_words_against_a_store() {
    no_store_is_lost(|slot| {
        let mut old = slot.load();
        while let Err(current) =
            slot.compare_exchange(old, old.with_protection(Protection { write: false, execute: true }))
        {
            old = current;
        }
        old
    });
}
