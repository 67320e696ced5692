use alloc::sync::Arc;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::backtrace::Backtrace;
use arch_x86::{interrupts, percpu};

use super::snapshot_of;
use crate::harness::{TestContext, ktest, ktest_assert, ktest_skip};
use crate::smp::online;
use crate::thread::spawn_on;

/// Longest code of the small functions below.
const CODE: usize = 512;

fn lies_in(address: usize, function: usize) -> bool {
    (function..function + CODE).contains(&address)
}

#[inline(never)]
fn spin_deaf(ready: &AtomicBool, release: &AtomicBool) {
    interrupts::disable();
    ready.store(true, Ordering::Release);
    while !release.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    interrupts::enable();
}

#[inline(never)]
fn inner() -> Backtrace {
    black_box(Backtrace::here())
}

#[inline(never)]
fn outer() -> Backtrace {
    black_box(inner())
}

ktest! {
    /// A CPU that spins with interrupts off still tells where it is, and goes on undisturbed.
    fn a_deaf_cpu_tells_where_it_is(_t: &TestContext) {
        let Some(other) = online().without(percpu::cpu()).iter().next() else { ktest_skip!("needs two CPUs") };
        let flags = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
        let shared = Arc::clone(&flags);
        let deaf = spawn_on(other, "deaf", move || spin_deaf(&shared.0, &shared.1))?;
        let give_up = arch_x86::time::now_nanos() + 5_000_000_000;
        while !flags.0.load(Ordering::Acquire) && arch_x86::time::now_nanos() < give_up {
            core::hint::spin_loop();
        }
        let snapshot = snapshot_of(other);
        flags.1.store(true, Ordering::Release);
        deaf.join();
        let Some(snapshot) = snapshot else { return Err(crate::harness::Stop::failed(format_args!("no answer"))) };
        let Some(frame) = snapshot.frame else { return Err(crate::harness::Stop::failed(format_args!("no frame"))) };
        ktest_assert!(!frame.interrupts_enabled());
        ktest_assert!(!snapshot.idle);
        let spin = spin_deaf as *const () as usize;
        let trace = snapshot.trace.addresses();
        ktest_assert!(trace.iter().any(|address| lies_in(*address, spin)), "{trace:x?} is not in {spin:#x}");
        ktest_assert!(trace.len() > 1);
    }

    /// A backtrace names the callers, innermost first.
    fn a_backtrace_names_the_callers(_t: &TestContext) {
        let trace = outer();
        let addresses = trace.addresses();
        let place = |function: usize| addresses.iter().position(|address| lies_in(*address, function));
        let (inner, outer) = (place(inner as *const () as usize), place(outer as *const () as usize));
        ktest_assert!(inner == Some(0) && outer == Some(1), "{addresses:x?}: {inner:?}, {outer:?}");
        ktest_assert!(addresses.len() > 2);
    }
}
