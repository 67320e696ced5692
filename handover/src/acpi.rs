//! The CPUs of the machine, from the ACPI tables: RSDP, then RSDT or XSDT, then MADT (ACPI 6.5, 5.2).
//!
//! Rule: no byte is believed before the length and the checksum of its table are; a bad table gives one error that
//! names it. The parser reads memory only through the function it is given, so tests feed it tables of their own.

use alloc::vec::Vec;
use core::fmt;

use crate::{ReadMemory, u32_at, u64_at};

/// Longest table taken for one, in bytes.
const MAX_TABLE: u32 = 1 << 20;

/// Bytes of the header every table but the RSDP has.
const HEADER: usize = 36;

/// What the MADT says about the CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Physical address of the local APICs' registers.
    pub local_apic: u64,
    /// APIC identifiers of the CPUs that may be used, in the table's order.
    pub apic_ids: Vec<u32>,
}

/// A table by its signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl fmt::Debug for Signature {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{}", self.0.escape_ascii())
    }
}

/// What is wrong with the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// The firmware did not say where they are.
    NoTables,
    /// A pointer leads to memory that cannot be read.
    Unreadable(u64),
    /// Another table than this one is at the address.
    NotThere(Signature, u64),
    /// The bytes of a table do not add up to zero.
    Checksum(Signature),
    /// A table or a part of it cannot be that long.
    Length(Signature, u32),
    /// There is no MADT.
    NoMadt,
    /// The MADT names no usable CPU.
    NoCpu,
}

impl fmt::Display for AcpiError {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NoTables => write!(out, "the firmware names no ACPI tables"),
            Self::Unreadable(address) => write!(out, "ACPI tables lead to {address:#x}, which is not readable"),
            Self::NotThere(table, address) => write!(out, "no ACPI table {table:?} at {address:#x}"),
            Self::Checksum(table) => write!(out, "ACPI table {table:?} has a wrong checksum"),
            Self::Length(table, length) => write!(out, "ACPI table {table:?} has an absurd length of {length}"),
            Self::NoMadt => write!(out, "there is no ACPI table that lists the CPUs (MADT)"),
            Self::NoCpu => write!(out, "the ACPI tables list no usable CPU"),
        }
    }
}

const RSDP: Signature = Signature(*b"RSD ");
const RSDT: Signature = Signature(*b"RSDT");
const XSDT: Signature = Signature(*b"XSDT");
const MADT: Signature = Signature(*b"APIC");

/// Finds the CPUs, given where the RSDP is.
///
/// # Errors
/// When a table on the way is missing or bad.
pub fn cpus(rsdp: u64, memory: ReadMemory) -> Result<Cpus, AcpiError> {
    madt_cpus(find_madt(rsdp, memory)?)
}

fn find_madt<'a>(rsdp: u64, memory: ReadMemory<'a>) -> Result<&'a [u8], AcpiError> {
    let (root, root_address, pointer) = root_table(rsdp, memory)?;
    for entry in table(root, root_address, memory)?[HEADER..].chunks_exact(pointer) {
        let mut address = [0; 8];
        address[..pointer].copy_from_slice(entry);
        let address = u64::from_le_bytes(address);
        // Other tables are nobody's business here, wherever they lead.
        if memory(address, MADT.0.len()) == Some(&MADT.0) {
            return table(MADT, address, memory);
        }
    }
    Err(AcpiError::NoMadt)
}

/// The root table: its signature, its address, and the bytes of a pointer in it.
fn root_table(rsdp: u64, memory: ReadMemory) -> Result<(Signature, u64, usize), AcpiError> {
    const OLD: usize = 20;
    const NEW: usize = 36;
    let bytes = |length| memory(rsdp, length).ok_or(AcpiError::Unreadable(rsdp));
    let old = bytes(OLD)?;
    if !old.starts_with(b"RSD PTR ") {
        return Err(AcpiError::NotThere(RSDP, rsdp));
    }
    if sum(old) != 0 {
        return Err(AcpiError::Checksum(RSDP));
    }
    let revision = old[15];
    if revision < 2 {
        return Ok((RSDT, u64::from(u32_at(old, 16)), 4));
    }
    let new = bytes(NEW)?;
    if sum(new) != 0 {
        return Err(AcpiError::Checksum(RSDP));
    }
    match u64_at(new, 24) {
        0 => Ok((RSDT, u64::from(u32_at(new, 16)), 4)),
        xsdt => Ok((XSDT, xsdt, 8)),
    }
}

/// The whole table at `address`, after its length, signature and checksum were found good.
fn table<'a>(wanted: Signature, address: u64, memory: ReadMemory<'a>) -> Result<&'a [u8], AcpiError> {
    let unreadable = AcpiError::Unreadable(address);
    let header = memory(address, HEADER).ok_or(unreadable)?;
    if !header.starts_with(&wanted.0) {
        return Err(AcpiError::NotThere(wanted, address));
    }
    let length = u32_at(header, 4);
    if length < HEADER as u32 || length > MAX_TABLE {
        return Err(AcpiError::Length(wanted, length));
    }
    let table = memory(address, length as usize).ok_or(unreadable)?;
    if sum(table) != 0 {
        return Err(AcpiError::Checksum(wanted));
    }
    Ok(table)
}

/// Reads the entries of a MADT whose checksum is good (ACPI 6.5, 5.2.12).
fn madt_cpus(madt: &[u8]) -> Result<Cpus, AcpiError> {
    const ENTRIES: usize = HEADER + 8;
    const LOCAL_APIC: u8 = 0;
    const LOCAL_APIC_ADDRESS: u8 = 5;
    const LOCAL_X2APIC: u8 = 9;

    let bad_length = |length: usize| AcpiError::Length(MADT, length as u32);
    let mut rest = madt.get(ENTRIES..).ok_or(bad_length(madt.len()))?;
    let mut cpus = Cpus { local_apic: u64::from(u32_at(madt, HEADER)), apic_ids: Vec::new() };
    while let [kind, length, ..] = *rest {
        let length = usize::from(length);
        if length < 2 {
            return Err(bad_length(length));
        }
        let (entry, after) = rest.split_at_checked(length).ok_or(bad_length(length))?;
        rest = after;
        let long_enough = |needed| if length >= needed { Ok(()) } else { Err(bad_length(length)) };
        match kind {
            LOCAL_APIC => {
                long_enough(8)?;
                cpus.add(u32::from(entry[3]), u32_at(entry, 4));
            }
            LOCAL_X2APIC => {
                long_enough(16)?;
                cpus.add(u32_at(entry, 4), u32_at(entry, 8));
            }
            LOCAL_APIC_ADDRESS => {
                long_enough(12)?;
                cpus.local_apic = u64_at(entry, 4);
            }
            _ => {}
        }
    }
    if cpus.apic_ids.is_empty() { Err(AcpiError::NoCpu) } else { Ok(cpus) }
}

impl Cpus {
    /// Adds a CPU if it is enabled. Firmware may list one in both forms.
    fn add(&mut self, apic_id: u32, flags: u32) {
        const ENABLED: u32 = 1;
        if flags & ENABLED != 0 && !self.apic_ids.contains(&apic_id) {
            self.apic_ids.push(apic_id);
        }
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::{AcpiError, Cpus, HEADER, MADT, RSDP, RSDT, Signature, XSDT, cpus, sum};
    use proptest::collection::vec;
    use proptest::proptest;

    const RSDP_AT: usize = 0;
    const ROOT_AT: usize = 64;
    const OTHER_AT: usize = 256;
    const MADT_AT: usize = 320;
    const MEMORY: usize = 1024;

    /// CPU 0 enabled, CPU 1 disabled, CPU 2 listed twice, CPU 300, an I/O APIC, registers above 4 GiB.
    const ENTRIES: &[u8] = &[
        0, 8, 0, 0, 1, 0, 0, 0, //
        0, 8, 1, 1, 0, 0, 0, 0, //
        0, 8, 2, 2, 1, 0, 0, 0, //
        1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0, //
        9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, //
        9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, //
        5, 12, 0, 0, 0, 0, 0xe0, 0xfe, 1, 0, 0, 0, //
    ];

    fn put(memory: &mut [u8], at: usize, signature: Signature, body: &[u8]) {
        let length = HEADER + body.len();
        memory[at..at + 4].copy_from_slice(&signature.0);
        memory[at + 4..at + 8].copy_from_slice(&(length as u32).to_le_bytes());
        memory[at + HEADER..at + length].copy_from_slice(body);
        memory[at + 9] = sum(&memory[at..at + length]).wrapping_neg();
    }

    /// Tables of the old form (`pointer` = 4) or the new one (8).
    fn tables(pointer: usize, entries: &[u8]) -> Vec<u8> {
        let mut memory = vec![0; MEMORY];
        let root = &mut memory[RSDP_AT..];
        root[..8].copy_from_slice(b"RSD PTR ");
        root[15] = if pointer == 8 { 2 } else { 0 };
        root[if pointer == 8 { 24 } else { 16 }] = ROOT_AT as u8;
        root[8] = sum(&root[..20]).wrapping_neg();
        root[32] = sum(&root[..36]).wrapping_neg();
        let mut pointers = vec![0; 2 * pointer];
        pointers[..2].copy_from_slice(&(OTHER_AT as u16).to_le_bytes());
        pointers[pointer..pointer + 2].copy_from_slice(&(MADT_AT as u16).to_le_bytes());
        put(&mut memory, ROOT_AT, if pointer == 8 { XSDT } else { RSDT }, &pointers);
        put(&mut memory, OTHER_AT, Signature(*b"FACP"), &[]);
        let mut body = vec![0, 0, 0xe0, 0xfe, 1, 0, 0, 0];
        body.extend_from_slice(entries);
        put(&mut memory, MADT_AT, MADT, &body);
        memory
    }

    fn parse(memory: &[u8]) -> Result<Cpus, AcpiError> {
        cpus(RSDP_AT as u64, &|address, length| {
            let start = usize::try_from(address).ok()?;
            memory.get(start..start.checked_add(length)?)
        })
    }

    /// Tables in which one byte of the table at `table` is changed, with its checksum made good again.
    fn changed(table: usize, offset: usize, value: u8) -> Vec<u8> {
        let mut memory = tables(8, ENTRIES);
        memory[table + 9] = memory[table + 9].wrapping_add(memory[table + offset]).wrapping_sub(value);
        memory[table + offset] = value;
        memory
    }

    /// Enabled CPUs are found in both forms of the tables, once each, with the registers' address.
    #[test]
    fn enabled_cpus_are_listed_once() {
        for pointer in [4, 8] {
            let cpus = parse(&tables(pointer, ENTRIES)).unwrap();
            assert_eq!(cpus.apic_ids, [0, 2, 300]);
            assert_eq!(cpus.local_apic, 0x1_fee0_0000);
        }
        assert_eq!(parse(&tables(8, &ENTRIES[..8])).unwrap().local_apic, 0xfee0_0000);
    }

    /// A single wrong byte in any table is noticed by its checksum.
    #[test]
    fn a_wrong_checksum_is_named() {
        for (table, signature, length) in [(RSDP_AT, RSDP, 36), (ROOT_AT, XSDT, 52), (MADT_AT, MADT, 124)] {
            for offset in (8..length).filter(|offset| !(table == RSDP_AT && (9..20).contains(offset))) {
                let mut memory = tables(8, ENTRIES);
                memory[table + offset] ^= 0x40;
                assert_eq!(parse(&memory), Err(AcpiError::Checksum(signature)));
            }
        }
    }

    /// Lengths that run over a table or stand still are errors.
    #[test]
    fn an_absurd_length_is_named() {
        let in_madt = |offset, value| parse(&changed(MADT_AT, offset, value));
        assert_eq!(in_madt(HEADER + 8 + 1, 0), Err(AcpiError::Length(MADT, 0)));
        assert_eq!(in_madt(HEADER + 8 + 1, 7), Err(AcpiError::Length(MADT, 7)));
        assert_eq!(in_madt(HEADER + 8 + 1, 255), Err(AcpiError::Length(MADT, 255)));
        assert_eq!(in_madt(4, 20), Err(AcpiError::Length(MADT, 20)));
        assert_eq!(in_madt(6, 0xff), Err(AcpiError::Length(MADT, 0x00ff_007c)));
        let short = parse(&changed(MADT_AT, 4, HEADER as u8));
        assert!(matches!(short, Err(AcpiError::Checksum(MADT) | AcpiError::Length(MADT, _))), "{short:?}");
    }

    /// Missing tables and pointers into nothing are errors of their own.
    #[test]
    fn missing_tables_are_named() {
        assert_eq!(parse(&[]), Err(AcpiError::Unreadable(0)));
        assert_eq!(parse(&[0; MEMORY]), Err(AcpiError::NotThere(RSDP, 0)));
        let mut memory = tables(8, ENTRIES);
        memory[MADT_AT] = b'B';
        assert_eq!(parse(&memory), Err(AcpiError::NoMadt));
        memory[ROOT_AT] = b'Y';
        assert_eq!(parse(&memory), Err(AcpiError::NotThere(XSDT, ROOT_AT as u64)));
        assert_eq!(parse(&changed(ROOT_AT, HEADER + 8 + 7, 0x80)), Err(AcpiError::NoMadt));
        assert!(parse(&changed(ROOT_AT, HEADER + 7, 0x80)).is_ok(), "another table's pointer matters");
        assert_eq!(parse(&tables(8, &[])), Err(AcpiError::NoCpu));
    }

    proptest! {
        /// Random damage to good tables never does worse than an error.
        #[test]
        fn damaged_tables_do_no_harm(damage in vec((0..2_usize, 0..128_usize, 0..=u8::MAX), 1..5)) {
            let mut memory = tables(8, ENTRIES);
            for (table, offset, value) in damage {
                let table = [ROOT_AT, MADT_AT][table];
                memory[table + 9] = memory[table + 9].wrapping_add(memory[table + offset]).wrapping_sub(value);
                memory[table + offset] = value;
            }
            if let Ok(cpus) = parse(&memory) {
                assert!(!cpus.apic_ids.is_empty(), "tables without a CPU were accepted");
            }
        }
    }
}
