//! What happens when the kernel finds its own rules broken: by a panic, or by a trap that nobody can serve.

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use arch_x86::entry::TrapFrame;
use arch_x86::percpu;

use crate::exit::{ExitCode, exit};
use crate::line::Line;
use crate::report::{self, Snapshot, Standstill};
use crate::thread;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    end(format_args!("{info}"), "panic", &Snapshot::here())
}

/// Ends the run because of a trap in the kernel that cannot be served.
pub fn fatal_trap(frame: &TrapFrame, reason: fmt::Arguments) -> ! {
    end(format_args!("{reason}, at {:#x}", frame.instruction()), "trap", &Snapshot::of_frame(frame))
}

/// Ends the run because of a double fault; `address` is that of the last page fault.
pub fn double_fault(frame: &TrapFrame, address: usize) -> ! {
    if thread::stack::is_guard(address) {
        let (thread, cpu) = (thread::current_name(), percpu::cpu().0);
        fatal_trap(frame, format_args!("stack overflow in thread {thread} on cpu {cpu}, touching {address:#x}"))
    }
    fatal_trap(frame, format_args!("double fault, last page fault for {address:#x}"))
}

/// Serves a non-maskable interrupt: another CPU asks where this one is, or wants it to stop. One that nobody asked for is
/// a hardware error, or an operator at the monitor who wants to see where a silent machine stands.
pub fn on_non_maskable(frame: &TrapFrame) {
    if !report::answer(frame) {
        fatal_trap(frame, format_args!("non-maskable interrupt that no CPU asked for"))
    }
}

fn end(message: fmt::Arguments, kind: &str, own: &Snapshot) -> ! {
    if !report::claim(own) {
        log::error!("{message}");
        log::error!("that was {kind} within the report of an earlier one");
        exit(ExitCode::Panic)
    }
    log::error!("{message}");
    let mut reason = Line::<256>::new();
    // `Line` never fails: it cuts.
    let _ = write!(reason, "{kind}: {message}");
    let reason = core::str::from_utf8(reason.as_bytes()).unwrap_or(kind);
    Standstill::bring_about(*own).print_and_exit(reason, ExitCode::Panic)
}
