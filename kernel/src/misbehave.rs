//! Ways for a kernel to fail, on request (`mode=misbehave`): `xtask` must tell each of them apart from the others and
//! from success, and is tested with them. Each fails as a test of the name `misbehave` would.

pub mod locks;
pub mod mappings;

use core::hint::{black_box, spin_loop};
use core::mem;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch_x86::{interrupts, percpu, reset, time};

use crate::cmdline::Misbehaviour;
use crate::exit::{ExitCode, exit};
use crate::harness::{Name, deadline, ktap};
use crate::record::Record;
use crate::sync::{LockName, Spin};
use crate::{interrupt, serial, smp};

static NAME: Name = Name::new("misbehave");

static NEVER_RELEASED: Spin<()> = Spin::new(&LockName("lock that is never released"), ());

/// Fails so; `timeout` is the watchdog's limit in seconds.
pub fn misbehave(how: Misbehaviour, timeout: u64) -> ! {
    ktap(format_args!("KTAP version 1"));
    ktap(format_args!("1..1"));
    Record::new("start").text("test", NAME).emit();
    let _limit = deadline::set(&NAME, time::now_micros(), timeout);
    match how {
        Misbehaviour::Panic => panic!("asked to panic"),
        Misbehaviour::Spin => loop {
            spin_loop();
        },
        Misbehaviour::Deaf => {
            interrupts::disable();
            loop {
                spin_loop();
            }
        }
        Misbehaviour::PanicEverywhere => panic_everywhere(),
        Misbehaviour::TripleFault => reset::triple_fault(),
        Misbehaviour::HalfLine => {
            serial::write_half_line(b"ok 1 misbeh");
            exit(ExitCode::Passed)
        }
        Misbehaviour::SilentExit => exit(ExitCode::Passed),
        Misbehaviour::Deadlock => {
            mem::forget(NEVER_RELEASED.lock());
            interrupts::enable();
            let _twice = NEVER_RELEASED.lock();
            unreachable!("a lock was taken twice")
        }
        Misbehaviour::Impatient => {
            mem::forget(NEVER_RELEASED.lock());
            let _twice = NEVER_RELEASED.lock_within(1_000_000);
            unreachable!("a lock was taken twice")
        }
        Misbehaviour::Lock(how) => {
            locks::misuse(how);
            unreachable!("a misused lock went unnoticed")
        }
        Misbehaviour::Mapping(how) => {
            mappings::misuse(how);
            unreachable!("a misused mapping went unnoticed")
        }
        Misbehaviour::StackOverflow => {
            dig(0);
            unreachable!("the stack has no end")
        }
    }
}

/// Panics on every CPU, as nearly at once as can be, with interrupts off.
fn panic_everywhere() -> ! {
    let ready = AtomicUsize::new(0);
    let all = smp::online().iter().count();
    interrupt::call_on(smp::online().without(percpu::cpu()), &|| {
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < all - 1 {
            spin_loop();
        }
        panic!("asked to panic on every CPU")
    });
    unreachable!("CPUs that panic do not answer a call")
}

/// Uses a piece of stack, and then some more.
#[expect(unconditional_recursion, reason = "the stack is to overflow")]
fn dig(depth: u64) -> u64 {
    let piece = black_box([depth; 64]);
    dig(depth + 1) + piece[0]
}
