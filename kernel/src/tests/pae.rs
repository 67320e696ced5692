//! What is particular to PAE: entries of two words, and a top table whose entries CPUs copy when they load it.
//!
//! An emulator that reads the top table anew at each walk hides a missing reload (spec 6.3), so the tests of that look at the
//! record the machine keeps. Entries of two words are tried with any page tables.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use arch_x86::machine::X86;
use mm::address::Pfn;
use mm::machine::Machine;
use mm::pgtable::{Entry, EntrySlot, SlotPae};
use mm::tlb::{check_latched, sync_all_cpus};

use super::race::come_and_go::needs_a_second_cpu;
use super::support::{PMD_TABLE, TABLE, come_and_go, map_anonymous, mm_without_tables, pages, read, write};
use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, enter, memory};
use crate::smp::online;
use crate::workload::crew;

/// Pointers to three tables. The first and the last have the same low word, and no other two words are the same: half of one
/// with half of another leads to a fourth frame.
const POINTERS: [Entry; 3] = [
    Entry::table(Pfn(0x12345 + (3 << 20))),
    Entry::table(Pfn(0x23456 + (7 << 20))),
    Entry::table(Pfn(0x12345 + (5 << 20))),
];

/// An entry and those that look at it.
struct Watched {
    slot: SlotPae,
    /// Looks that have been finished, of each reader.
    looks: [AtomicUsize; mm::config::NR_CPUS],
    mixes: AtomicUsize,
    done: AtomicBool,
}

impl Watched {
    fn new(entry: Entry) -> Self {
        let looks = [const { AtomicUsize::new(0) }; mm::config::NR_CPUS];
        Self { slot: SlotPae::new(entry), looks, mixes: AtomicUsize::new(0), done: AtomicBool::new(false) }
    }

    /// Looks at the entry, as a lookup does, until the writer is done.
    fn look_on(&self, reader: usize) {
        while !self.done.load(Ordering::Acquire) {
            let irqs = X86.irq_save();
            let seen = self.slot.load();
            X86.irq_restore(irqs);
            if !seen.is_none() && !POINTERS.contains(&seen) {
                self.mixes.fetch_add(1, Ordering::Relaxed);
            }
            self.looks[reader].fetch_add(1, Ordering::Release);
        }
    }

    /// Waits until each of the `readers` has begun and finished a look.
    fn await_looks(&self, readers: usize) {
        let looks = || self.looks[1..=readers].iter().map(|looks| looks.load(Ordering::Acquire));
        let mut before = [0; mm::config::NR_CPUS];
        before.iter_mut().zip(looks()).for_each(|(before, now)| *before = now);
        while looks().zip(before).any(|(now, before)| now < before + 2) {
            X86.pause();
        }
    }
}

/// Has CPU 0 do `turn` so many times, and then that each reader looks once more, while all others look on; returns the mixes
/// they have seen.
fn watch(
    first: Entry,
    turns: usize,
    turn: impl Fn(&Watched, usize, usize) + Sync,
) -> Result<usize, crate::harness::Stop> {
    let watched = Watched::new(first);
    crew::run(online(), &|member| {
        member.meet_awake();
        if member.index > 0 {
            return watched.look_on(member.index);
        }
        for number in 0..turns {
            turn(&watched, number, member.count - 1);
        }
        watched.await_looks(member.count - 1);
        watched.done.store(true, Ordering::Release);
    })?;
    Ok(watched.mixes.load(Ordering::Relaxed))
}

ktest! {
    /// A slot points to one table after another while all other CPUs look at it: they see what it held at some moment, never
    /// half of one pointer with half of another, for all CPUs take an interrupt before it is filled again.
    fn an_entry_of_two_words_is_never_seen_mixed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mixes = watch(POINTERS[0], 24, |watched, number, _| {
            watched.slot.swap(Entry::NONE);
            sync_all_cpus(X86);
            watched.slot.store(POINTERS[(number + 1) % 3]);
        })?;
        ktest_assert_eq!(mixes, 0);
    }

    /// The check on the check: with the words stored in the wrong order, the readers do see a mix.
    fn an_entry_stored_in_the_wrong_order_is_seen_mixed(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mixes = watch(POINTERS[0], 3, |watched, number, readers| {
            let next = POINTERS[(number + 1) % 3].0;
            // SAFETY: an entry is two words, low and high, which are atomics.
            let words: &[AtomicU32; 2] = unsafe { &*(&raw const watched.slot).cast() };
            words[0].store(next as u32, Ordering::Release);
            watched.await_looks(readers);
            words[1].store((next >> 32) as u32, Ordering::Release);
        })?;
        ktest_assert!(mixes > 0, "nobody sees a mix");
    }

    /// One CPU's fault links a PMD table, and from its return on every CPU of the address space has the new entry, without a
    /// fault of its own; when an unmapping takes it, none has it any more.
    #[only("PAE")]
    fn a_changed_top_entry_is_loaded_by_every_cpu(t: &TestContext) {
        let mm = mm_without_tables()?;
        // Elsewhere, so that the address space is in use.
        map_anonymous(&mm, pages(PMD_TABLE, PMD_TABLE + TABLE))?;
        for round in 0..8 {
            map_anonymous(&mm, pages(0, TABLE))?;
            crew::run(online(), &|member| {
                let _user = enter(&mm);
                let own = member.index as u64;
                t.check(write(PMD_TABLE + own, own).is_ok(), format_args!("round {round}: no page elsewhere"));
                t.check(X86.latched(0).is_some(), format_args!("no record is kept"));
                member.meet_awake();
                if member.index == round % member.count {
                    t.check(write(0, 7).is_ok(), format_args!("round {round}: the first write fails"));
                }
                member.meet_awake();
                let latched = check_latched(&mm);
                t.check(latched.is_ok(), format_args!("round {round}: cpu {} has an old {latched:?}", member.cpu.0));
                t.check(read(0) == Ok(7), format_args!("round {round}: cpu {} does not find the page", member.cpu.0));
                member.meet_awake();
                if member.index == 0 {
                    t.check(mm.munmap(pages(0, TABLE)).is_ok(), format_args!("munmap fails"));
                }
                member.meet_awake();
                let latched = check_latched(&mm);
                t.check(latched.is_ok(), format_args!("round {round}: cpu {} keeps {latched:?}", member.cpu.0));
                t.check(read(0).is_err(), format_args!("round {round}: cpu {} still finds the page", member.cpu.0));
                t.check(read(PMD_TABLE + own) == Ok(own), format_args!("round {round}: another page is lost"));
            })?;
        }
    }

    /// The check on that check: an entry changed in memory alone is found to be another than the CPU has.
    #[only("PAE")]
    fn a_top_entry_that_is_not_loaded_is_found(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        let _user = enter(&mm);
        let slots = X86.map_small_top(mm.pgd());
        ktest_assert_eq!(check_latched(&mm), Ok(()));
        // Nothing is mapped below it.
        let entry = slots[0].swap(Entry::NONE);
        let found = check_latched(&mm);
        slots[0].store(entry);
        ktest_assert_eq!(found, Err(0));
        ktest_assert_eq!(check_latched(&mm), Ok(()));
    }

    /// Each top table lies where CR3 can name it, and has in its entries an address, P, and what an emulator's walker sets; the
    /// tables of the user part are in low memory, and that of the kernel's part is everybody's.
    #[only("PAE")]
    fn top_tables_are_as_the_cpu_asks(_t: &TestContext) {
        let mut spaces = alloc::vec::Vec::new();
        for _ in 0..40 {
            let mm = Mm::create(memory())?;
            for slot in X86.map_small_top(mm.pgd()) {
                let entry = slot.load();
                ktest_assert!(entry.0 == entry.pfn().address() | 1, "{entry:?} in a table that nobody has loaded");
            }
            // Entries of both kinds: from the start, and linked by a fault.
            come_and_go(&mm, pages(0, 1))?;
            map_anonymous(&mm, pages(0, 1))?;
            let user = enter(&mm);
            write(0, 1)?;
            drop(user);
            spaces.push(mm);
        }
        for mm in &spaces {
            let pgd = mm.pgd();
            ktest_assert!(pgd.0.is_multiple_of(32) && pgd.0 < 1 << 32, "a top table at {pgd:?}");
            let slots = X86.map_small_top(pgd);
            for (index, slot) in slots.iter().enumerate() {
                let entry = slot.load();
                let bare = entry.0 & !(1 << 5);
                ktest_assert!(bare == entry.pfn().address() | 1, "entry {index} is {entry:?}");
                ktest_assert!(!X86.is_high(entry.pfn()), "entry {index} is {entry:?}, in high memory");
            }
            let kernel = X86.map_small_top(spaces[0].pgd())[3].load().pfn();
            ktest_assert_eq!(slots[3].load().pfn(), kernel);
        }
    }
}
