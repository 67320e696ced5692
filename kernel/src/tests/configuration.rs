//! Where a table's lock comes from in this build, and that whoever nests two need not know (spec 2.1).

use core::ptr;

use arch_x86::machine::X86;
use mm::address::Pfn;
use mm::address_space::Mm;
use mm::config::{ALLOC_SPLIT_PTLOCKS, DEBUG_SPINLOCK, USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use mm::fault::handle_mm_fault;
use mm::machine::Machine;
use mm::pgtable::{
    pmd_lock, pmd_lockptr, pmd_offset, pmd_trylock, pte_lock_second, pte_lockptr, pte_offset_map_lock, pud_lock,
};
use mm::sync::{RawLock, rcu};
use mm::vma::Access;

use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{MmRef, memory};
use crate::tests::support::{TABLE, map_anonymous, page, pages};

/// An address space with two PTE tables in one PMD table.
fn two_tables() -> Result<MmRef, &'static str> {
    let mm = Mm::create(memory()).map_err(|_| "no address space")?;
    map_anonymous(&mm, pages(0, 2 * TABLE)).map_err(|_| "no region")?;
    for number in [0, TABLE] {
        handle_mm_fault(&mm, page(number), Access::Write).map_err(|_| "no page")?;
    }
    Ok(mm)
}

ktest! {
    /// I26, spec 2.1: with one lock all names of an address space mean it; split locks differ pairwise.
    fn locks_are_those_of_the_configuration(_t: &TestContext) {
        let (mm, elsewhere) = (two_tables()?, two_tables()?);
        let rcu = rcu::read_lock(X86);
        let pmds = pmd_offset(&mm, &rcu, page(0)).ok_or("no PMD table")?;
        let (first, second) = (pmds.slot(page(0)), pmds.slot(page(TABLE)));
        let one = pte_lockptr(&mm, first.load());
        let other = pte_lockptr(&mm, second.load());
        let pmd = pmd_lockptr(&mm, first);
        let same = |a: &<X86 as Machine>::Lock, b: &<X86 as Machine>::Lock| ptr::eq(a, b);
        ktest_assert_eq!(same(one, other), !USE_SPLIT_PTE_PTLOCKS);
        ktest_assert_eq!(same(one, pmd), !USE_SPLIT_PTE_PTLOCKS);
        ktest_assert!(same(pmd, pmd_lockptr(&mm, second)));
        let theirs = pmd_offset(&elsewhere, &rcu, page(0)).ok_or("no PMD table")?;
        ktest_assert!(!same(pmd, pmd_lockptr(&elsewhere, theirs.slot(page(0)))), "two address spaces, two locks");
        ktest_assert_eq!(USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS && mm::config::ARCH_ENABLE_SPLIT_PMD_PTLOCK);
        // With split PMD locks the tables above have the only `page_table_lock`, which is none of these.
        let above = pud_lock(&mm);
        ktest_assert_eq!(pmd.is_locked(), !USE_SPLIT_PMD_PTLOCKS);
        ktest_assert_eq!(one.is_locked(), !USE_SPLIT_PTE_PTLOCKS);
        drop(above);
    }

    /// Spec 4.2, for the words of this processor: a lock that fits in one is in the descriptor of its table's frame, any other has
    /// memory of its own and the descriptor a pointer; it is as large either way.
    fn a_lock_is_in_the_descriptor_if_it_fits_in_a_word(_t: &TestContext) {
        type Lock = <X86 as Machine>::Lock;
        let fits = size_of::<Lock>() <= size_of::<usize>();
        ktest_assert_eq!((fits, ALLOC_SPLIT_PTLOCKS), (!DEBUG_SPINLOCK, DEBUG_SPINLOCK));
        let mm = two_tables()?;
        let rcu = rcu::read_lock(X86);
        let pmds = pmd_offset(&mm, &rcu, page(0)).ok_or("no PMD table")?;
        let pmd = pmds.slot(page(0));
        let is_within = |lock: &Lock, table: Pfn| {
            let (descriptor, lock) = (memory().memmap().page(table), (&raw const *lock).addr());
            let start = (&raw const *descriptor).addr();
            (start..start + 64).contains(&lock) && size_of_val(descriptor) == 64
        };
        ktest_assert_eq!(is_within(pte_lockptr(&mm, pmd.load()), pmd.load().pfn()), fits && USE_SPLIT_PTE_PTLOCKS);
        ktest_assert_eq!(is_within(pmd_lockptr(&mm, pmd), pmds.pfn()), fits && USE_SPLIT_PMD_PTLOCKS);
    }

    /// Where two names may mean one lock, addresses are compared before the second lock and before the second unlock:
    /// PMD then PTE, PTE beside PTE, and a PMD lock tried under a PTE lock.
    fn one_lock_by_two_names_is_taken_and_released_once(_t: &TestContext) {
        let mm = two_tables()?;
        let held = || X86.local().held.count();
        let before = held();
        let rcu = rcu::read_lock(X86);
        let pmds = pmd_offset(&mm, &rcu, page(0)).ok_or("no PMD table")?;
        let (first, second) = (pmds.slot(page(0)), pmds.slot(page(TABLE)));
        let two = usize::from(USE_SPLIT_PTE_PTLOCKS);

        let outer = pmd_lock(&mm, first);
        let inner = pte_lock_second(&outer, pte_lockptr(&mm, first.load()));
        ktest_assert_eq!((inner.is_some(), held()), (USE_SPLIT_PTE_PTLOCKS, before + 1 + two));
        drop(inner);
        ktest_assert!(pmd_lockptr(&mm, first).is_locked(), "released with the inner name");
        ktest_assert_eq!(held(), before + 1);
        drop(outer);
        ktest_assert!(!pmd_lockptr(&mm, first).is_locked());

        let pte = pte_offset_map_lock(&mm, first, page(0)).ok_or("no PTE table")?;
        let beside = pte_lock_second(pte.guard(), pte_lockptr(&mm, second.load()));
        ktest_assert_eq!((beside.is_some(), held()), (USE_SPLIT_PTE_PTLOCKS, before + 1 + two));
        drop(beside);
        ktest_assert!(pte_lockptr(&mm, first.load()).is_locked(), "released with the other table's name");
        let tried = pmd_trylock(pte.guard(), &mm, first);
        ktest_assert_eq!((tried.is_some(), held()), (USE_SPLIT_PTE_PTLOCKS, before + 1 + two));
        drop(tried);
        ktest_assert_eq!(held(), before + 1);
        drop(pte);
        ktest_assert_eq!(held(), before);
        ktest_assert!(!pte_lockptr(&mm, first.load()).is_locked());
    }
}
