//! Any start info: an error, or regions from which a map is made or refused (`memory_map` looks at the maps).

#![no_main]

use handover::memory_map::MemoryMap;
use handover::pvh;
use libfuzzer_sys::fuzz_target;

/// Where the start info lies: not at 0, where nothing can be.
const AT: u64 = 8;
/// Where the CPU's memory ends.
const PHYSICAL_END: u64 = 1 << 40;

fuzz_target!(|memory: &[u8]| {
    let read = |address: u64, bytes: usize| {
        let start = usize::try_from(address).ok()?;
        memory.get(start..start.checked_add(bytes)?)
    };
    let Ok(info) = pvh::read(AT, &read) else { return };
    // What is said of it goes onto a console.
    if let Err(error) = MemoryMap::new(info.regions, PHYSICAL_END) {
        assert!(!error.to_string().is_empty());
    }
});
