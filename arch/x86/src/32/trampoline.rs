//! From the start-up message to Rust on an application processor.
//!
//! The CPU begins in real mode in a page below 1 MiB. It goes to protected mode with paging in one step (`CR4.PAE`, `CR3`,
//! `EFER.NXE`, then `CR0.PE` and `CR0.PG` together), on a top table of its own that maps the page at its own address beside the
//! kernel half, and jumps to the kernel with the stack and the argument it finds in the page. One CPU uses the page at a time.

use core::arch::global_asm;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{Ordering, fence};

use crate::{control, cpu, msr};

/// Frames the trampoline needs, contiguous, below 1 MiB: code, data and top table in one, and a PMD table.
pub const FRAMES: usize = 2;

const FRAME_SIZE: usize = 4096;
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
/// In an entry of the top table an emulator may set it, which the architecture forbids.
const ACCESSED: u64 = 1 << 5;
/// The entry of the top table that leads to the kernel half.
const KERNEL_HALF: usize = 3;

/// Where in the page the parameters lie; the code ends before. The top table comes first of them and wants a multiple of 32.
const PARAMETERS: usize = 0xf00;

/// Flat 32-bit segments of ring 0.
const CODE_DESCRIPTOR: u64 = 0x00cf_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

/// What the code in the page reads.
#[repr(C, align(32))]
struct Parameters {
    top: [u64; 4],
    /// Descriptor table: the null descriptor, code and data.
    gdt: [u64; 3],
    entry: u32,
    stack_top: u32,
    argument: u32,
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

/// A trampoline set up in low memory.
#[derive(Debug)]
pub struct Trampoline {
    page: u8,
    parameters: *mut Parameters,
}

// SAFETY: the pointer leads to memory that the trampoline owns.
unsafe impl Send for Trampoline {}

/// The frames cannot serve: not below 1 MiB, or not on a frame boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnusableFrames;

impl Trampoline {
    /// Sets the trampoline up in [`FRAMES`] frames from physical address `frames`, which the kernel sees at `window`.
    /// `root` is the kernel's root table as the kernel sees it; its last entry must be complete.
    ///
    /// # Errors
    /// When the frames cannot serve.
    ///
    /// # Safety
    /// The frames must be RAM, visible at `window` and used by nothing else until every CPU started through them has
    /// loaded another root table.
    pub unsafe fn new(frames: u64, window: *mut u8, root: *const u64) -> Result<Self, UnusableFrames> {
        let page = u8::try_from(frames / FRAME_SIZE as u64).map_err(|_| UnusableFrames)?;
        if !frames.is_multiple_of(FRAME_SIZE as u64) || usize::from(page) + FRAMES > 0x100 {
            return Err(UnusableFrames);
        }
        // SAFETY: the root is a table of four entries; the kernel's is read, never kept.
        let kernel_half = unsafe { root.add(KERNEL_HALF).read_volatile() } & !ACCESSED;
        let pmds = frames + FRAME_SIZE as u64;
        // Below 1 MiB, as checked above.
        let base = frames as u32;
        let protected_offset = (&raw const CODE_PROTECTED).addr() - (&raw const CODE).addr();
        let parameters = window.wrapping_add(PARAMETERS).cast::<Parameters>();
        let contents = Parameters {
            top: [pmds | PRESENT, 0, 0, kernel_half],
            gdt: [0, CODE_DESCRIPTOR, DATA_DESCRIPTOR],
            entry: 0,
            stack_top: 0,
            argument: 0,
            root: base + (PARAMETERS + offset_of!(Parameters, top)) as u32,
            efer: if cpu::has_no_execute() { msr::EFER_NO_EXECUTE_ENABLE as u32 } else { 0 },
            protected: base + protected_offset as u32,
            protected_selector: CODE_SELECTOR,
            gdt_limit: size_of::<[u64; 3]>() as u16 - 1,
            gdt_base: base + (PARAMETERS + offset_of!(Parameters, gdt)) as u32,
        };
        // SAFETY: the caller hands over the frames; the code is `PARAMETERS` bytes long by its `.org`, and the parameters lie
        // behind it.
        unsafe {
            ptr::write_bytes(window, 0, FRAMES * FRAME_SIZE);
            ptr::copy_nonoverlapping(&raw const CODE, window, PARAMETERS);
            // The first 2 MiB at their own address.
            window.wrapping_add(FRAME_SIZE).cast::<u64>().write(PRESENT | WRITABLE | LARGE);
            parameters.write(contents);
        }
        Ok(Self { page, parameters })
    }

    /// The page number for the start-up message.
    #[must_use]
    pub fn page(&self) -> u8 {
        self.page
    }

    /// Sets where the next CPU goes: `entry(argument)` on the stack that ends at `stack_top`, interrupts off, with GS, segments,
    /// gates and root table still to be loaded.
    ///
    /// # Safety
    /// The CPU started last must be through. The stack must be the new CPU's own.
    pub unsafe fn aim(&mut self, entry: extern "C" fn(usize) -> !, stack_top: usize, argument: usize) {
        // SAFETY: the parameters are ours, and no CPU reads them now.
        unsafe {
            (*self.parameters).entry = entry as usize as u32;
            (*self.parameters).stack_top = stack_top as u32;
            (*self.parameters).argument = argument as u32;
        }
        // The stores precede the start-up message.
        fence(Ordering::SeqCst);
    }
}

unsafe extern "C" {
    #[link_name = "latchwork_ap_code"]
    static CODE: u8;
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
    stack_top = const PARAMETERS + offset_of!(Parameters, stack_top),
    argument = const PARAMETERS + offset_of!(Parameters, argument),
    entry = const PARAMETERS + offset_of!(Parameters, entry),
    parameters = const PARAMETERS,
    efer_register = const msr::EFER,
);

const _: () = assert!(PARAMETERS + size_of::<Parameters>() <= FRAME_SIZE);
