//! Fault injection: allocations that fail on demand, so that tests can walk through every step of an operation that could
//! run out of memory (spec R34).
//!
//! Rule: a CPU's injection is armed by that CPU and seen by its own allocations only. Switched off it costs one relaxed
//! load of a line that nobody writes.
//!
//! In tests it also says *where* the failed allocation was asked for. Functions that only hand the failure on, with nothing of
//! their own to take back, have `#[cfg_attr(test, track_caller)]`; who calls one of them and has not is a place that allocates.
//! `address_space::tests::sweep` finds these places in the source and wants each to have failed.

use crate::sync::atomic::plain::AtomicU32;
use crate::sync::atomic::{Ordering, const_new};
#[cfg(test)]
use core::panic::Location;

/// What is being allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Site {
    /// A frame or a block of frames.
    Frame = 1,
    /// A slab object.
    Slab = 2,
    /// The lock of a page table.
    PtlLock = 3,
}

/// What happened while the injection was on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injected {
    /// Allocations seen, failed ones included.
    pub seen: u32,
    /// The first that was made to fail.
    pub failed: Option<Site>,
}

const OFF: u32 = 0;
const COUNT: u32 = 1;
const FAIL_ONCE: u32 = 2;
const FAIL_FROM: u32 = 3;

/// The allocation failures to inject on one CPU.
#[repr(align(64))]
pub struct Injection {
    mode: AtomicU32,
    seen: AtomicU32,
    nth: AtomicU32,
    failed: AtomicU32,
    /// Where the first that failed was asked for.
    #[cfg(test)]
    place: std::sync::Mutex<Option<&'static Location<'static>>>,
}

impl Injection {
    const_new! {
        /// Off.
        pub(crate) fn new() -> Self {
            Self {
                mode: AtomicU32::new(OFF),
                seen: AtomicU32::new(0),
                nth: AtomicU32::new(0),
                failed: AtomicU32::new(0),
                #[cfg(test)]
                place: std::sync::Mutex::new(None),
            }
        }
    }

    /// Only counts: tells how many injection points an operation has.
    pub fn count(&self) {
        self.arm(COUNT, 0);
    }

    /// Lets the `nth` allocation from now fail, counted from 1, and no other.
    pub fn fail_nth(&self, nth: u32) {
        self.arm(FAIL_ONCE, nth);
    }

    /// Lets the `nth` allocation from now fail, counted from 1, and all that follow: memory that stays exhausted, for code
    /// that tries again.
    pub fn fail_from(&self, nth: u32) {
        self.arm(FAIL_FROM, nth);
    }

    /// Switches the injection off and says what it did.
    pub fn stop(&self) -> Injected {
        self.mode.store(OFF, Ordering::Relaxed);
        let failed = match self.failed.load(Ordering::Relaxed) {
            1 => Some(Site::Frame),
            2 => Some(Site::Slab),
            3 => Some(Site::PtlLock),
            _ => None,
        };
        Injected { seen: self.seen.load(Ordering::Relaxed), failed }
    }

    /// Where the first allocation that failed was asked for.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn place(&self) -> Option<&'static Location<'static>> {
        *self.place.lock().expect("nobody panics with it")
    }

    /// Asked once by every allocation on this CPU, before it changes anything.
    #[inline]
    #[cfg_attr(test, track_caller)]
    pub(crate) fn should_fail(&self, site: Site) -> bool {
        // Relaxed, here and below: one CPU's own words.
        let mode = self.mode.load(Ordering::Relaxed);
        mode != OFF && self.decide(mode, site)
    }

    #[cold]
    #[cfg_attr(test, track_caller)]
    fn decide(&self, mode: u32, site: Site) -> bool {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let nth = self.nth.load(Ordering::Relaxed);
        let fails = match mode {
            FAIL_ONCE => seen == nth,
            FAIL_FROM => seen >= nth,
            _ => false,
        };
        if fails && self.failed.load(Ordering::Relaxed) == 0 {
            self.failed.store(site as u32, Ordering::Relaxed);
            #[cfg(test)]
            {
                *self.place.lock().expect("nobody panics with it") = Some(Location::caller());
            }
        }
        fails
    }

    fn arm(&self, mode: u32, nth: u32) {
        self.seen.store(0, Ordering::Relaxed);
        self.failed.store(0, Ordering::Relaxed);
        self.nth.store(nth, Ordering::Relaxed);
        #[cfg(test)]
        {
            *self.place.lock().expect("nobody panics with it") = None;
        }
        self.mode.store(mode, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Injected, Injection, Site};

    #[test]
    fn an_injection_that_is_off_fails_nothing_and_counts_nothing() {
        let injection = Injection::new();
        assert!(!injection.should_fail(Site::Frame));
        assert_eq!(injection.stop(), Injected { seen: 0, failed: None });
    }

    #[test]
    fn counting_sees_every_allocation_and_fails_none() {
        let injection = Injection::new();
        injection.count();
        assert!((0..5).all(|_| !injection.should_fail(Site::Slab)));
        assert_eq!(injection.stop(), Injected { seen: 5, failed: None });
    }

    #[test]
    fn exactly_the_nth_allocation_fails_and_its_site_is_told() {
        let injection = Injection::new();
        injection.fail_nth(3);
        let sites = [Site::Frame, Site::Slab, Site::PtlLock, Site::Frame];
        assert_eq!(sites.map(|site| injection.should_fail(site)), [false, false, true, false]);
        assert_eq!(injection.stop(), Injected { seen: 4, failed: Some(Site::PtlLock) });
        assert!(!injection.should_fail(Site::Frame), "stop leaves it on");
    }

    #[test]
    fn failing_from_the_nth_on_lets_no_retry_succeed() {
        let injection = Injection::new();
        injection.fail_from(2);
        let sites = [Site::Frame, Site::Slab, Site::Frame];
        assert_eq!(sites.map(|site| injection.should_fail(site)), [false, true, true]);
        assert_eq!(injection.stop(), Injected { seen: 3, failed: Some(Site::Slab) });
    }

    #[test]
    fn arming_again_starts_counting_again() {
        let injection = Injection::new();
        injection.fail_nth(1);
        assert!(injection.should_fail(Site::Frame));
        injection.fail_nth(1);
        assert!(injection.should_fail(Site::Slab));
        assert_eq!(injection.stop(), Injected { seen: 1, failed: Some(Site::Slab) });
    }
}
