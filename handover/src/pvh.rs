//! `hvm_start_info`, in which PVH tells of the machine (`start_info.h` of the Xen sources).
//!
//! Rule: a structure is read only where it lies whole in memory that can be read, and aligned as it is laid out.

use core::fmt;

use alloc::vec::Vec;

use crate::memory_map::RegionKind;
use crate::{ReadMemory, u32_at, u64_at};

/// First word of `hvm_start_info`.
const MAGIC: u32 = 0x336e_c578;
/// Its bytes, up to the fields of version 1, and where those are that matter here.
const START_INFO: usize = 56;
const VERSION: usize = 4;
const RSDP: usize = 32;
const MEMORY_MAP: usize = 40;
const MEMORY_MAP_ENTRIES: usize = 48;

/// Bytes of `hvm_memmap_table_entry`: start, length, type, and a reserved word.
const ENTRY: usize = 24;
/// More entries than any firmware names.
const MAX_ENTRIES: u32 = 1024;
/// How both structures are aligned.
const ALIGNMENT: u64 = 8;

/// What the start info says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartInfo {
    /// Start, length in bytes and use of each region of memory, unchecked, in the loader's order.
    pub regions: Vec<(u64, u64, RegionKind)>,
    /// Physical address of the ACPI root pointer, if the loader names one.
    pub rsdp: Option<u64>,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartInfoError {
    /// It does not begin with its magic number.
    WrongMagic,
    /// There is no memory map.
    NoMemoryMap,
    /// The memory map has this many entries, which is absurd.
    MemoryMapLength(u32),
    /// A structure would lie at this address, where none can be.
    StrayPointer(u64),
}

impl fmt::Display for StartInfoError {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::WrongMagic => write!(out, "the start info has no magic number"),
            Self::NoMemoryMap => write!(out, "the start info names no memory map"),
            Self::MemoryMapLength(entries) => write!(out, "the memory map has an absurd {entries} entries"),
            Self::StrayPointer(address) => write!(out, "a structure would lie at {address:#x}, where none can be"),
        }
    }
}

/// Reads the start info at a physical address.
///
/// # Errors
/// When it, or the memory map it names, is not there or cannot be true.
pub fn read(address: u64, memory: ReadMemory) -> Result<StartInfo, StartInfoError> {
    let info = at(address, START_INFO, memory)?;
    if u32_at(info, 0) != MAGIC {
        return Err(StartInfoError::WrongMagic);
    }
    let (map, entries) = (u64_at(info, MEMORY_MAP), u32_at(info, MEMORY_MAP_ENTRIES));
    if u32_at(info, VERSION) < 1 || map == 0 {
        return Err(StartInfoError::NoMemoryMap);
    }
    if entries > MAX_ENTRIES {
        return Err(StartInfoError::MemoryMapLength(entries));
    }
    let regions = at(map, entries as usize * ENTRY, memory)?.chunks_exact(ENTRY).map(region).collect();
    let rsdp = u64_at(info, RSDP);
    Ok(StartInfo { regions, rsdp: (rsdp != 0).then_some(rsdp) })
}

/// Reads an entry; the type is the one of the BIOS's E820 call.
fn region(entry: &[u8]) -> (u64, u64, RegionKind) {
    let kind = match u32_at(entry, 16) {
        1 => RegionKind::Usable,
        3 | 4 => RegionKind::Firmware,
        _ => RegionKind::Reserved,
    };
    (u64_at(entry, 0), u64_at(entry, 8), kind)
}

fn at<'a>(address: u64, bytes: usize, memory: ReadMemory<'a>) -> Result<&'a [u8], StartInfoError> {
    let bytes = (address != 0 && address.is_multiple_of(ALIGNMENT)).then(|| memory(address, bytes)).flatten();
    bytes.ok_or(StartInfoError::StrayPointer(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO_AT: usize = 8;
    const MAP_AT: usize = 72;

    /// A start info of version 1 with two entries.
    fn handed_over() -> Vec<u8> {
        let mut memory = vec![0; MAP_AT + 2 * ENTRY];
        put(&mut memory, INFO_AT, u64::from(MAGIC) | 1 << 32);
        put(&mut memory, INFO_AT + RSDP, 0xf_5a00);
        put(&mut memory, INFO_AT + MEMORY_MAP, MAP_AT as u64);
        put(&mut memory, INFO_AT + MEMORY_MAP_ENTRIES, 2);
        for (entry, (start, bytes, kind)) in [(0, 0x9_fc00, 1), (0xf_0000, 0x1_0000, 2)].into_iter().enumerate() {
            let at = MAP_AT + entry * ENTRY;
            put(&mut memory, at, start);
            put(&mut memory, at + 8, bytes);
            put(&mut memory, at + 16, kind);
        }
        memory
    }

    fn put(memory: &mut [u8], at: usize, number: u64) {
        memory[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }

    fn parse(memory: &[u8]) -> Result<StartInfo, StartInfoError> {
        read(INFO_AT as u64, &|address, length| {
            let start = usize::try_from(address).ok()?;
            memory.get(start..start.checked_add(length)?)
        })
    }

    #[test]
    fn regions_and_root_pointer_are_read() {
        let info = parse(&handed_over()).unwrap();
        let expected = [(0, 0x9_fc00, RegionKind::Usable), (0xf_0000, 0x1_0000, RegionKind::Reserved)];
        assert_eq!(info, StartInfo { regions: expected.to_vec(), rsdp: Some(0xf_5a00) });
        let mut without = handed_over();
        put(&mut without, INFO_AT + RSDP, 0);
        assert_eq!(parse(&without).unwrap().rsdp, None);
    }

    #[test]
    fn what_cannot_be_true_is_named() {
        use StartInfoError::{MemoryMapLength, NoMemoryMap, StrayPointer, WrongMagic};
        let end = handed_over().len() as u64;
        let cases = [
            (INFO_AT, u64::from(MAGIC) + 1, WrongMagic),
            // Version 0 has no memory map.
            (INFO_AT, u64::from(MAGIC), NoMemoryMap),
            (INFO_AT + MEMORY_MAP, 0, NoMemoryMap),
            (INFO_AT + MEMORY_MAP, 76, StrayPointer(76)),
            (INFO_AT + MEMORY_MAP, MAP_AT as u64 + 8, StrayPointer(MAP_AT as u64 + 8)),
            (INFO_AT + MEMORY_MAP, end, StrayPointer(end)),
            (INFO_AT + MEMORY_MAP, u64::MAX - 7, StrayPointer(u64::MAX - 7)),
            (INFO_AT + MEMORY_MAP_ENTRIES, 1025, MemoryMapLength(1025)),
            (INFO_AT + MEMORY_MAP_ENTRIES, 3, StrayPointer(MAP_AT as u64)),
        ];
        for (at, number, error) in cases {
            let mut memory = handed_over();
            put(&mut memory, at, number);
            assert_eq!(parse(&memory), Err(error), "{number:#x} at {at}");
        }
        assert_eq!(parse(&[]), Err(StrayPointer(INFO_AT as u64)));
        assert_eq!(read(0, &|_, _| None), Err(StrayPointer(0)));
    }
}
