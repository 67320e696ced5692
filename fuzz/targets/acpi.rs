//! Any memory with any tables in it: an error, or CPUs, each once.

#![no_main]

use handover::acpi::cpus;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|memory: &[u8]| {
    let read = |address: u64, bytes: usize| {
        let start = usize::try_from(address).ok()?;
        memory.get(start..start.checked_add(bytes)?)
    };
    match cpus(0, &read) {
        Ok(cpus) => {
            let mut ids = cpus.apic_ids.clone();
            ids.sort_unstable();
            ids.dedup();
            assert!(!ids.is_empty() && ids.len() == cpus.apic_ids.len(), "{:?}", cpus.apic_ids);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
