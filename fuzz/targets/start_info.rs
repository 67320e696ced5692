//! Any start info with any memory map: an error, or a map in which usable regions ascend, are whole frames and overlap nothing,
//! and stay so when the kernel claims frames of it.

#![no_main]

use handover::memory_map::{MemoryMap, RegionKind};
use handover::pvh;
use libfuzzer_sys::fuzz_target;
use mm::address::Pfn;

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
    let Ok(mut map) = MemoryMap::new(info.regions, PHYSICAL_END) else { return };
    check(&map);
    // Frames to claim come from the first bytes, which nothing else reads.
    let claimed = memory.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes) >> 24);
    if map.claim(Pfn(claimed)..Pfn(claimed + 1000)).is_ok() {
        check(&map);
        map.release_boot_loader();
        check(&map);
    }
});

fn check(map: &MemoryMap) {
    for (number, region) in map.regions().iter().enumerate() {
        assert!(region.start < region.end, "{region:x?}");
        if region.kind != RegionKind::Usable {
            continue;
        }
        assert!((region.start | region.end) % 4096 == 0 && region.end <= PHYSICAL_END, "{region:x?}");
        let others = map.regions().iter().enumerate().filter(|(other, _)| *other != number);
        for (_, other) in others {
            assert!(other.end <= region.start || region.end <= other.start, "{region:x?} {other:x?}");
        }
    }
    assert!(map.usable_bytes() <= map.ram_bytes());
}
