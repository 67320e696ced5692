//! Operations with each of their allocations failing in turn (R34): one after the other, and a whole life of an address space
//! and its child.

use arch_x86::machine::X86;
use mm::frame::Site;
use mm::machine::Machine;
use mm::sweep::{Failure, Shortage, huge_scenes, live, scenes};

use crate::harness::{Stop, TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{memory, settle};

/// More allocations than a life has.
const MOST_ALLOCATIONS: u32 = 1000;

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

    fn count(&mut self, site: Site) {
        match site {
            Site::Frame => self.frames += 1,
            Site::Slab => self.objects += 1,
            Site::PtlLock => self.locks += 1,
        }
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
        let end = live(memory());
        let failed = injection.stop().failed;
        settle();
        let after = (memory().frames().free_frames(X86), memory().page_tables());
        ktest_assert!(before == after, "allocation {nth}: frames and tables {before:?} became {after:?}");
        match end {
            Ok(()) => (),
            Err(Failure::OutOfMemory) => walked.ended += 1,
            Err(failure) => return Err(failure.into()),
        }
        match failed {
            Some(site) => walked.count(site),
            None => return Ok(walked),
        }
    }
    Err(Stop::failed(format_args!("no end of allocations")))
}

ktest! {
    /// R34, I6: each allocation of each operation fails, for good and only once. It is reported as a lack of memory; regions and
    /// pages are what they were; the operation succeeds when there is memory, or at once if only one allocation fails; and
    /// everything taken is given back. On the host the same scenes are seen to reach every place that allocates.
    fn every_allocation_of_every_operation_may_fail(t: &TestContext) {
        for shortage in [Shortage::Lasting, Shortage::Once] {
            let mut walked = Walked::default();
            let mut operations = 0;
            for scene in scenes().chain(huge_scenes()) {
                mm::sweep::walk(memory(), &scene, shortage, |site| walked.count(site))?;
                operations += 1;
            }
            t.note(format_args!(
                "injection: {operations} operations, {} points ({} frames, {} slab objects, {} page-table locks), {shortage:?}",
                walked.points(), walked.frames, walked.objects, walked.locks
            ));
            ktest_assert!(walked.frames >= 60 && walked.objects >= 60, "too few points");
        }
    }

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
