//! The top table of PAE, whose entries CPUs copy when they load it.
//!
//! An emulator that reads the top table anew at each walk hides a missing reload (spec 6.3), so these tests look at the record
//! the machine keeps.

use alloc::sync::Arc;

use arch_x86::machine::X86;
use mm::machine::Machine;
use mm::pgtable::{Entry, EntrySlot, Level};
use mm::stats::Counter;
use mm::tlb::{self, TlbFlush, check_latched};

use super::support::{
    PMD_TABLE, TABLE, come_and_go, map_anonymous, mm_without_tables, needs_a_second_cpu, pages, read, write,
};
use super::tlb::{Shared, await_lazy, be_lazy, others};
use crate::harness::{TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, enter, memory, statistics};
use crate::smp::online;
use crate::workload::crew;

ktest! {
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

    /// CPUs that run kernel threads on the address space while an entry is filled are passed by (R26), and load it when they come
    /// back.
    #[only("PAE")]
    fn a_changed_top_entry_is_loaded_by_lazy_cpus_when_they_come_back(t: &TestContext) {
        needs_a_second_cpu(t)?;
        let mm = mm_without_tables()?;
        map_anonymous(&mm, pages(PMD_TABLE, PMD_TABLE + TABLE))?;
        map_anonymous(&mm, pages(0, TABLE))?;
        let shared = Arc::new(Shared::default());
        let before = statistics();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            let _user = enter(&mm);
            write(PMD_TABLE, 1)?;
            member.meet();
            if member.index == 0 {
                let outcome = await_lazy(others()).and_then(|()| Ok(write(0, 7)?));
                // Whatever happened, the others must not wait for ever.
                shared.end();
                outcome?;
            } else {
                be_lazy(member, &shared)?;
                let latched = check_latched(&mm);
                t.check(latched.is_ok(), format_args!("cpu {} has an old {latched:?}", member.cpu.0));
            }
            t.check(read(0) == Ok(7), format_args!("cpu {} does not find the page", member.cpu.0));
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        ktest_assert_eq!(statistics().since(&before)[Counter::LazyBehind], t.cpus() as u64 - 1);
    }

    /// The check on those checks: an entry changed in memory alone is found to be another than the CPU has, on every CPU. No
    /// instruction that drops translations mends that, a reload does.
    #[only("PAE")]
    fn a_top_entry_that_is_not_loaded_is_found(t: &TestContext) {
        let mm = Mm::create(memory())?;
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            member.meet_awake();
            // Nothing is mapped below it.
            let slot = &X86.map_small_top(mm.pgd())[0];
            let find = |expected: Result<(), usize>, after: &str| {
                member.meet_awake();
                let found = check_latched(&mm);
                t.check(found == expected, format_args!("cpu {} finds {found:?} after {after}", member.cpu.0));
                member.meet_awake();
            };
            let flush = |top_changed| {
                let what = TlbFlush { range: pages(0, 1), stride: Level::Pte, freed_tables: false, top_changed };
                if member.index == 0 {
                    tlb::flush(X86, mm.tlb(), what);
                }
            };
            find(Ok(()), "its own load");
            let entry = slot.load();
            member.meet_awake();
            for value in [Entry::NONE, entry] {
                if member.index == 0 {
                    slot.swap(value);
                }
                find(Err(0), "a change in memory");
                flush(false);
                find(Err(0), "a flush of a page");
                flush(true);
                find(Ok(()), "a reload");
            }
        })?;
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
