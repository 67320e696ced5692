//! Any regions of any kind: an error, or a map of regions that ascend, of which those that are or become usable are whole frames
//! and overlap nothing. It stays so when the kernel claims frames, which are usable no more, and when the boot loader's memory
//! is released.

#![no_main]

use handover::memory_map::{MemoryMap, RegionKind};
use libfuzzer_sys::fuzz_target;
use mm::address::Pfn;

/// Where the CPU's memory ends.
const PHYSICAL_END: u64 = 1 << 40;
/// Bytes of a number, cut short so that regions of a few bytes of input are near each other.
const NUMBER: usize = 5;
/// Bytes of a region: its kind, its start, its length.
const REGION: usize = 1 + 2 * NUMBER;
/// What starts and lengths are multiples of, so that five bytes reach beyond what the CPU addresses.
const GRAIN: u64 = 64;

fuzz_target!(|bytes: &[u8]| {
    // Frames to claim come first: a start and a number.
    let Some((claimed, regions)) = bytes.split_at_checked(2 * NUMBER) else { return };
    let regions = regions.chunks_exact(REGION).map(|region| {
        let kind = match region[0] % 8 {
            0..3 => RegionKind::Usable,
            3..5 => RegionKind::BootLoader,
            5 => RegionKind::Firmware,
            6 => RegionKind::Kernel,
            _ => RegionKind::Reserved,
        };
        // Now and then one starts so far away that its end may be beyond all numbers.
        let far = if region[0] & 0x80 == 0 { 0 } else { u64::MAX - (GRAIN << (8 * NUMBER)) };
        (far + number(&region[1..]) * GRAIN + u64::from(region[0] & 1), number(&region[1 + NUMBER..]) * GRAIN, kind)
    });
    let mut map = match MemoryMap::new(regions, PHYSICAL_END) {
        Ok(map) => map,
        // What is said of it goes onto a console.
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    check(&map);
    let (start, frames) = (number(claimed), number(&claimed[NUMBER..]));
    if map.claim(Pfn(start)..Pfn(start + frames)).is_ok() {
        check(&map);
        map.release_boot_loader();
        check(&map);
        let claimed = start * 4096..(start + frames) * 4096;
        let usable = map.regions().iter().filter(|region| region.kind == RegionKind::Usable);
        for region in usable {
            assert!(claimed.is_empty() || claimed.end <= region.start || region.end <= claimed.start, "{region:x?}");
        }
    }
});

fn number(bytes: &[u8]) -> u64 {
    bytes[..NUMBER].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn check(map: &MemoryMap) {
    assert!(map.regions().is_sorted_by_key(|region| region.start), "{:x?}", map.regions());
    for (number, region) in map.regions().iter().enumerate() {
        assert!(region.start < region.end, "{region:x?}");
        if !matches!(region.kind, RegionKind::Usable | RegionKind::BootLoader) {
            continue;
        }
        assert!((region.start | region.end) % 4096 == 0 && region.end <= PHYSICAL_END, "{region:x?}");
        let others = map.regions().iter().enumerate().filter(|(other, _)| *other != number);
        for (_, other) in others {
            assert!(other.end <= region.start || region.end <= other.start, "{region:x?} {other:x?}");
        }
    }
    assert!(map.usable_bytes() <= map.ram_bytes());
    assert!(map.end().address() <= PHYSICAL_END.next_multiple_of(4096));
}
