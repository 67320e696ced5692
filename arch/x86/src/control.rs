//! The control registers and the bits of them this kernel cares about (Intel SDM vol. 3, 2.5).

use core::arch::asm;

/// `CR0`: protected mode.
pub const CR0_PROTECTION_ENABLE: usize = 1 << 0;
/// `CR0`: always on in CPUs of today.
pub const CR0_EXTENSION_TYPE: usize = 1 << 4;
/// `CR0`: floating-point errors are exceptions, not external interrupts.
pub const CR0_NUMERIC_ERROR: usize = 1 << 5;
/// `CR0`: paging.
pub const CR0_PAGING: usize = 1 << 31;
/// `CR0`: supervisor writes respect read-only pages.
pub const CR0_WRITE_PROTECT: usize = 1 << 16;
/// `CR4`: entries of eight bytes; always on in this kernel.
pub const CR4_PHYSICAL_ADDRESS_EXTENSION: usize = 1 << 5;
/// `CR4`: machine checks are exceptions, not a shutdown.
pub const CR4_MACHINE_CHECK: usize = 1 << 6;
/// `CR4`: five levels of tables; changed in legacy mode only.
pub const CR4_LA57: usize = 1 << 12;
/// `CR4`: translations marked global survive a change of `CR3`.
pub const CR4_PAGE_GLOBAL_ENABLE: usize = 1 << 7;
/// `CR4`: the `FSGSBASE` instructions.
pub const CR4_FSGSBASE: usize = 1 << 16;
/// `CR4`: process-context identifiers in `CR3`.
pub const CR4_PCID_ENABLE: usize = 1 << 17;
/// `CR4`: the supervisor executes no user page.
pub const CR4_SMEP: usize = 1 << 20;
/// `CR4`: the supervisor accesses no user page unless `AC` is set.
pub const CR4_SMAP: usize = 1 << 21;

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads `", $name, "`.")]
        #[must_use]
        pub fn $read() -> usize {
            let value: usize;
            // SAFETY: the kernel runs in ring 0, where reading a control register has no effect.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) }
            value
        }

        #[doc = concat!("Writes `", $name, "`.")]
        ///
        /// # Safety
        /// The running code must survive the change, and the CPU must know every bit that is set.
        pub unsafe fn $write(value: usize) {
            // SAFETY: the caller vouches for the value. No `nomem`: the register changes how memory behaves.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) }
        }
    };
}

control_register!(cr0, write_cr0, "cr0");
control_register!(cr3, write_cr3, "cr3");
control_register!(cr4, write_cr4, "cr4");

/// The address the last page fault of this CPU was raised for.
#[must_use]
pub fn fault_address() -> usize {
    let value: usize;
    // SAFETY: the kernel runs in ring 0, where reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}
