//! What the kernel makes of a trap.
//!
//! A page fault in kernel mode is one of these:
//! - in the user half, at an accessor's instruction: the registered handler serves it, with interrupts on; if it cannot,
//!   the accessor gets its error. A fault that another CPU has meanwhile served (a spurious one) is the handler's to
//!   recognise: it finds an entry that allows the access and has nothing to do;
//! - in the user half, anywhere else: the kernel touched user memory by mistake;
//! - in the kernel half, at a probe: the probe gets its error;
//! - in the kernel half, anywhere else: a bug, since kernel entries are complete before they are used and never lose
//!   rights. In a guard page the CPU finds no stack for this very trap and raises a double fault instead.
//!
//! Rule (I24): no page-table lock is taken with interrupts off, so the handler is called only where the interrupted code
//! had them on; an accessor used with interrupts off gets its error without the handler being asked.

use core::fmt;

use arch_x86::cpu::{self, Features};
use arch_x86::entry::TrapFrame;
use arch_x86::idt::exception;
use arch_x86::user_access::{self, UserAddr};
use arch_x86::{control, interrupts};
use bitflags::bitflags;
use mm::sabotaged;
use spin::Once;

use crate::{interrupt, panic};

bitflags! {
    /// What the CPU says about a page fault (Intel SDM vol. 3, 4.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FaultCode: u64 {
        /// The page is there but does not allow the access.
        const PROTECTION = 1 << 0;
        /// The access was a write.
        const WRITE = 1 << 1;
        /// The access came from ring 3.
        const USER = 1 << 2;
        /// An entry has a reserved bit set.
        const RESERVED = 1 << 3;
        /// The access was an instruction fetch.
        const FETCH = 1 << 4;
    }
}

/// The access cannot be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unresolved;

/// Serves a fault in the user half; runs with interrupts on, on the faulting thread.
pub type UserFaultHandler = fn(UserAddr, FaultCode) -> Result<(), Unresolved>;

static USER_FAULT_HANDLER: Once<UserFaultHandler> = Once::new();

/// Registers who serves faults in the user half. Only the first call has an effect.
pub fn set_user_fault_handler(handler: UserFaultHandler) {
    USER_FAULT_HANDLER.call_once(|| handler);
}

/// Where every trap arrives, with interrupts off.
pub fn handle(frame: &mut TrapFrame) {
    match frame.vector() {
        exception::PAGE_FAULT => {
            // First of all: any further fault on this CPU overwrites the register.
            let address = control::fault_address();
            page_fault(frame, address);
        }
        exception::NON_MASKABLE => panic::on_non_maskable(frame),
        exception::DOUBLE_FAULT => panic::double_fault(frame, control::fault_address()),
        vector if vector < exception::COUNT => {
            let reason = format_args!("{}, error code {:#x}", exception::name(vector), frame.error_code());
            panic::fatal_trap(frame, reason)
        }
        vector => interrupt::handle(vector),
    }
}

fn page_fault(frame: &mut TrapFrame, address: usize) {
    let code = FaultCode::from_bits_retain(frame.error_code());
    if code.contains(FaultCode::RESERVED) {
        fatal_page_fault(frame, address, code, ", reserved bit in an entry");
    }
    if let Some(address) = UserAddr::new(address) {
        if !is_by_accessor(frame) {
            fatal_page_fault(frame, address.get(), code, ", outside an accessor");
        }
        if serve(frame, address, code).is_ok() {
            return;
        }
    }
    match user_access::continuation(frame) {
        Some(continuation) => frame.set_instruction(continuation),
        None => fatal_page_fault(frame, address, code, ""),
    }
}

/// Whether an accessor made the access. Under SMAP only accessors open the user half, so the flag tells; the exception
/// table then need not be searched unless the access fails.
fn is_by_accessor(frame: &TrapFrame) -> bool {
    if cpu::features().contains(Features::SMAP) {
        frame.user_access_open()
    } else {
        user_access::continuation(frame).is_some()
    }
}

fn serve(frame: &TrapFrame, address: UserAddr, code: FaultCode) -> Result<(), Unresolved> {
    let handler = USER_FAULT_HANDLER.get().ok_or(Unresolved)?;
    if !frame.interrupts_enabled() {
        return Err(Unresolved);
    }
    debug_assert_eq!(interrupts::flags() & interrupts::FLAG_ALIGNMENT_CHECK, 0, "the user half is open in a handler");
    if !sabotaged!("deaf-fault") {
        interrupts::enable();
    }
    let outcome = handler(address, code);
    interrupts::disable();
    outcome
}

fn fatal_page_fault(frame: &TrapFrame, address: usize, code: FaultCode, remark: &str) -> ! {
    struct Access(FaultCode);
    impl fmt::Display for Access {
        fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
            out.write_str(if self.0.contains(FaultCode::FETCH) {
                "fetch from"
            } else if self.0.contains(FaultCode::WRITE) {
                "write to"
            } else {
                "read of"
            })
        }
    }
    let half = if user_access::is_user(address) { "user" } else { "kernel" };
    let why = if code.contains(FaultCode::PROTECTION) { "not allowed" } else { "not mapped" };
    panic::fatal_trap(frame, format_args!("page fault: {} {half} address {address:#x}, {why}{remark}", Access(code)))
}

mod tests;
