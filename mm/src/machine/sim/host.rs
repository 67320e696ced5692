//! What the machine takes from its host: threads, a clock, and the mutexes that a CPU may sleep on.
//!
//! Under `cfg(shuttle)` the host is a scheduler: it has one thread, lets one CPU run on it at a time, and takes another at
//! points of its choice. Rules: nothing that decides what happens comes from elsewhere, so that a seed repeats a run; no mutex
//! of `std` is held across such a point, for whoever wants it next would wait for itself.

pub(super) use imp::{BellGuard, BellMutex, Condvar, Instant, beside, catch, point, quietly, sleep, yield_now};
use std::any::Any;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// A thread to be.
pub(super) struct Thread<'env> {
    pub(super) name: String,
    pub(super) body: Box<dyn FnOnce() + Send + 'env>,
}

/// Takes a mutex that is held for a moment, without a point in it. A thread that panicked has already said what is wrong; the
/// rest shall be able to report.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    if cfg!(shuttle) && matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)) {
        panic!("simulated machine: a mutex is held across a point");
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a mutex that may be held for long, as one does who sleeps with it.
pub(super) fn lock_bell<T>(mutex: &BellMutex<T>) -> BellGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps until the bell rings. Where there is a clock, at most for a `nap`.
pub(super) fn wait<'a, T>(bell: &Condvar, guard: BellGuard<'a, T>, nap: Duration) -> BellGuard<'a, T> {
    bell.wait_timeout(guard, nap).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(not(shuttle))]
mod imp {
    use super::{Any, Duration, Thread};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    pub(crate) use std::sync::{Condvar, Mutex as BellMutex, MutexGuard as BellGuard};
    pub(crate) use std::thread::sleep;
    pub(crate) use std::time::Instant;

    /// Lets others run. By a sleep: from a thread that yields, the host takes its whole turn, and beside threads that never do
    /// a machine whose CPUs wait for each other gets nowhere.
    pub(crate) fn yield_now() {
        sleep(Duration::from_micros(1));
    }

    /// A point where another CPU may run. Here they all do, all the time.
    pub(crate) fn point() {}

    /// Does `body` without a point in it.
    pub(crate) fn quietly<R>(body: impl FnOnce() -> R) -> R {
        body()
    }

    /// Does `body`, and says what it panicked with.
    pub(crate) fn catch(body: impl FnOnce()) -> Result<(), Box<dyn Any + Send>> {
        catch_unwind(AssertUnwindSafe(body))
    }

    /// Runs `threads` beside this one, which does `meanwhile`, until all have ended.
    pub(crate) fn beside<'env, R>(threads: Vec<Thread<'env>>, meanwhile: impl FnOnce() -> R) -> R {
        std::thread::scope(|scope| {
            for Thread { name, body } in threads {
                let spawned = std::thread::Builder::new().name(name).spawn_scoped(scope, body);
                spawned.expect("the host has threads to spare");
            }
            meanwhile()
        })
    }
}

#[cfg(shuttle)]
mod imp {
    use super::{Any, Duration, Thread};
    pub(crate) use crate::sync::atomic::scheduled::point;
    use crate::sync::atomic::scheduled::set_running;
    use shuttle::current;
    pub(crate) use shuttle::sync::{Condvar, Mutex as BellMutex, MutexGuard as BellGuard};
    pub(crate) use shuttle::thread::{sleep, yield_now};

    pub(crate) fn quietly<R>(body: impl FnOnce() -> R) -> R {
        let _running = set_running(false);
        body()
    }

    /// A panic ends the run, with all that others were doing: none of them could go on beside one that unwinds.
    pub(crate) fn catch(body: impl FnOnce()) -> Result<(), Box<dyn Any + Send>> {
        body();
        Ok(())
    }

    pub(crate) fn beside<'env, R>(threads: Vec<Thread<'env>>, meanwhile: impl FnOnce() -> R) -> R {
        let _running = set_running(true);
        shuttle::thread::scope(|scope| {
            for Thread { name, body } in threads {
                scope.spawn(move || {
                    current::set_name_for_task(current::me(), name);
                    body();
                });
            }
            meanwhile()
        })
    }

    /// Time by the number of points passed.
    #[derive(Clone, Copy)]
    pub(crate) struct Instant(usize);

    impl Instant {
        /// So long that a wait without end is told from a long one before a run is out of points.
        const STEP: Duration = Duration::from_micros(100);

        pub(crate) fn now() -> Self {
            Self(current::context_switches())
        }

        pub(crate) fn elapsed(&self) -> Duration {
            Self::STEP * (Self::now().0 - self.0) as u32
        }
    }
}
