//! Any memory with any tables in it: an error, or CPUs, each once. Once as it is, and once with the checksums made good, which
//! no fuzzer guesses: else little of the reader would be reached.

#![no_main]

use handover::acpi::cpus;
use libfuzzer_sys::fuzz_target;

/// Bytes of the header every table but the RSDP has.
const HEADER: usize = 36;

fuzz_target!(|memory: &[u8]| {
    check(memory);
    let mut memory = memory.to_vec();
    mend_tables(&mut memory);
    check(&memory);
});

fn check(memory: &[u8]) {
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
            // The smallest entry that names a CPU has eight bytes.
            assert!(ids.len() <= memory.len() / 8, "{} CPUs in {} bytes", ids.len(), memory.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Makes the checksums of the RSDP at 0, of its root table and of all that this points to good, as far as they do not overlap.
fn mend_tables(memory: &mut [u8]) {
    if memory.len() < HEADER {
        return;
    }
    mend(memory, 0, 20, 8);
    mend(memory, 0, 36, 32);
    for (root, pointer) in [(number(memory, 16, 4), 4), (number(memory, 24, 8), 8)] {
        let pointers = mend_table(memory, root).and_then(|end| memory.get(root + HEADER..end));
        let addresses: Vec<usize> =
            pointers.unwrap_or_default().chunks_exact(pointer).map(|bytes| number(bytes, 0, pointer)).collect();
        for address in addresses {
            mend_table(memory, address);
        }
    }
}

/// Makes a table's checksum good; where the table ends, if it is one.
fn mend_table(memory: &mut [u8], address: usize) -> Option<usize> {
    memory.get(address..address.checked_add(HEADER)?)?;
    let length = number(memory, address + 4, 4);
    let end = address.checked_add(length).filter(|end| length >= HEADER && *end <= memory.len())?;
    mend(memory, address, length, 9);
    Some(end)
}

/// Sets the byte `at` of the `length` bytes from `start` so that they add up to zero.
fn mend(memory: &mut [u8], start: usize, length: usize, at: usize) {
    let bytes = &mut memory[start..start + length];
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
}

/// Reads a number of `bytes` bytes; none that is larger than any address here.
fn number(memory: &[u8], at: usize, bytes: usize) -> usize {
    let mut number = [0; 8];
    number[..bytes].copy_from_slice(&memory[at..at + bytes]);
    usize::try_from(u64::from_le_bytes(number)).unwrap_or(usize::MAX)
}
