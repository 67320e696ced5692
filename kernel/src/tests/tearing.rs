//! Entries of two words, read by all other CPUs while one writes them: nobody sees half of one with half of another (I40).
//!
//! Few accesses of two CPUs meet by chance, so writers stop between their stores, and readers between their loads, until the
//! others are where the test wants them. All but the last test try PAE's slots, with any page tables.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use arch_x86::machine::X86;
use mm::address::Pfn;
use mm::config::NR_CPUS;
use mm::machine::{Machine, SlotOf};
use mm::pgtable::{Entry, EntrySlot, SlotPae};
use mm::tlb::sync_all_cpus;

use super::support::{DEAF_NANOS, TABLE, await_within, first_cpus, map_anonymous, needs_a_second_cpu, pages, write};
use crate::harness::{Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, enter, memory};
use crate::smp::online;
use crate::workload::crew;

/// Pointers to three tables. The first and the last have the same low word, and no other two words are the same: half of one
/// with half of another leads to a fourth frame.
const POINTERS: [Entry; 3] = [
    Entry::table(Pfn(0x12345 + (3 << 20))),
    Entry::table(Pfn(0x23456 + (7 << 20))),
    Entry::table(Pfn(0x12345 + (5 << 20))),
];

fn is_mix(seen: Entry) -> bool {
    !seen.is_none() && !POINTERS.contains(&seen)
}

/// Does `read` with interrupts off, as a lookup reads a slot.
fn deaf<R>(read: impl FnOnce() -> R) -> R {
    let irqs = X86.irq_save();
    let seen = read();
    X86.irq_restore(irqs);
    seen
}

/// A way to store an entry, with something done between its words.
type Store = fn(&SlotPae, Entry, &dyn Fn());

fn in_order(slot: &SlotPae, entry: Entry, between: &dyn Fn()) {
    slot.store_in_steps(entry, between);
}

fn in_the_wrong_order(slot: &SlotPae, entry: Entry, between: &dyn Fn()) {
    // SAFETY: an entry is two words, low and high, which are atomics.
    let words: &[AtomicU32; 2] = unsafe { &*(&raw const *slot).cast() };
    words[0].store(entry.0 as u32, Ordering::Release);
    between();
    words[1].store((entry.0 >> 32) as u32, Ordering::Release);
}

/// The CPUs that have seen a mix while CPU 0 had a slot point to one table after another, and waited between the two words until
/// all others had looked.
fn readers_of_mixes(store: Store) -> Result<usize, Stop> {
    let slot = SlotPae::new(POINTERS[0]);
    let looks = [const { AtomicUsize::new(0) }; NR_CPUS];
    let done = AtomicBool::new(false);
    let mixed = crew::run(online(), &|member| {
        member.meet_awake();
        if member.index > 0 {
            let mut mixed = false;
            while !done.load(Ordering::Acquire) {
                mixed |= is_mix(deaf(|| slot.load()));
                looks[member.index].fetch_add(1, Ordering::Release);
            }
            return mixed;
        }
        for number in 1..=6 {
            slot.swap(Entry::NONE);
            sync_all_cpus(X86);
            store(&slot, POINTERS[number % 3], &|| await_looks(&looks[1..member.count]));
        }
        done.store(true, Ordering::Release);
        false
    })?;
    Ok(mixed.into_iter().filter(|mixed| *mixed).count())
}

/// Waits until each reader has begun and finished a look.
fn await_looks(looks: &[AtomicUsize]) {
    let now = || looks.iter().map(|looks| looks.load(Ordering::Acquire));
    let before: [usize; NR_CPUS] = {
        let mut before = [0; NR_CPUS];
        before.iter_mut().zip(now()).for_each(|(before, now)| *before = now);
        before
    };
    while now().zip(before).any(|(now, before)| now < before + 2) {
        spin_loop();
    }
}

/// The mixes seen by readers that stop before their second and their third access until CPU 0 has filled the slot again, or until
/// `patience` is over; CPU 0 does `sync` before it fills it.
///
/// ```text
///   readers: low word of the first
///                                CPU 0: takes it out, syncs, stores the second
///   readers: high word
///                                CPU 0: takes the second out, syncs, stores the third
///   readers: low word again; it is the same
/// ```
fn mixes_in_refilled_slot(sync: fn(), patience: u64) -> Result<usize, Stop> {
    let slot = SlotPae::new(POINTERS[0]);
    let filled = AtomicUsize::new(0);
    // How often each reader has stopped.
    let stops = [const { AtomicUsize::new(0) }; NR_CPUS];
    let seen = crew::run(online(), &|member| {
        member.meet_awake();
        if member.index == 0 {
            for (number, pointer) in (1..).zip(&POINTERS[1..]) {
                while stops[1..member.count].iter().any(|stops| stops.load(Ordering::Acquire) < number) {
                    spin_loop();
                }
                slot.swap(Entry::NONE);
                sync();
                slot.store(*pointer);
                filled.store(number, Ordering::Release);
            }
            return Entry::NONE;
        }
        let stop = || {
            let number = stops[member.index].fetch_add(1, Ordering::Release) + 1;
            await_within(patience, || filled.load(Ordering::Acquire) >= number);
        };
        let seen = deaf(|| slot.load_in_steps(stop));
        // It may have found nothing early on.
        stops[member.index].store(usize::MAX, Ordering::Release);
        seen
    })?;
    Ok(seen.into_iter().filter(|seen| is_mix(*seen)).count())
}

ktest! {
    /// All other CPUs look at a slot while half of a pointer to another table is stored: none sees a mix of two.
    fn an_entry_of_two_words_is_never_seen_mixed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        ktest_assert_eq!(readers_of_mixes(in_order)?, 0);
    }

    /// The check on the check: with the words stored in the wrong order, every reader does.
    fn an_entry_stored_in_the_wrong_order_is_seen_mixed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        ktest_assert_eq!(readers_of_mixes(in_the_wrong_order)?, t.cpus() - 1);
    }

    /// A reader takes the low word of an entry and stops until CPU 0 has put another in its place, by way of none. It goes on with
    /// the high word of the other, and sees that the low one has changed: it finds the other, whole.
    fn an_entry_that_is_replaced_under_its_reader_is_not_seen_mixed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let [first, second, _] = POINTERS;
        let slot = SlotPae::new(first);
        let (readers, is_replaced) = (AtomicUsize::new(0), AtomicBool::new(false));
        let seen = crew::run(online(), &|member| {
            if member.index > 0 {
                return slot.load_in_steps(|| {
                    readers.fetch_add(1, Ordering::Release);
                    while !is_replaced.load(Ordering::Acquire) {
                        spin_loop();
                    }
                });
            }
            while readers.load(Ordering::Acquire) + 1 < member.count {
                spin_loop();
            }
            slot.swap(Entry::NONE);
            slot.store(second);
            is_replaced.store(true, Ordering::Release);
            second
        })?;
        ktest_assert!(seen.iter().all(|seen| *seen == second), "CPUs found {seen:?}");
    }

    /// R29: a slot is filled twice while all other CPUs are in the middle of reading it. None sees a mix, for before it is filled all
    /// take an interrupt, and none takes one before it has read all.
    fn a_slot_that_is_filled_again_is_never_seen_mixed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        ktest_assert_eq!(mixes_in_refilled_slot(|| sync_all_cpus(X86), DEAF_NANOS)?, 0);
    }

    /// The check on the check: if it is filled again at once, every reader does.
    fn a_slot_that_is_filled_again_at_once_is_seen_mixed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        ktest_assert_eq!(mixes_in_refilled_slot(|| (), u64::MAX)?, t.cpus() - 1);
    }

    /// R30: a CPU that reads a slot has interrupts off. With entries of two words, whoever takes a PTE table out of a slot waits
    /// for it, though it has never been in the address space; with others nobody does.
    fn a_pte_table_goes_after_its_readers(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let ways: [fn(&MmRef) -> bool; 2] = [
            |mm| mm.madvise_dontneed(pages(0, TABLE)).is_ok(),
            |mm| mm.munmap(pages(0, TABLE)).is_ok(),
        ];
        for way in ways {
            let mm = Mm::create(memory())?;
            map_anonymous(&mm, pages(0, TABLE))?;
            // So that the PMD table stays.
            map_anonymous(&mm, pages(4 * TABLE, 4 * TABLE + 1))?;
            let (reading, gone) = (AtomicBool::new(false), AtomicBool::new(false));
            let outcomes = crew::run(first_cpus(2), &|member| -> TestResult {
                if member.index == 0 {
                    let _user = enter(&mm);
                    let written = write(0, 1).is_ok() && write(4 * TABLE, 1).is_ok();
                    while !reading.load(Ordering::Acquire) {
                        spin_loop();
                    }
                    let done = way(&mm);
                    gone.store(true, Ordering::Release);
                    ktest_assert!(written && done, "the table does not come or go");
                    return Ok(());
                }
                let waits = deaf(|| {
                    reading.store(true, Ordering::Release);
                    if <SlotOf<X86> as EntrySlot>::ONE_ACCESS {
                        while !gone.load(Ordering::Acquire) {
                            spin_loop();
                        }
                        return true;
                    }
                    !await_within(DEAF_NANOS, || gone.load(Ordering::Acquire))
                });
                ktest_assert!(waits, "the table is gone while a CPU may be reading its slot");
                Ok(())
            })?;
            outcomes.into_iter().collect::<TestResult>()?;
        }
    }
}
