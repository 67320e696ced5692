//! How a run ends: one code on QEMU's `isa-debug-exit` port (`docs/harness.md`, "Exit status").

use qemu_exit::{QEMUExit, X86};

use crate::serial;

/// What the machine is told about the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ExitCode {
    /// Everything passed.
    Passed = 0x10,
    /// Some test or oracle failed.
    Failed = 0x11,
    /// The kernel panicked.
    Panic = 0x12,
    /// The command line was not understood.
    BadCommandLine = 0x13,
    /// The watchdog ended the run.
    Watchdog = 0x14,
    /// The machine could not be brought up.
    BootFailed = 0x15,
}

/// Port of the `isa-debug-exit` device, as `xtask` places it.
pub const PORT: u16 = 0xf4;

/// Ends the run. Where there is no such device (a real machine), this CPU halts for ever with interrupts off.
pub fn exit(code: ExitCode) -> ! {
    serial::drain();
    arch_x86::interrupts::disable();
    // SAFETY: `xtask` gives QEMU the device at this port; on a PC without it nothing listens there. The second
    // argument is the status the crate calls success, and is not used.
    unsafe { X86::new(PORT, 1) }.exit(code as u32)
}
