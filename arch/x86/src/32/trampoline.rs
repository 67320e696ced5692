//! What an application processor goes through with PAE, from real mode to the kernel.
//!
//! It goes to protected mode with paging in one step (`CR4.PAE`, `CR3`, `EFER.NXE`, then `CR0.PE` and `CR0.PG` together), on a top
//! table of its own that maps the page at its own address beside the kernel half.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::trampoline::{Destination, FRAME_SIZE, PARAMETERS};
use crate::{control, cpu, msr};

/// Frames the trampoline needs, contiguous, below 1 MiB: code, parameters and top table in one, and a PMD table.
pub const FRAMES: usize = 2;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
/// In an entry of the top table an emulator may set it, which the architecture forbids.
const ACCESSED: u64 = 1 << 5;
/// The entry of the top table that leads to the kernel half.
const KERNEL_HALF: usize = 3;

/// Flat 32-bit segments of ring 0.
const CODE_DESCRIPTOR: u64 = 0x00cf_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

/// What the code in the page reads. The top table wants a multiple of 32.
#[repr(C, align(32))]
pub(crate) struct Parameters {
    top: [u64; 4],
    /// Descriptor table: the null descriptor, code and data.
    gdt: [u64; 3],
    pub(crate) destination: Destination,
    root: u32,
    /// What to set in `EFER`; 0 where that may not exist.
    efer: u32,
    /// Far pointer to the 32-bit part of the code.
    protected: u32,
    protected_selector: u16,
    /// Operand of `LGDT`: limit, then base, unaligned.
    gdt_limit: u16,
    gdt_base: u32,
}

const _: () = assert!(PARAMETERS.is_multiple_of(align_of::<Parameters>()));

/// Makes the tables in the frames from physical address `base`, and what the code is to read.
///
/// # Safety
/// The frames must be the caller's, zeroed and visible at `window`; `root` must be the kernel's root table, its last entry complete.
pub(crate) unsafe fn prepare(base: u32, window: *mut u8, root: *const u64) -> Parameters {
    // SAFETY: the root is a table of four entries; the kernel's is read, never kept.
    let kernel_half = unsafe { root.add(KERNEL_HALF).read_volatile() } & !ACCESSED;
    // SAFETY: the second frame. It maps the first 2 MiB at their own address.
    unsafe { window.wrapping_add(FRAME_SIZE).cast::<u64>().write(PRESENT | WRITABLE | LARGE) };
    let pmds = u64::from(base) + FRAME_SIZE as u64;
    let protected_offset = (&raw const CODE_PROTECTED).addr() - (&raw const CODE).addr();
    Parameters {
        top: [pmds | PRESENT, 0, 0, kernel_half],
        gdt: [0, CODE_DESCRIPTOR, DATA_DESCRIPTOR],
        destination: Destination::default(),
        root: base + (PARAMETERS + offset_of!(Parameters, top)) as u32,
        efer: if cpu::has_no_execute() { msr::EFER_NO_EXECUTE_ENABLE as u32 } else { 0 },
        protected: base + protected_offset as u32,
        protected_selector: CODE_SELECTOR,
        gdt_limit: size_of::<[u64; 3]>() as u16 - 1,
        gdt_base: base + (PARAMETERS + offset_of!(Parameters, gdt)) as u32,
    }
}

unsafe extern "C" {
    #[link_name = "latchwork_ap_code"]
    pub(crate) static CODE: u8;
    #[link_name = "latchwork_ap_protected"]
    static CODE_PROTECTED: u8;
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
    // The page's address, for the 32-bit part.
    "movzx ebx, bx",
    "shl ebx, 4",
    "lgdt [{gdt_limit}]",
    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov eax, dword ptr [{root}]",
    "mov cr3, eax",
    // The kernel half holds no-execute entries, if the boot CPU has them; all other protections are switched on later.
    "mov edi, dword ptr [{efer}]",
    "test edi, edi",
    "jz 2f",
    "mov ecx, {efer_register}",
    "rdmsr",
    "or eax, edi",
    "wrmsr",
    "2:",
    // PG, WP, ET and PE; CD and NW, which INIT has set, end here.
    "mov eax, 0x80010011",
    "mov cr0, eax",
    // The prefix makes the offset 32 bits wide; the assembler has no name for this form in 16-bit code.
    ".byte 0x66",
    "ljmp [{protected}]",
    ".code32",
    ".global latchwork_ap_protected",
    "latchwork_ap_protected:",
    "mov eax, {data_selector}",
    "mov ss, eax",
    "mov ds, eax",
    "mov es, eax",
    "xor ebp, ebp",
    "mov esp, [ebx + {stack_top}]",
    // A multiple of 16 below the argument.
    "sub esp, 12",
    "push dword ptr [ebx + {argument}]",
    "call [ebx + {entry}]",
    "ud2",
    // An error here means that the code has outgrown its room.
    ".org latchwork_ap_code + {parameters}",
    ".popsection",
    gdt_limit = const PARAMETERS + offset_of!(Parameters, gdt_limit),
    cr4 = const control::CR4_PHYSICAL_ADDRESS_EXTENSION,
    root = const PARAMETERS + offset_of!(Parameters, root),
    efer = const PARAMETERS + offset_of!(Parameters, efer),
    protected = const PARAMETERS + offset_of!(Parameters, protected),
    data_selector = const DATA_SELECTOR,
    stack_top = const PARAMETERS + offset_of!(Parameters, destination.stack_top),
    argument = const PARAMETERS + offset_of!(Parameters, destination.argument),
    entry = const PARAMETERS + offset_of!(Parameters, destination.entry),
    parameters = const PARAMETERS,
    efer_register = const msr::EFER,
);
