//! Maskable interrupts of the running CPU, and the ways of waiting for one.

use core::arch::asm;

use crate::bits::entry;

/// `EFLAGS`: maskable interrupts are delivered.
pub const FLAG_INTERRUPT: usize = 1 << 9;
/// `EFLAGS`: under SMAP, the supervisor may access user pages.
pub const FLAG_ALIGNMENT_CHECK: usize = 1 << 18;

/// Whether this CPU takes maskable interrupts.
#[must_use]
pub fn enabled() -> bool {
    flags() & FLAG_INTERRUPT != 0
}

/// The flags register.
#[must_use]
pub fn flags() -> usize {
    entry::flags()
}

/// Masks interrupts on this CPU.
pub fn disable() {
    // SAFETY: masking interrupts breaks no memory safety. Without `nomem` it is a compiler barrier, so that
    // accesses meant to be shielded stay behind it.
    unsafe { asm!("cli", options(nostack)) }
}

/// Lets interrupts in on this CPU.
pub fn enable() {
    // SAFETY: handlers preserve all registers, and a compiler barrier keeps shielded accesses before it.
    unsafe { asm!("sti", options(nostack)) }
}

/// Whether interrupts were enabled before they were masked; give it back to [`restore`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Saved {
    were_enabled: bool,
}

/// Masks interrupts and tells what to restore.
pub fn save_and_disable() -> Saved {
    let were_enabled = enabled();
    if were_enabled {
        disable();
    }
    Saved { were_enabled }
}

/// Puts interrupts back as they were at [`save_and_disable`].
pub fn restore(saved: Saved) {
    if saved.were_enabled {
        enable();
    }
}

/// Runs `body` with interrupts masked.
pub fn without<R>(body: impl FnOnce() -> R) -> R {
    let saved = save_and_disable();
    let result = body();
    restore(saved);
    result
}

/// Enables interrupts and waits for one.
///
/// To be called with interrupts off and after the last look at the condition waited for: `sti` takes effect
/// after the following instruction, so an interrupt that came since the look ends the `hlt`.
pub fn enable_and_halt() {
    // SAFETY: as `enable`; `hlt` changes no state but time.
    unsafe { asm!("sti", "hlt", options(nostack)) }
}

/// Stops this CPU for good. A non-maskable interrupt is still served, then the CPU stops again.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: interrupts stay masked; a non-maskable one returns here and finds the loop.
        unsafe { asm!("cli", "hlt", options(nostack)) }
    }
}
