//! A whole life of an address space and its child, with each of its allocations failing in turn (R34).

use arch_x86::machine::X86;
use mm::address_space::MapError;
use mm::fault::{FaultError, handle_mm_fault};
use mm::frame::Site;
use mm::machine::Machine;
use mm::memory::OutOfMemory;
use mm::object::ObjectError;
use mm::pgtable::Protection;
use mm::vma::Access;

use super::support::{TABLE, far, map_anonymous, map_object, page, pages};
use crate::harness::{Stop, TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, MmRef, Object, memory, settle};

/// More allocations than a life has.
const MOST_ALLOCATIONS: u32 = 1000;

/// How a life ends early: for want of memory, or for a reason that ends the test.
enum End {
    Starved,
    Wrong(Stop),
}

/// Each error says which of its values means "no memory"; any other is wrong.
macro_rules! ends {
    ($($error:ident: $starved:pat,)+) => {$(
        impl From<$error> for End {
            fn from(error: $error) -> Self {
                match error {
                    $starved => Self::Starved,
                    #[allow(unreachable_patterns, reason = "some errors have one value")]
                    other => Self::Wrong(Stop::failed(format_args!("a lack of memory is reported as {other:?}"))),
                }
            }
        }
    )+};
}

ends! {
    OutOfMemory: OutOfMemory,
    MapError: MapError::OutOfMemory,
    FaultError: FaultError::OutOfMemory,
    ObjectError: ObjectError::OutOfMemory,
}

/// Maps, faults, forks, lets the child store, moves, unmaps and ends, as far as there is memory for it. Two tables, an object
/// across a border of its tree, pages copied, reused, zero and fresh, and a move to where no table of any level is.
fn live() -> Result<(), End> {
    const FAR: u64 = far(70) + 2 * TABLE - 2;
    let touch = |mm: &MmRef, number, access| handle_mm_fault(mm, page(number), access).map(|_| ());
    let mm = Mm::create(memory())?;
    map_anonymous(&mm, pages(TABLE - 4, TABLE + 4))?;
    let object = Object::create(memory(), 100)?;
    map_object(&mm, pages(TABLE + 100, TABLE + 108), &object, 60)?;
    drop(object);
    for number in [TABLE - 4, TABLE - 1, TABLE, TABLE + 101, TABLE + 106] {
        touch(&mm, number, Access::Write)?;
    }
    touch(&mm, TABLE + 3, Access::Read)?;
    let child = mm.fork()?;
    for number in [TABLE - 4, TABLE, TABLE + 2, TABLE + 3, TABLE + 105] {
        touch(&child, number, Access::Write)?;
    }
    touch(&mm, TABLE - 4, Access::Write)?;
    mm.mremap(pages(TABLE - 2, TABLE + 2), pages(FAR, FAR + 6))?;
    touch(&mm, FAR + 2, Access::Write)?;
    touch(&mm, FAR + 5, Access::Write)?;
    child.mprotect(pages(TABLE - 3, TABLE + 1), Protection::READ)?;
    child.munmap(pages(TABLE - 1, TABLE + 2))?;
    Ok(())
}

/// What the walk has met.
#[derive(Default)]
struct Walked {
    frames: u32,
    objects: u32,
    locks: u32,
    /// Lives that a failure ended early.
    ended: u32,
}

impl Walked {
    fn points(&self) -> u32 {
        self.frames + self.objects + self.locks
    }
}

/// Lives once for each allocation, which `arm` makes fail, until none is left to fail. After each life the books balance.
fn walk(arm: impl Fn(u32)) -> Result<Walked, Stop> {
    let injection = &X86.local().injection;
    let mut walked = Walked::default();
    for nth in 1..=MOST_ALLOCATIONS {
        settle();
        let before = (memory().frames().free_frames(X86), memory().page_tables());
        arm(nth);
        let end = live();
        let failed = injection.stop().failed;
        settle();
        let after = (memory().frames().free_frames(X86), memory().page_tables());
        ktest_assert!(before == after, "allocation {nth}: frames and tables {before:?} became {after:?}");
        match end {
            Err(End::Wrong(stop)) => return Err(stop),
            Err(End::Starved) => walked.ended += 1,
            Ok(()) => (),
        }
        match failed {
            Some(Site::Frame) => walked.frames += 1,
            Some(Site::Slab) => walked.objects += 1,
            Some(Site::PtlLock) => walked.locks += 1,
            None => return Ok(walked),
        }
    }
    Err(Stop::failed(format_args!("no end of allocations")))
}

ktest! {
    /// R34, I6: the allocations of mmap, faults, fork, copies, mremap, munmap and exit fail one after the other, each for
    /// good and each only once. A failure is a clean error, a single one is made good, and everything taken is given back.
    fn every_allocation_of_a_life_may_fail(t: &TestContext) {
        let injection = &X86.local().injection;
        let walked = walk(|nth| injection.fail_from(nth))?;
        let once = walk(|nth| injection.fail_nth(nth))?;
        t.note(format_args!(
            "injection: {} points walked, each failing for good ({} frames, {} slab objects, {} page-table locks), {} failing once",
            walked.points(), walked.frames, walked.objects, walked.locks, once.points()
        ));
        ktest_assert_eq!(once.ended, 0);
        ktest_assert!(walked.ended > 0 && walked.frames >= 15 && walked.objects >= 5, "too few points");
    }
}
