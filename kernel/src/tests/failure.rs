//! Memory that runs out: really, or at a chosen allocation.

use alloc::vec::Vec;
use core::fmt::Debug;

use arch_x86::machine::X86;
use arch_x86::user_access::AccessFault;
use mm::address::Pfn;
use mm::address_space::MapError;
use mm::config::{ALLOC_SPLIT_PTLOCKS, USE_SPLIT_PMD_PTLOCKS, USE_SPLIT_PTE_PTLOCKS};
use mm::fault::{FaultError, handle_mm_fault};
use mm::frame::{MAX_ORDER, Site};
use mm::machine::Machine;
use mm::memory::OutOfMemory;
use mm::object::ObjectError;
use mm::pgtable::Protection;
use mm::vma::Access;

use super::support::{LEFT_TABLES, MADE_UPPER, map_anonymous, map_object, page, pages, read, write};
use crate::harness::{Stop, TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, Object, enter, memory, settle};

/// More allocations than any operation below makes.
const MOST_ALLOCATIONS: u32 = 64;

/// How an operation ended that may run out of memory; any other error ends the test.
#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    OutOfMemory,
}

fn outcome<T, E: Debug + PartialEq>(result: Result<T, E>, out_of_memory: &E) -> Result<Outcome, Stop> {
    match result {
        Ok(_) => Ok(Outcome::Done),
        Err(error) if error == *out_of_memory => Ok(Outcome::OutOfMemory),
        Err(error) => Err(error.into()),
    }
}

fn in_use() -> (u64, u64) {
    settle();
    (memory().frames().free_frames(X86), memory().page_tables())
}

/// Lets the first allocation of `operation` fail, and all after it, then the second and all after it, and so on until the
/// operation succeeds. `prepare` makes what it works on, `check` looks whether a failed one left that as it was. Nothing
/// may leak. Returns what failed, in order.
fn walk<T>(
    prepare: impl Fn() -> Result<T, Stop>,
    operation: impl Fn(&T) -> Result<Outcome, Stop>,
    check: impl Fn(&T) -> Result<(), Stop>,
) -> Result<Vec<Site>, Stop> {
    let injection = &X86.local().injection;
    let mut sites = Vec::new();
    for nth in 1..=MOST_ALLOCATIONS {
        let before = in_use();
        let subject = prepare()?;
        injection.fail_from(nth);
        let outcome = operation(&subject);
        let failed = injection.stop().failed;
        match (outcome?, failed) {
            (Outcome::Done, None) => return Ok(sites),
            (Outcome::OutOfMemory, Some(site)) => sites.push(site),
            (_, site) => {
                return Err(Stop::failed(format_args!("allocation {nth}: outcome does not fit failure {site:?}")));
            }
        }
        check(&subject)?;
        drop(subject);
        let after = in_use();
        if before != after {
            return Err(Stop::failed(format_args!("allocation {nth}: frames and tables {before:?} became {after:?}")));
        }
    }
    Err(Stop::failed(format_args!("no end of allocations")))
}

fn one_region() -> Result<MmRef, Stop> {
    let mm = Mm::create(memory())?;
    map_anonymous(&mm, pages(0, 8))?;
    Ok(mm)
}

/// A region of eight pages with something written in its middle.
fn one_region_in_use() -> Result<MmRef, Stop> {
    let mm = one_region()?;
    let _user = enter(&mm);
    write(3, 5)?;
    Ok(mm.clone())
}

fn is_as_it_was(mm: &MmRef) -> Result<(), Stop> {
    let _user = enter(mm);
    ktest_assert_eq!((read(3)?, read(40)), (5, Err(AccessFault::Fault)));
    for number in 0..8 {
        write(number, 5)?;
    }
    Ok(())
}

ktest! {
    /// A fault that needs all its tables fails cleanly at each frame and each constructor, and leaks nothing (R34, I6).
    fn every_step_of_a_fault_may_fail(_t: &TestContext) {
        let fault = |mm: &MmRef| outcome(handle_mm_fault(mm, page(0), Access::Write), &FaultError::OutOfMemory);
        let sites = walk(one_region, fault, |_| Ok(()))?;
        // P4D if there is one, PUD, PMD and PTE table, each a frame and, where it has a lock of its own, a constructor that
        // may fail; the page. With PAE the PMD table has been there from the start.
        let mut expected = alloc::vec![Site::Frame; MADE_UPPER as usize];
        // The first lock that needs memory of its own finds an empty cache.
        let first_lock = || [Site::PtlLock].into_iter().chain(ALLOC_SPLIT_PTLOCKS.then_some(Site::Frame));
        if USE_SPLIT_PMD_PTLOCKS && MADE_UPPER != 0 {
            expected.extend(first_lock());
        }
        expected.push(Site::Frame);
        if USE_SPLIT_PMD_PTLOCKS {
            expected.push(Site::PtlLock);
        } else if USE_SPLIT_PTE_PTLOCKS {
            expected.extend(first_lock());
        }
        expected.push(Site::Frame);
        ktest_assert_eq!(sites, expected);
    }

    /// An allocation of a fault that fails only once is made good by what the fault frees before it tries again.
    fn a_single_failure_is_made_good(_t: &TestContext) {
        let injection = &X86.local().injection;
        for nth in 1..=6 {
            let mm = one_region()?;
            injection.fail_nth(nth);
            let result = handle_mm_fault(&mm, page(0), Access::Write);
            injection.stop();
            result?;
        }
    }

    /// Making an address space fails cleanly at each allocation, among them those of the tables it has from the start (I43).
    fn every_step_of_an_address_space_may_fail(_t: &TestContext) {
        let sites = walk(|| Ok(()), |()| outcome(Mm::create(memory()), &OutOfMemory), |()| Ok(()))?;
        let count = |which| sites.iter().filter(|site| **site == which).count() as u64;
        ktest_assert!(count(Site::Frame) > LEFT_TABLES && count(Site::Slab) > 0, "failed at {sites:?}");
    }

    /// Mapping, cutting and protecting regions fail cleanly at each allocation, and leave everything as it was.
    fn every_step_of_a_change_of_regions_may_fail(_t: &TestContext) {
        type Operation = fn(&MmRef) -> Result<(), MapError>;
        let operations: [Operation; 3] = [
            |mm| map_anonymous(mm, pages(40, 50)),
            |mm| mm.munmap(pages(2, 5)),
            |mm| mm.mprotect(pages(2, 5), Protection::READ),
        ];
        for operation in operations {
            let sites = walk(one_region_in_use, |mm| outcome(operation(mm), &MapError::OutOfMemory), is_as_it_was)?;
            ktest_assert!(!sites.is_empty());
        }
    }

    /// Making a memory object and filling it fail cleanly at each allocation.
    fn every_step_of_an_object_may_fail(_t: &TestContext) {
        // Large enough for a tree of three levels.
        const PAGES: u64 = 1 << 13;
        let sites = walk(|| Ok(()), |()| outcome(Object::create(memory(), PAGES), &ObjectError::OutOfMemory), |()| Ok(()))?;
        ktest_assert!(!sites.is_empty());
        let prepare = || -> Result<_, Stop> {
            let mm = Mm::create(memory())?;
            let object = Object::create(memory(), PAGES)?;
            map_object(&mm, pages(0, PAGES), &object, 0)?;
            Ok(mm)
        };
        let fault = |mm: &MmRef| outcome(handle_mm_fault(mm, page(PAGES - 1), Access::Write), &FaultError::OutOfMemory);
        let sites = walk(prepare, fault, |_| Ok(()))?;
        ktest_assert!(sites.iter().filter(|site| **site == Site::Slab).count() >= 2, "failed at {sites:?}");
    }

    /// When frames run out, an access is a clean error, what was written stays, and freed memory serves again.
    fn running_out_of_frames_is_a_clean_error(_t: &TestContext) {
        const LEFT: usize = 64;
        let (mm, other) = (Mm::create(memory())?, Mm::create(memory())?);
        map_anonymous(&mm, pages(0, 512))?;
        map_anonymous(&other, pages(0, 16))?;
        {
            let _user = enter(&other);
            (0..16).try_for_each(|number| write(number, number))?;
        }
        let _user = enter(&mm);
        let hoard = Hoard::all_but(LEFT)?;
        let fill = |from: u64| (from..512).take_while(|&number| write(number, number).is_ok()).count() as u64;
        let written = fill(0);
        ktest_assert!((LEFT as u64 / 2..LEFT as u64).contains(&written), "{written} pages of {LEFT} frames");
        ktest_assert_eq!(handle_mm_fault(&mm, page(written), Access::Write), Err(FaultError::OutOfMemory));
        ktest_assert_eq!(memory().frames().free_frames(X86), 0);
        for number in 0..written {
            ktest_assert_eq!(read(number)?, number);
        }
        // The pages of another address space come back, its tables included.
        drop(other);
        let more = fill(written);
        ktest_assert!((17..=24).contains(&more), "{more} pages more");
        drop(hoard);
        ktest_assert_eq!(fill(written + more), 512 - written - more);
    }
}

/// Frames taken away, to be given back when dropped.
struct Hoard(Vec<(Pfn, u32)>);

impl Hoard {
    /// Takes every frame but `left` single ones.
    fn all_but(left: usize) -> Result<Self, Stop> {
        settle();
        let mut hoard = Self(Vec::new());
        for order in (0..=MAX_ORDER).rev() {
            while let Ok(block) = memory().frames().alloc_order(X86, order) {
                hoard.0.push((block, order));
            }
        }
        // The smallest blocks come last; a larger one is given back if there are not enough of them.
        let mut back = 0;
        while back < left {
            let Some((block, order)) = hoard.0.pop() else {
                return Err(Stop::failed(format_args!("the machine has no {left} frames")));
            };
            memory().frames().free_order(X86, block, order);
            back += 1 << order;
        }
        while back > left {
            let block = memory().frames().alloc_order(X86, 0)?;
            hoard.0.push((block, 0));
            back -= 1;
        }
        Ok(hoard)
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        for (block, order) in self.0.drain(..) {
            memory().frames().free_order(X86, block, order);
        }
    }
}
