//! What the watchdog must know: which test or workload runs, and until when it may.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::Name;

/// The running test or workload.
static NAME: AtomicPtr<Name> = AtomicPtr::new(ptr::null_mut());

/// When it must have ended, in milliseconds since boot; `NEVER` when nothing runs.
/// Stored with release after `NAME`, loaded with acquire before it.
static DUE: AtomicUsize = AtomicUsize::new(NEVER);

const NEVER: usize = usize::MAX;

/// A time limit in force; dropping it lifts the limit.
pub struct Deadline(());

/// Puts `name` under a time limit of so many seconds, from `now` in microseconds since boot.
pub fn set(name: &'static Name, now: u64, seconds: u64) -> Deadline {
    NAME.store(ptr::from_ref(name).cast_mut(), Ordering::Relaxed);
    let due = now.div_ceil(1000).saturating_add(seconds.saturating_mul(1000));
    // In 49 days, a limit that a word cannot hold.
    DUE.store(usize::try_from(due).unwrap_or(NEVER), Ordering::Release);
    Deadline(())
}

impl Drop for Deadline {
    fn drop(&mut self) {
        DUE.store(NEVER, Ordering::Release);
    }
}

/// What runs and when it must have ended, in microseconds since boot. Takes no lock: callable anywhere.
pub fn current() -> Option<(Name, u64)> {
    let due = DUE.load(Ordering::Acquire);
    if due == NEVER {
        return None;
    }
    // SAFETY: the acquire load above saw a store that came after `NAME` was set, and `NAME` only ever holds
    // null or pointers made from `&'static Name`.
    let name = unsafe { NAME.load(Ordering::Relaxed).as_ref() }?;
    Some((*name, due as u64 * 1000))
}

mod tests {
    use super::current;
    use crate::harness::{TestContext, ktest, ktest_assert};

    ktest! {
        /// While a test runs, the watchdog can see its name and a moment in the future.
        fn the_running_test_is_published(_t: &TestContext) {
            let now = arch_x86::time::now_micros();
            let published = current();
            ktest_assert!(
                published.is_some_and(|(name, due)| name.is("harness::deadline::the_running_test_is_published") && due > now),
                "{:?}", published.map(|(_, due)| due)
            );
        }
    }
}
