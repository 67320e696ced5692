//! What an application processor goes through from real mode to the 64-bit kernel.
//!
//! It goes to long mode in one step (`CR4.PAE` and `LA57`, `CR3`, `EFER.LME`, then `CR0.PE` and `CR0.PG` together), on tables of its
//! own that map the page at its own address beside the kernel half.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::trampoline::{Destination, FRAME_SIZE, PARAMETERS};
use crate::{control, msr};

/// Five levels of tables instead of four.
const FIVE_LEVELS: bool = cfg!(feature = "five-level");

/// Frames the trampoline needs, contiguous, below 1 MiB: code and parameters, and a table of each level above the PTEs.
pub const FRAMES: usize = if FIVE_LEVELS { 5 } else { 4 };

const ENTRIES: usize = 512;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
/// First entry of the root table that belongs to the kernel half.
const KERNEL_HALF: usize = ENTRIES / 2;

/// Long mode, ring 0, code.
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const CODE_SELECTOR: u16 = 8;

/// What the code in the page reads.
#[repr(C)]
pub(crate) struct Parameters {
    pub(crate) destination: Destination,
    /// Descriptor table: the null descriptor and [`CODE_DESCRIPTOR`].
    gdt: [u64; 2],
    root: u32,
    /// Bits to set in `EFER`.
    efer: u32,
    /// Far pointer to the 64-bit part of the code.
    long_mode: u32,
    long_mode_selector: u16,
    /// Operand of `LGDT`: limit, then base, unaligned.
    gdt_limit: u16,
    gdt_base: u32,
}

/// Makes the tables in the frames from physical address `base`, and what the code is to read.
///
/// # Safety
/// The frames must be the caller's, zeroed and visible at `window`; `root` must be the kernel's root table, its upper half complete.
pub(crate) unsafe fn prepare(base: u32, window: *mut u8, root: *const u64) -> Parameters {
    let table = |index: usize| window.wrapping_add(index * FRAME_SIZE).cast::<u64>();
    let physical = |index: usize| base + (index * FRAME_SIZE) as u32;
    // SAFETY: the caller vouches for the frames, and tables are 512 entries each. The root's upper half is read, never kept.
    unsafe {
        for entry in KERNEL_HALF..ENTRIES {
            table(1).add(entry).write(root.add(entry).read_volatile());
        }
        for level in 1..FRAMES - 1 {
            table(level).write(u64::from(physical(level + 1)) | PRESENT_WRITABLE);
        }
        // The first 2 MiB at their own address.
        table(FRAMES - 1).write(PRESENT_WRITABLE | LARGE);
    }
    let long_mode_offset = (&raw const CODE_LONG_MODE).addr() - (&raw const CODE).addr();
    Parameters {
        destination: Destination::default(),
        gdt: [0, CODE_DESCRIPTOR],
        root: physical(1),
        // The kernel half holds no-execute entries; all other protections are switched on later.
        efer: (msr::EFER_LONG_MODE_ENABLE | msr::EFER_NO_EXECUTE_ENABLE) as u32,
        long_mode: base + long_mode_offset as u32,
        long_mode_selector: CODE_SELECTOR,
        gdt_limit: size_of::<[u64; 2]>() as u16 - 1,
        gdt_base: base + (PARAMETERS + offset_of!(Parameters, gdt)) as u32,
    }
}

unsafe extern "C" {
    #[link_name = "latchwork_ap_code"]
    pub(crate) static CODE: u8;
    #[link_name = "latchwork_ap_long_mode"]
    static CODE_LONG_MODE: u8;
}

global_asm!(
    ".pushsection .rodata.ap_trampoline, \"a\"",
    ".balign 16",
    ".global latchwork_ap_code",
    "latchwork_ap_code:",
    ".code16",
    "cli",
    "cld",
    "mov bx, cs",
    "mov ds, bx",
    // The page's address, for the 64-bit part.
    "movzx ebx, bx",
    "shl ebx, 4",
    "lgdt [{gdt_limit}]",
    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov eax, dword ptr [{root}]",
    "mov cr3, eax",
    "mov ecx, {efer_register}",
    "rdmsr",
    "or eax, dword ptr [{efer}]",
    "wrmsr",
    // PG, WP, ET and PE; CD and NW, which INIT has set, end here.
    "mov eax, 0x80010011",
    "mov cr0, eax",
    // The prefix makes the offset 32 bits wide; the assembler has no name for this form in 16-bit code.
    ".byte 0x66",
    "ljmp [{long_mode}]",
    ".code64",
    ".global latchwork_ap_long_mode",
    "latchwork_ap_long_mode:",
    "xor eax, eax",
    "mov ss, ax",
    "mov ds, ax",
    "mov es, ax",
    // The upper halves of registers are undefined after the change of mode.
    "mov ebx, ebx",
    "xor ebp, ebp",
    "mov rsp, [rbx + {stack_top}]",
    "mov rdi, [rbx + {argument}]",
    "call [rbx + {entry}]",
    "ud2",
    // An error here means that the code has outgrown its room.
    ".org latchwork_ap_code + {parameters}",
    ".popsection",
    gdt_limit = const PARAMETERS + offset_of!(Parameters, gdt_limit),
    cr4 = const control::CR4_PHYSICAL_ADDRESS_EXTENSION | if FIVE_LEVELS { control::CR4_LA57 } else { 0 },
    efer = const PARAMETERS + offset_of!(Parameters, efer),
    root = const PARAMETERS + offset_of!(Parameters, root),
    long_mode = const PARAMETERS + offset_of!(Parameters, long_mode),
    stack_top = const PARAMETERS + offset_of!(Parameters, destination.stack_top),
    argument = const PARAMETERS + offset_of!(Parameters, destination.argument),
    entry = const PARAMETERS + offset_of!(Parameters, destination.entry),
    parameters = const PARAMETERS,
    efer_register = const msr::EFER,
);
