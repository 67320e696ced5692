//! Running code on simulated CPUs: one at a time on the caller's thread, or several at once, each on a thread of its own.
//!
//! Rule: every run ends with a verdict. A machine that gets nowhere within its time limit says what each CPU was doing.

use super::host::{self, BellMutex, Condvar, Instant, Thread, lock_bell};
use super::{Sim, Stopped};
use crate::cpu::CpuId;
use crate::pgtable::PagingMode;
use std::any::Any;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a CPU is to do.
pub type Body<'env> = Box<dyn FnOnce() + Send + 'env>;

/// How often the run looks at the clock.
const GLANCE: Duration = Duration::from_millis(20);

/// How long the CPUs of a failed machine get to unwind.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How far a run has come.
struct Progress {
    not_started: AtomicUsize,
    outcome: BellMutex<Outcome>,
    changed: Condvar,
}

struct Outcome {
    busy: usize,
    /// The first panic of a body.
    panic: Option<Box<dyn Any + Send>>,
}

impl<Mode: PagingMode> Sim<Mode> {
    /// Runs `body` as `cpu` on this thread. Other CPUs that nobody runs are idle, and their interrupts are taken for them.
    pub fn run_cpu<R>(self, cpu: CpuId, body: impl FnOnce() -> R) -> R {
        let _limit = self.state.limit_time();
        let _entered = self.enter(cpu);
        body()
    }

    /// Runs `body` as every CPU at once.
    pub fn run_all(self, body: impl Fn(CpuId) + Sync) {
        let body = &body;
        let bodies = self.state.cpus.iter().map(|cpu| (cpu.id(), Box::new(move || body(cpu.id())) as Body<'_>));
        self.run(bodies.collect());
    }

    /// Runs all `bodies` at once, each as its CPU. A CPU that is done stays idle and takes interrupts until all are.
    ///
    /// # Panics
    ///
    /// With what a body panicked with, or if the time limit passes.
    pub fn run(self, bodies: Vec<(CpuId, Body<'_>)>) {
        let _limit = self.state.limit_time();
        let progress = Progress {
            not_started: AtomicUsize::new(bodies.len()),
            outcome: BellMutex::new(Outcome { busy: bodies.len(), panic: None }),
            changed: Condvar::new(),
        };
        let progress = &progress;
        let threads = bodies.into_iter().map(|(cpu, body)| Thread {
            name: format!("simulated {cpu:?}"),
            body: Box::new(move || self.run_one(cpu, body, progress)),
        });
        let failed = host::beside(threads.collect(), || self.watch(progress));
        if failed {
            // The threads have ended, so each has told why it unwound.
            let panic = lock_bell(&progress.outcome).panic.take();
            resume_unwind(panic.unwrap_or_else(|| Box::new(self.state.verdict().unwrap_or_default())));
        }
    }

    fn run_one(self, cpu: CpuId, body: Body<'_>, progress: &Progress) {
        let outcome = host::catch(|| {
            let _entered = self.enter(cpu);
            // All start together, so that short bodies meet too.
            progress.not_started.fetch_sub(1, Ordering::AcqRel);
            while progress.not_started.load(Ordering::Acquire) != 0 {
                self.state.check_alive();
                host::yield_now();
            }
            body();
            lock_bell(&progress.outcome).busy -= 1;
            progress.changed.notify_all();
            self.state.ring_all();
            self.idle_until(|| lock_bell(&progress.outcome).busy == 0);
            self.state.check_alive();
        });
        if let Err(panic) = outcome {
            self.state.fail();
            let mut outcome = lock_bell(&progress.outcome);
            if !panic.is::<Stopped>() {
                outcome.panic.get_or_insert(panic);
            }
            drop(outcome);
            progress.changed.notify_all();
        }
    }

    /// Waits until all CPUs are done, or have unwound because something went wrong; whether it has.
    fn watch(self, progress: &Progress) -> bool {
        let mut outcome = lock_bell(&progress.outcome);
        while outcome.busy != 0 && self.state.is_alive() {
            outcome = host::wait(&progress.changed, outcome, GLANCE);
        }
        drop(outcome);
        if self.state.is_alive() {
            return false;
        }
        self.state.ring_all();
        let failed_at = Instant::now();
        while self.state.anyone_runs() {
            if failed_at.elapsed() > LAST_WORDS {
                eprintln!("a CPU does not stop, it waits without entering the machine\n{}", self.state.describe());
                std::process::abort();
            }
            host::sleep(GLANCE);
        }
        true
    }
}
