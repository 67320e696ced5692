//! What a kernel built for `cargo xtask coverage --kernel` has counted, written where QEMU makes a file of it.
//!
//! The compiler has each stretch of code of our crates count how often it runs. The counts, with what they belong to, are a raw
//! profile as LLVM's own tools read it; no runtime of LLVM's is needed for that. Counting is not atomic: of two CPUs that count at
//! once one may be lost, but what has run never counts as 0.

use core::ops::Range;
use core::ptr::addr_of;

use arch_x86::io_port;

/// Port of QEMU's debug console.
const PORT: u16 = 0xe9;
/// Form of the profile: LLVM 19 to 22 read this one.
const VERSION: u64 = 10;
/// The last kind of values that a profile may hold beside counts. There are none in ours.
const LAST_VALUE_KIND: u64 = 2;
/// Bytes of a record on a function: two hashes, four pointers, the number of counters, of values, of other bytes.
const RECORD: usize = (2 * 8_usize + 4 * size_of::<usize>() + 4 + 6 + 4).next_multiple_of(8);

// What the compiler made, and the linker put together (`link.ld`).
unsafe extern "C" {
    #[link_name = "__start___llvm_prf_data"]
    static RECORDS: u8;
    #[link_name = "__stop___llvm_prf_data"]
    static RECORDS_END: u8;
    #[link_name = "__start___llvm_prf_cnts"]
    static COUNTERS: u8;
    #[link_name = "__stop___llvm_prf_cnts"]
    static COUNTERS_END: u8;
    #[link_name = "__start___llvm_prf_names"]
    static NAMES: u8;
    #[link_name = "__stop___llvm_prf_names"]
    static NAMES_END: u8;
}

/// The compiler asks for a runtime by this name; it is this module.
#[unsafe(no_mangle)]
static __llvm_profile_runtime: u32 = 0;

/// Writes the profile. Call when nothing else is to be measured.
pub fn write() {
    let records = addr_of!(RECORDS)..addr_of!(RECORDS_END);
    let counters = addr_of!(COUNTERS)..addr_of!(COUNTERS_END);
    let names = addr_of!(NAMES)..addr_of!(NAMES_END);
    let length = |part: &Range<*const u8>| part.end.addr() - part.start.addr();
    // `INSTR_PROF_RAW_HEADER` of LLVM's `InstrProfData.inc`. What is 0 counts bytes of fillers and of things that we do not have.
    let header: [u64; 16] = [
        magic(),
        VERSION,
        0,
        (length(&records) / RECORD) as u64,
        0,
        (length(&counters) / size_of::<u64>()) as u64,
        0,
        0,
        0,
        length(&names) as u64,
        // Records say where their counters are, from where they are themselves.
        counters.start.addr().wrapping_sub(records.start.addr()) as u64,
        0,
        names.start.addr() as u64,
        0,
        0,
        LAST_VALUE_KIND,
    ];
    header.iter().flat_map(|word| word.to_le_bytes()).for_each(send);
    let padding = length(&names).next_multiple_of(8) - length(&names);
    for part in [records, counters, names] {
        for at in part.start.addr()..part.end.addr() {
            // SAFETY: a byte of the image. Counters change meanwhile, and any value they have had serves.
            send(unsafe { part.start.with_addr(at).read_volatile() });
        }
    }
    (0..padding).for_each(|_| send(0));
}

/// Starts a profile; it names the width of addresses.
fn magic() -> u64 {
    let width = if size_of::<usize>() == 8 { b'r' } else { b'R' };
    u64::from_be_bytes([255, b'l', b'p', b'r', b'o', b'f', width, 129])
}

fn send(byte: u8) {
    // SAFETY: the device puts what it is sent into a file; where there is none, nothing listens.
    unsafe { io_port::write_u8(PORT, byte) };
}
