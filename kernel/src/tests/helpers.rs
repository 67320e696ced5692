//! The helper family on all CPUs at once: what each maps, locks, makes and refuses (spec 1, 3).

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::layout::Mode;
use arch_x86::machine::X86;
use arch_x86::time;
use mm::address::Pfn;
use mm::config::{USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use mm::fault::handle_mm_fault;
use mm::machine::Machine;
use mm::page::PageType;
use mm::pgtable::{
    Entry, EntrySlot, Level, PagingMode, Protection, PteLocked, SeenPte, Table, get_locked_pte, pmd_alloc_one,
    pmd_free, pmd_install, pmd_lock, pmd_lockptr, pmd_offset, pmd_same, pte_alloc, pte_alloc_map, pte_alloc_map_lock,
    pte_alloc_one, pte_free, pte_lockptr, pte_offset_map, pte_offset_map_lock, pte_offset_map_ro_nolock,
    pte_offset_map_rw_nolock, pte_same, pte_unmap, pte_unmap_unlock, ptep_lockptr, pud_lock, pud_lockptr,
};
use mm::stats::Counter;
use mm::sync::{RawLock, rcu};
use mm::vma::Access;

use super::support::{
    LINKED_UPPER, MADE_UPPER, PATIENCE_NANOS, PMD_TABLE, TABLE, dawdle, map_anonymous, page, pages, write,
};
use crate::harness::{AtomicCount, Random, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, enter, memory, statistics};
use crate::smp::online;
use crate::workload::crew;

const ROUNDS: u64 = 64;

/// A page whose table comes and goes, while page 0 keeps the PMD table.
const COMES: u64 = TABLE + 3;

ktest! {
    /// Whatever recheck succeeds after a lookup that took no lock, the table is attached and stays so while the lock is held;
    /// what is mapped for reading shows a page or none, and its lock is its own table's (R3, R6, I16, I17, I20, I21).
    fn a_recheck_under_the_lock_proves_the_table_attached(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        handle_mm_fault(&mm, page(0), Access::Write)?;
        let (done, found) = (AtomicBool::new(false), [const { AtomicCount::new(0) }; 2]);
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| {
            if member.index == 0 {
                let outcome = come_and_go(&mm, &found);
                done.store(true, Ordering::Release);
                return outcome;
            }
            let mut random = Random::new(seed ^ member.index as u64);
            while !done.load(Ordering::Acquire) {
                look(t, &mm, &found, &mut random);
            }
            Ok(())
        })?;
        let [same_pmd, same_pte] = found.map(AtomicCount::into_inner);
        t.note(format_args!("{same_pmd} tables proved attached by their PMD, {same_pte} by a PTE"));
        outcomes.into_iter().collect::<TestResult>()?;
    }

    /// All CPUs make the same missing tables by each of the helpers that do: they agree on one of each, the spares are freed,
    /// and each table is counted once (R1, I7, I15).
    fn helpers_that_make_tables_agree_on_one(t: &TestContext) {
        for kind in [Making::Alloc, Making::Map, Making::MapLock, Making::Locked] {
            for round in 0..4 {
                let mm = Mm::create(memory())?;
                let number = PMD_TABLE + round * TABLE;
                map_anonymous(&mm, pages(number, number + 1))?;
                memory().drain_deferred();
                let before = memory().page_tables();
                crew::run(online(), &|member| {
                    member.meet_awake();
                    t.check(kind.make(&mm, number), format_args!("{kind:?} fails in round {round}"));
                })?;
                ktest_assert_eq!(mm.linked_table_bytes(), (LINKED_UPPER + 1) * 4096);
                memory().drain_deferred();
                ktest_assert_eq!(memory().page_tables(), before + MADE_UPPER + 1);
            }
        }
    }

    /// All CPUs offer a spare table to one slot: it takes one, and leaves the others to those who brought them (I15).
    fn a_slot_takes_one_of_many_spare_tables(_t: &TestContext) {
        const SLOTS: u64 = 8;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, SLOTS * TABLE))?;
        handle_mm_fault(&mm, page(0), Access::Write)?;
        let taken = AtomicCount::new(0);
        let outcomes = crew::run(online(), &|member| -> TestResult {
            for round in 1..SLOTS {
                let address = page(round * TABLE);
                let mut spare = Some(pte_alloc_one(memory()).map_err(|_| "no table")?);
                member.meet_awake();
                let rcu = rcu::read_lock(X86);
                let pmds = pmd_offset(&mm, &rcu, address).ok_or("no PMD table")?;
                let vma = mm.find_vma(&rcu, address).ok_or("no region")?;
                pmd_install(&mm, pmds.slot(address), &mut spare, vma).map_err(|_| "the region has gone")?;
                match spare {
                    Some(spare) => pte_free(spare),
                    None => _ = taken.fetch_add(1, Ordering::Relaxed),
                }
            }
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        ktest_assert_eq!(taken.into_inner(), SLOTS - 1);
        ktest_assert_eq!(mm.linked_table_bytes(), (SLOTS + LINKED_UPPER) * 4096);
    }

    /// An entry that is neither none nor a table nor a page is found by all CPUs at once: each lookup refuses it, one reports
    /// and clears it, and the next fault gets over it.
    fn a_bad_entry_is_reported_and_cleared_once(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, COMES + 1))?;
        handle_mm_fault(&mm, page(0), Access::Write)?;
        for _ in 0..4 {
            corrupt(&mm, Entry::page(memory().zero_page(), Protection::READ))?;
            let before = statistics();
            let outcomes = crew::run(online(), &|member| -> TestResult {
                member.meet_awake();
                let rcu = rcu::read_lock(X86);
                let pmds = pmd_offset(&mm, &rcu, page(COMES)).ok_or("no PMD table")?;
                let (pmd, address) = (pmds.slot(page(COMES)), page(COMES));
                let found = match member.index % 4 {
                    0 => pte_offset_map(&mm, pmd, address).is_some(),
                    1 => pte_offset_map_lock(&mm, pmd, address).is_some(),
                    2 => pte_offset_map_ro_nolock(&mm, pmd, address).is_some(),
                    _ => pte_offset_map_rw_nolock(&mm, pmd, address).is_some(),
                };
                ktest_assert!(!found && pmd.load().is_none(), "a bad entry passes for a table");
                Ok(())
            })?;
            outcomes.into_iter().collect::<TestResult>()?;
            ktest_assert_eq!(statistics().since(&before)[Counter::BadEntries], 1);
        }
        handle_mm_fault(&mm, page(COMES), Access::Write)?;
    }

    /// A huge entry, and one that is just being changed, are no table and not bad: each lookup refuses them and leaves no
    /// read section and no lock behind (I18).
    fn a_lookup_refuses_what_is_no_table_and_leaves_nothing_behind(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, COMES + 1))?;
        handle_mm_fault(&mm, page(0), Access::Write)?;
        let huge = Entry(Entry::page(Pfn(0), Protection::READ).0 | 1 << 7);
        for entry in [Entry::NONE, huge, Entry(huge.0 & !1)] {
            corrupt(&mm, entry)?;
            let outcomes = crew::run(online(), &|_| -> TestResult {
                {
                    let rcu = rcu::read_lock(X86);
                    let pmds = pmd_offset(&mm, &rcu, page(COMES)).ok_or("no PMD table")?;
                    let (pmd, address) = (pmds.slot(page(COMES)), page(COMES));
                    let found = pte_offset_map(&mm, pmd, address).is_some()
                        || pte_offset_map_lock(&mm, pmd, address).is_some()
                        || pte_offset_map_ro_nolock(&mm, pmd, address).is_some()
                        || pte_offset_map_rw_nolock(&mm, pmd, address).is_some();
                    ktest_assert!(!found, "{entry:?} passes for a table");
                    ktest_assert!(pmd_same(pmd.load(), entry), "{entry:?} is not left alone");
                }
                ktest_assert!(!rcu::in_read_section(X86), "a read section is left behind");
                ktest_assert_eq!(X86.local().held.count(), 0);
                Ok(())
            })?;
            outcomes.into_iter().collect::<TestResult>()?;
        }
        corrupt(&mm, Entry::NONE)?;
    }

    /// The names of locks mean the locks of this build on every CPU, and each excludes: additions that are no atomic ones are
    /// all there (I17, I26).
    fn each_name_of_a_lock_means_the_lock_of_this_build(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 2 * TABLE))?;
        for number in [0, TABLE] {
            handle_mm_fault(&mm, page(number), Access::Write)?;
        }
        let sums = [const { AtomicCount::new(0) }; 3];
        let seed = t.random().next_u64();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            let mut random = Random::new(seed ^ member.index as u64);
            member.meet();
            let rcu = rcu::read_lock(X86);
            let pmds = pmd_offset(&mm, &rcu, page(0)).ok_or("no PMD table")?;
            let (pmd, other) = (pmds.slot(page(0)), pmds.slot(page(TABLE)));
            // Unmapped in reverse order, as those of high memory must be.
            let reading = pte_offset_map_ro_nolock(&mm, pmd, page(0)).ok_or("no PTE table")?;
            let map = pte_offset_map(&mm, pmd, page(0)).ok_or("no PTE table")?;
            let ptl = pte_lockptr(&mm, pmd.load());
            ktest_assert!(same(ptl, ptep_lockptr(&mm, &map)) && same(ptl, reading.lockptr()));
            ktest_assert_eq!(same(ptl, pte_lockptr(&mm, other.load())), !USE_SPLIT_PTE_PTLOCKS);
            ktest_assert_eq!(same(ptl, pmd_lockptr(&mm, pmd)), !USE_SPLIT_PTE_PTLOCKS);
            ktest_assert!(same(pmd_lockptr(&mm, pmd), pmd_lockptr(&mm, other)));
            for _ in 0..4 * ROUNDS {
                for (sum, which) in sums.iter().zip([Level::Pte, Level::Pmd, Level::Pud]) {
                    let _held = match which {
                        Level::Pte => reading.lock(),
                        Level::Pmd => pmd_lock(&mm, pmd),
                        _ => pud_lock(&mm),
                    };
                    let seen = sum.load(Ordering::Relaxed);
                    dawdle(&mut random, 200);
                    sum.store(seen + 1, Ordering::Relaxed);
                }
            }
            pte_unmap(map);
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        for sum in sums {
            ktest_assert_eq!(sum.into_inner(), 4 * ROUNDS * t.cpus() as u64);
        }
        ktest_assert!(USE_SPLIT_PMD_PTLOCKS || upper_lock_is_the_pmd_lock(&mm)?);
    }

    /// Tables that are never published are made and destroyed on all CPUs at once: each is a table for so long, and the count
    /// of tables is what it was (I4, I5, I8).
    fn tables_that_are_never_published_are_destroyed_at_once(_t: &TestContext) {
        let before = memory().page_tables();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            member.meet();
            for _ in 0..ROUNDS {
                let pte = pte_alloc_one(memory()).map_err(|_| "no memory for a table")?;
                let pmd = pmd_alloc_one(memory()).map_err(|_| "no memory for a table")?;
                for pfn in [pte.pfn(), pmd.pfn()] {
                    ktest_assert_eq!(memory().memmap().page(pfn).page_type(), PageType::Table);
                }
                ktest_assert!(pte.pfn() != pmd.pfn(), "two tables in one frame");
                pte_free(pte);
                pmd_free(pmd);
            }
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        ktest_assert_eq!(memory().page_tables(), before);
    }

    /// Address spaces are made and destroyed on all CPUs at once: each has a top table of its own, with the kernel's half.
    fn each_address_space_has_a_top_table_of_its_own(_t: &TestContext) {
        let before = memory().page_tables();
        let outcomes = crew::run(online(), &|member| -> TestResult {
            member.meet();
            for _ in 0..ROUNDS {
                let mm = Mm::create(memory())?;
                map_anonymous(&mm, pages(0, 1))?;
                let _user = enter(&mm);
                write(0, 1)?;
            }
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        memory().drain_deferred();
        ktest_assert_eq!(memory().page_tables(), before);
    }
}

fn same<L>(one: &L, other: &L) -> bool {
    core::ptr::eq(one, other)
}

/// Maps and unmaps the page whose table comes and goes. Now and then it stays until the others have found it in both ways, since
/// their CPUs may run at other times than this one; else it goes at once, and perhaps under their checks.
fn come_and_go(mm: &Mm, found: &[AtomicCount; 2]) -> TestResult {
    let counts = || found.each_ref().map(|count| count.load(Ordering::Relaxed));
    for round in 0..4 * ROUNDS {
        map_anonymous(mm, pages(COMES, COMES + 1))?;
        handle_mm_fault(mm, page(COMES), Access::Write)?;
        if round % 8 == 0 && online().iter().count() > 1 {
            let (before, give_up) = (counts(), time::now_nanos() + PATIENCE_NANOS);
            while counts().iter().zip(&before).any(|(now, before)| now == before) {
                ktest_assert!(time::now_nanos() < give_up, "a table that stays is not found");
                spin_loop();
            }
        }
        mm.munmap(pages(COMES, COMES + 1))?;
    }
    Ok(())
}

/// Looks the page up in each of the ways that take no lock.
fn look(t: &TestContext, mm: &Mm, found: &[AtomicCount; 2], random: &mut Random) {
    let rcu = rcu::read_lock(X86);
    let Some(pmds) = pmd_offset(mm, &rcu, page(COMES)) else { return };
    let (pmd, address) = (pmds.slot(page(COMES)), page(COMES));
    let judge = |locked: PteLocked<'_, X86>, which: usize, random: &mut Random| {
        let attached =
            || pmd_same(pmd.load(), locked.pmd()) && !memory().memmap().page(locked.pmd().pfn()).is_detached();
        let at_once = attached();
        dawdle(random, 400);
        t.check(at_once && attached(), format_args!("a table that has gone passed check {which}"));
        if let Some(count) = found.get(which) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        pte_unmap_unlock(locked);
    };
    if let Some(map) = pte_offset_map_rw_nolock(mm, pmd, address) {
        dawdle(random, 400);
        if let Some(locked) = map.lock_if_pmd_same() {
            judge(locked, 0, random);
        }
    }
    if let Some(map) = pte_offset_map_rw_nolock(mm, pmd, address)
        && let Some(seen) = SeenPte::new(map.load())
    {
        dawdle(random, 400);
        if let Some(locked) = map.lock_if_pte_same(seen) {
            t.check(pte_same(locked.load(), seen.entry()), format_args!("an entry changes under its lock"));
            judge(locked, 1, random);
        }
    }
    if let Some(map) = pte_offset_map_ro_nolock(mm, pmd, address) {
        let _guard = map.lock();
        let (first, is_locked) = (map.load(), map.lockptr().is_locked());
        dawdle(random, 400);
        let is_page = first.is_none() || first.is_present();
        t.check(is_page && is_locked && pte_same(map.load(), first), format_args!("{first:?} changes under its lock"));
    }
}

/// A helper that makes missing tables.
#[derive(Clone, Copy, Debug)]
enum Making {
    Alloc,
    Map,
    MapLock,
    Locked,
}

impl Making {
    /// Whether the PTE of page `number` can be reached in this way.
    fn make(self, mm: &Mm, number: u64) -> bool {
        let (rcu, address) = (rcu::read_lock(X86), page(number));
        let Some(vma) = mm.find_vma(&rcu, address) else { return false };
        if let Self::Locked = self {
            return get_locked_pte(mm, vma, address).is_ok_and(|pte| pte.load().is_none());
        }
        let Ok(pmds) = mm::pgtable::pmd_alloc(mm, &rcu, vma, address) else { return false };
        let pmd = pmds.slot(address);
        match self {
            Self::Alloc => pte_alloc(mm, pmd, vma).is_ok() && pte_offset_map(mm, pmd, address).is_some(),
            Self::Map => pte_alloc_map(mm, pmd, vma, address).is_ok_and(|pte| pte.load().is_none()),
            _ => pte_alloc_map_lock(mm, pmd, vma, address).is_ok_and(|pte| pte.load().is_none()),
        }
    }
}

/// Writes `entry` into the PMD slot of the page whose table comes and goes, past all locks; nobody else is there.
fn corrupt(mm: &Mm, entry: Entry) -> TestResult {
    let rcu = rcu::read_lock(X86);
    let pmds = pmd_offset(mm, &rcu, page(COMES)).ok_or("no PMD table")?;
    let slots = X86.map_table(pmds.pfn(), Level::Pmd);
    slots.get(Mode::index(Level::Pmd, page(COMES))).ok_or("no such slot")?.store(entry);
    Ok(())
}

/// Whether the lock of the PMD table is that of the tables above it.
fn upper_lock_is_the_pmd_lock(mm: &Mm) -> Result<bool, Stop> {
    let rcu = rcu::read_lock(X86);
    let pmds = pmd_offset(mm, &rcu, page(0)).ok_or("no PMD table")?;
    let top = Table::top(mm);
    Ok(same(pmd_lockptr(mm, pmds.slot(page(0))), pud_lockptr(mm, top.slot(page(0)))))
}
