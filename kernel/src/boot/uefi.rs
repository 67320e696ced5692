//! UEFI: the `bootloader` crate has loaded the image, left boot services and calls the ELF's entry point in long mode.

use arch_x86::cpu;
use bootloader_api::config::Mapping;
use bootloader_api::info::MemoryRegionKind;
use bootloader_api::{BootloaderConfig, entry_point};
use handover::memory_map::{MemoryMap, RegionKind};

use super::{BootError, BootKind, Handoff, start};

/// Bytes of the stack used until the kernel has one of its own.
const STACK: u64 = 64 << 10;

/// The loader maps at least this much physical memory, whatever RAM there is.
const LEAST_REACH: u64 = 1 << 32;

/// UEFI memory types that are RAM but not free (UEFI 2.10, 7.2.1): ACPI tables, ACPI non-volatile storage.
const ACPI_TABLES: u32 = 9;
const ACPI_STORAGE: u32 = 10;

static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::Dynamic);
    config.kernel_stack_size = STACK;
    config
};

entry_point!(uefi_main, config = &CONFIG);

/// Called on the loader's stack with the loader's page tables.
fn uefi_main(info: &'static mut bootloader_api::BootInfo) -> ! {
    start(|| read(info))
}

fn read(info: &bootloader_api::BootInfo) -> Result<Handoff, BootError> {
    let access = info.physical_memory_offset.into_option();
    let access = access.ok_or(BootError::NoPhysicalMap)?;
    let regions = info.memory_regions.iter().map(|region| {
        let kind = match region.kind {
            MemoryRegionKind::Usable => RegionKind::Usable,
            MemoryRegionKind::Bootloader => RegionKind::BootLoader,
            MemoryRegionKind::UnknownUefi(ACPI_TABLES | ACPI_STORAGE) => RegionKind::Firmware,
            _ => RegionKind::Reserved,
        };
        (region.start, region.end.saturating_sub(region.start), kind)
    });
    let end = info.memory_regions.iter().map(|region| region.end).max().unwrap_or(0);
    Ok(Handoff {
        kind: BootKind::Uefi,
        memory: MemoryMap::new(regions, cpu::physical_end())?,
        rsdp: info.rsdp_addr.into_option(),
        access: access as usize,
        reach: end.max(LEAST_REACH),
    })
}
