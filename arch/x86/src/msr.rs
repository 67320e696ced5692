//! Model-specific registers, by number (Intel SDM vol. 4; AMD APM vol. 2, appendix A).

use core::arch::asm;

/// Physical base of the local APIC, its enable bit and its x2APIC bit.
pub const APIC_BASE: u32 = 0x1b;
/// Extended feature enables: long mode, no-execute.
pub const EFER: u32 = 0xc000_0080;
/// Base of the GS segment in use.
pub const GS_BASE: u32 = 0xc000_0101;
/// First x2APIC register; register `offset` of the MMIO layout is at `X2APIC + offset / 16`.
pub const X2APIC: u32 = 0x800;

/// `EFER`: long mode starts when paging is turned on.
pub const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
/// `EFER`: the no-execute bit of page-table entries has a meaning.
pub const EFER_NO_EXECUTE_ENABLE: u64 = 1 << 11;

/// Reads a model-specific register.
///
/// # Safety
/// `register` must exist on this CPU.
#[must_use]
pub unsafe fn read(register: u32) -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: the caller vouches that the register exists, so the read cannot fault; it touches no memory.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// `register` must exist on this CPU, and `value` must be one it takes and the running code survives.
pub unsafe fn write(register: u32, value: u64) {
    let (high, low) = ((value >> 32) as u32, value as u32);
    // SAFETY: the caller vouches for register and value. No `nomem`: a register may change how memory behaves.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}
