//! What this CPU can do, and switching the protections on: the same set on every CPU.
//!
//! The boot CPU decides ([`detect`]); every CPU, the boot CPU included, then calls [`enable`], which refuses
//! a CPU that lacks what the boot CPU has, because shared page tables rely on it.

use core::sync::atomic::{AtomicU32, Ordering};

use bitflags::bitflags;
use raw_cpuid::{CpuId, CpuIdReader, CpuIdResult, Hypervisor};

use crate::{control, msr};

bitflags! {
    /// Features the kernel uses where they are present.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// No-execute bit in page-table entries.
        const NO_EXECUTE = 1 << 0;
        /// Global pages.
        const GLOBAL_PAGES = 1 << 1;
        /// Supervisor mode execution prevention.
        const SMEP = 1 << 2;
        /// Supervisor mode access prevention.
        const SMAP = 1 << 3;
        /// Process-context identifiers.
        const PCID = 1 << 4;
        /// `RDFSBASE` and its kin.
        const FSGSBASE = 1 << 5;
        /// The local APIC is reached by model-specific registers.
        const X2APIC = 1 << 6;
        /// The time-stamp counter ticks at one rate in every power state.
        const INVARIANT_TSC = 1 << 7;
        /// Leaves of 1 GiB.
        const GIGABYTE_PAGES = 1 << 8;
        /// Machine-check exceptions.
        const MACHINE_CHECK = 1 << 9;
        /// A hypervisor runs this CPU, which may so be preempted.
        const HYPERVISOR = 1 << 10;
        /// QEMU's own emulation (TCG) is that hypervisor.
        const EMULATED = 1 << 11;
    }
}

/// What the kernel does not start without. Every 64-bit CPU has no-execute, though firmware can hide it; of those with PAE only
/// some have.
pub const REQUIRED: Features = if cfg!(target_arch = "x86") { Features::empty() } else { Features::NO_EXECUTE };

/// Bits a CPU may differ in: they say nothing about how shared tables are read.
const MAY_DIFFER: Features = Features::INVARIANT_TSC.union(Features::HYPERVISOR).union(Features::EMULATED);

/// `CR0` of every CPU.
const CR0: usize = control::CR0_PROTECTION_ENABLE
    | control::CR0_EXTENSION_TYPE
    | control::CR0_NUMERIC_ERROR
    | control::CR0_WRITE_PROTECT
    | control::CR0_PAGING;
/// `CR4` of every CPU, without the bits that depend on features.
const CR4_BASE: usize = control::CR4_PHYSICAL_ADDRESS_EXTENSION;

/// The boot CPU's features. Written once by [`detect`] before any other CPU runs; read relaxed ever after.
pub(crate) static FEATURES: AtomicU32 = AtomicU32::new(0);

/// This CPU lacks features the boot CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingFeatures(pub Features);

/// Reads the boot CPU's features and remembers them for [`features`].
pub fn detect() -> Features {
    let features = read_cpuid();
    FEATURES.store(features.bits(), Ordering::Relaxed);
    features
}

/// The features the kernel relies on, as [`detect`] found them on the boot CPU; none before.
#[must_use]
pub fn features() -> Features {
    Features::from_bits_truncate(FEATURES.load(Ordering::Relaxed))
}

/// Whether page-table entries can forbid execution, as [`detect`] found.
#[must_use]
pub fn has_no_execute() -> bool {
    REQUIRED.contains(Features::NO_EXECUTE) || features().contains(Features::NO_EXECUTE)
}

/// Switches this CPU's protections on: write protection, no-execute, SMEP, SMAP, global pages, PCID, FSGSBASE. The control
/// registers have the same contents on every CPU afterwards, whatever the firmware left in them.
///
/// # Errors
/// The features the boot CPU has and this one lacks; nothing is changed then.
///
/// # Safety
/// The page tables in use must allow what then is enforced: no supervisor write through a read-only entry, no
/// execution of a user or no-execute page. `CR3` must hold no PCID bits.
pub unsafe fn enable() -> Result<(), MissingFeatures> {
    let wanted = features();
    let missing = wanted - read_cpuid() - MAY_DIFFER;
    if !missing.is_empty() {
        return Err(MissingFeatures(missing));
    }
    if wanted.contains(Features::NO_EXECUTE) {
        // SAFETY: EFER exists on every 64-bit CPU and on those that report no-execute.
        unsafe { msr::write(msr::EFER, msr::read(msr::EFER) | msr::EFER_NO_EXECUTE_ENABLE) };
    }
    let cr4_bits = [
        (Features::MACHINE_CHECK, control::CR4_MACHINE_CHECK),
        (Features::GLOBAL_PAGES, control::CR4_PAGE_GLOBAL_ENABLE),
        (Features::SMEP, control::CR4_SMEP),
        (Features::SMAP, control::CR4_SMAP),
        (Features::PCID, control::CR4_PCID_ENABLE),
        (Features::FSGSBASE, control::CR4_FSGSBASE),
    ];
    let cr4 = cr4_bits
        .iter()
        .filter(|(feature, _)| wanted.contains(*feature))
        .fold(CR4_BASE | control::cr4() & control::CR4_LA57, |cr4, (_, bit)| cr4 | bit);
    // SAFETY: each bit's feature was reported by CPUID; the caller vouches for the page tables in use.
    unsafe {
        control::write_cr4(cr4);
        control::write_cr0(CR0);
    }
    Ok(())
}

/// The instruction. The crate offers it by itself only for targets whose CPUs all have it; every CPU with
/// [`CR4_PHYSICAL_ADDRESS_EXTENSION`](control::CR4_PHYSICAL_ADDRESS_EXTENSION) has.
#[derive(Clone, Copy)]
pub(crate) struct Instruction;

impl CpuIdReader for Instruction {
    fn cpuid2(&self, leaf: u32, subleaf: u32) -> CpuIdResult {
        #[cfg(target_arch = "x86")]
        use core::arch::x86::__cpuid_count;
        #[cfg(target_arch = "x86_64")]
        use core::arch::x86_64::__cpuid_count;
        let result = __cpuid_count(leaf, subleaf);
        CpuIdResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
    }
}

/// What the running CPU says of itself.
pub(crate) fn cpuid() -> CpuId<Instruction> {
    CpuId::with_cpuid_reader(Instruction)
}

/// First physical address that this CPU's page tables cannot name: bits from there on are reserved (Intel SDM vol. 3, 4.1.4).
#[must_use]
pub fn physical_end() -> u64 {
    // Who does not tell has 36 bits, or 32 without page-size extensions, which every CPU of ours has.
    let bits = cpuid().get_processor_capacity_feature_info().map_or(36, |info| info.physical_address_bits());
    1 << bits.min(52)
}

/// Features of a 64-bit CPU that a 32-bit kernel cannot use, or has no use for.
const LONG_MODE_ONLY: Features = Features::PCID.union(Features::FSGSBASE).union(Features::GIGABYTE_PAGES);

fn read_cpuid() -> Features {
    let cpuid = cpuid();
    let basic = cpuid.get_feature_info();
    let structured = cpuid.get_extended_feature_info();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let power = cpuid.get_advanced_power_mgmt_info();
    let mut features = Features::empty();
    if let Some(leaf) = basic {
        features.set(Features::GLOBAL_PAGES, leaf.has_pge());
        features.set(Features::PCID, leaf.has_pcid());
        features.set(Features::MACHINE_CHECK, leaf.has_mce());
        features.set(Features::X2APIC, leaf.has_x2apic());
        features.set(Features::HYPERVISOR, leaf.has_hypervisor());
    }
    if let Some(leaf) = cpuid.get_hypervisor_info() {
        features.set(Features::EMULATED, leaf.identify() == Hypervisor::QEMU);
    }
    if let Some(leaf) = structured {
        features.set(Features::SMEP, leaf.has_smep());
        features.set(Features::SMAP, leaf.has_smap());
        features.set(Features::FSGSBASE, leaf.has_fsgsbase());
    }
    if let Some(leaf) = extended {
        features.set(Features::NO_EXECUTE, leaf.has_execute_disable());
        features.set(Features::GIGABYTE_PAGES, leaf.has_1gib_pages());
    }
    if let Some(leaf) = power {
        features.set(Features::INVARIANT_TSC, leaf.has_invariant_tsc());
    }
    if cfg!(target_arch = "x86") { features - LONG_MODE_ONLY } else { features }
}
