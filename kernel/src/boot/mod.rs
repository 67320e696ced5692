//! From the boot loader's hands to a running kernel.
//!
//! Each way of booting has an adapter that turns what the loader left into a [`Handoff`] and calls [`start`]; from
//! there on the kernel does not know which it was. `start` builds the kernel's own page tables, loads them, moves to a
//! guarded stack and continues in `run`. Nothing of the loader's is needed after that.

pub mod frames;
mod pvh;
mod tests;
#[cfg(target_arch = "x86_64")]
mod uefi;

use core::fmt;
use core::ptr::NonNull;

use arch_x86::cpu::{self, Features, MissingFeatures};
use arch_x86::kernel_map::{self, KernelMap, MapError, Rights, WrongLevels};
use arch_x86::layout::{self, IMAGE, StackSlot};
use handover::acpi::{self, AcpiError, Cpus};
use handover::memory_map::{MemoryMap, MemoryMapError};
use handover::pvh::StartInfoError;
use mm::address::Pfn;
use mm::config::PAGE_SIZE;
use spin::Once;

use crate::exit::{ExitCode, exit};
use crate::heap::NoMemory;
use frames::BootFrames;

/// How the kernel was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootKind {
    /// By QEMU's `-kernel`.
    Pvh,
    /// From a UEFI disk image.
    #[cfg(target_arch = "x86_64")]
    Uefi,
}

impl fmt::Display for BootKind {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            Self::Pvh => "pvh",
            #[cfg(target_arch = "x86_64")]
            Self::Uefi => "uefi",
        })
    }
}

/// What an adapter knows of the machine. Valid as long as the loader's page tables are loaded.
struct Handoff {
    kind: BootKind,
    memory: MemoryMap,
    /// Physical address of the ACPI root pointer.
    rsdp: Option<u64>,
    /// Where the loader's tables map physical address 0.
    access: usize,
    /// First physical address they do not map there.
    reach: u64,
}

/// What the kernel keeps of it.
#[derive(Debug)]
pub struct BootInfo {
    /// How the kernel was started.
    pub kind: BootKind,
    /// How much RAM there is, in bytes.
    pub ram_bytes: u64,
    /// The CPUs and their interrupt controllers.
    pub cpus: Cpus,
}

static INFO: Once<BootInfo> = Once::new();

/// The stack slot of the boot CPU. Slots 0 to `NR_CPUS` − 1 are the CPUs' own.
const BOOT_STACK: StackSlot = match StackSlot::new(0) {
    Some(slot) => slot,
    None => panic!("there is a first slot"),
};

/// Why the kernel cannot come up.
#[derive(Debug)]
enum BootError {
    Heap(NoMemory),
    /// PVH's start info is not as its protocol promises.
    StartInfo(StartInfoError),
    /// The UEFI loader does not map physical memory.
    #[cfg(target_arch = "x86_64")]
    NoPhysicalMap,
    Memory(MemoryMapError),
    Acpi(AcpiError),
    Map(MapError),
    Features(MissingFeatures),
    Levels(WrongLevels),
    NoExecute,
}

impl fmt::Display for BootError {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Heap(NoMemory) => write!(out, "the memory ends within the kernel image"),
            Self::StartInfo(error) => write!(out, "the boot loader left no usable hand-over: {error}"),
            #[cfg(target_arch = "x86_64")]
            Self::NoPhysicalMap => {
                write!(out, "the boot loader left no usable hand-over: physical memory is not mapped")
            }
            Self::Memory(error) => write!(out, "{error}"),
            Self::Acpi(error) => write!(out, "{error}"),
            Self::Map(error) => write!(out, "the kernel's page tables cannot be built: {error:?}"),
            Self::Levels(WrongLevels { found, wanted }) => write!(
                out,
                "the boot loader has set up {found} levels of page tables, this kernel has {wanted}: boot it by PVH, or build it for {found}"
            ),
            Self::NoExecute => {
                write!(
                    out,
                    "this CPU cannot forbid the execution of a page, or the firmware has switched that off (NX, XD)"
                )
            }
            Self::Features(missing) => write!(out, "the boot CPU lacks features it had a moment ago: {missing:?}"),
        }
    }
}

macro_rules! boot_error_from {
    ($($variant:ident: $error:ty),+) => {$(
        impl From<$error> for BootError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )+};
}

boot_error_from!(Heap: NoMemory, StartInfo: StartInfoError, Memory: MemoryMapError, Acpi: AcpiError, Map: MapError, Features: MissingFeatures, Levels: WrongLevels);

/// What the boot told. Available to everything that runs after it.
///
/// # Panics
/// During boot.
pub fn info() -> &'static BootInfo {
    match INFO.get() {
        Some(info) => info,
        None => panic!("boot information is asked for during boot"),
    }
}

/// The first code common to every way of booting: on the boot CPU, on the loader's stack and page tables, with
/// interrupts off. `handoff` reads what the loader left.
fn start(handoff: impl FnOnce() -> Result<Handoff, BootError>) -> ! {
    crate::smp::claim_boot_cpu();
    crate::serial::init();
    crate::log::init();
    let heap = crate::heap::init().map_err(BootError::from);
    let handoff = heap.and_then(|()| {
        crate::run::configure();
        handoff()
    });
    match handoff.and_then(prepare) {
        // SAFETY: `prepare` has built the tree for this machine and switched on the CPU's features; nothing on this
        // stack is used again, and `start` is called once, by the one adapter that booted.
        Ok((map, stack_top)) => unsafe { kernel_map::activate(map, stack_top, on_own_tables) },
        Err(error) => fail(&error),
    }
}

fn fail(error: &BootError) -> ! {
    log::error!("boot failed: {error}");
    exit(ExitCode::BootFailed)
}

/// Everything that needs the loader's tables.
fn prepare(handoff: Handoff) -> Result<(KernelMap, usize), BootError> {
    let Handoff { kind, mut memory, rsdp, access, reach } = handoff;
    kernel_map::check_levels()?;
    let read = |address: u64, bytes: usize| -> Option<&[u8]> {
        let bytes_at = mapped(access, reach, address, bytes)?;
        // SAFETY: the loader maps everything below `reach`. The firmware's tables are not written any more.
        Some(unsafe { bytes_at.as_ref() })
    };
    let cpus = acpi::cpus(rsdp.ok_or(AcpiError::NoTables)?, &read)?;
    for region in memory.regions() {
        log::debug!("memory {:#014x}..{:#014x} {:?}", region.start, region.end, region.kind);
    }
    log::debug!("local APICs at {:#x}, CPUs {:?}", cpus.local_apic, cpus.apic_ids);
    INFO.call_once(|| BootInfo { kind, ram_bytes: memory.ram_bytes(), cpus });

    // SAFETY: the adapter says that the loader maps all memory, its tables too, at `access`; only this CPU runs.
    let loader_map = unsafe { KernelMap::loaded(access) };
    for part in image() {
        for_each_run(&loader_map, &part, &mut |_, frames| Ok(memory.claim(frames)?))?;
    }
    if (cpu::REQUIRED - cpu::detect()).contains(Features::NO_EXECUTE) {
        return Err(BootError::NoExecute);
    }
    // SAFETY: the loader's tables allow what is enforced then: only kernel pages are used, code is executable and what
    // is written is writable. CR3 holds no PCID.
    unsafe { cpu::enable()? };

    let mut frames = BootFrames::new(memory, Pfn::containing(reach));
    let (map, stack_top) = build(&loader_map, access, &mut frames)?;
    frames.lift_reach();
    frames::install(frames);
    Ok((map, stack_top))
}

/// The bytes at physical address `address`, where the loader's tables map physical memory at `access` as far as `reach`; `None`
/// beyond, and for what would be a null pointer.
fn mapped(access: usize, reach: u64, address: u64, bytes: usize) -> Option<NonNull<[u8]>> {
    let end = address.checked_add(bytes as u64)?;
    let start = (end <= reach).then(|| (access + address as usize) as *mut u8)?;
    Some(NonNull::slice_from_raw_parts(NonNull::new(start)?, bytes))
}

/// Builds the kernel's own tree.
fn build(loader_map: &KernelMap, access: usize, frames: &mut BootFrames) -> Result<(KernelMap, usize), BootError> {
    let direct_end = frames.memory().end().min(layout::DIRECT_END);
    // SAFETY: `frames` gives nothing beyond `reach`, and the loader maps what is below at `access`.
    let map = unsafe { KernelMap::new(access, direct_end.address() as usize, frames)? };
    // The tree takes frames while the memory map is walked: walk a copy.
    for ram in frames.memory().clone().ram() {
        let shown = ram.start..ram.end.min(direct_end);
        if shown.start < shown.end {
            map.map(layout::direct(shown.start), shown, Rights::Data, frames)?;
        }
    }
    for part in image() {
        for_each_run(loader_map, &part, &mut |start, run| {
            if part.rights != Rights::Data {
                for frame in run.start.0..run.end.0 {
                    map.seal_direct(Pfn(frame), frames)?;
                }
            }
            Ok(map.map(start, run, part.rights, frames)?)
        })?;
    }
    let stack_top = map.map_stack(BOOT_STACK, frames)?;
    Ok((map, stack_top))
}

/// A part of the kernel image with rights of its own.
struct Part {
    start: usize,
    end: usize,
    rights: Rights,
}

/// The parts of the kernel image, as `link.ld` lays it out.
fn image() -> [Part; 3] {
    unsafe extern "C" {
        static __image_start: u8;
        static __text_end: u8;
        static __rodata_end: u8;
        static __image_end: u8;
    }
    let (start, text_end) = ((&raw const __image_start).addr(), (&raw const __text_end).addr());
    let (rodata_end, end) = ((&raw const __rodata_end).addr(), (&raw const __image_end).addr());
    [
        Part { start, end: text_end, rights: Rights::Code },
        Part { start: text_end, end: rodata_end, rights: Rights::ReadOnly },
        Part { start: rodata_end, end, rights: Rights::Data },
    ]
}

/// Shows the runs of consecutive frames that hold a part of the image: the first address and the frames of each.
fn for_each_run(
    loader_map: &KernelMap,
    part: &Part,
    show: &mut dyn FnMut(usize, core::ops::Range<Pfn>) -> Result<(), BootError>,
) -> Result<(), BootError> {
    let mut run_start = part.start;
    let mut run = Pfn(0)..Pfn(0);
    for page in (part.start..part.end).step_by(PAGE_SIZE) {
        let frame = loader_map.lookup(page).ok_or(MapError::Unmapped(page))?.frame_of(page);
        if frame != run.end {
            if run.start < run.end {
                show(run_start, run)?;
            }
            (run_start, run) = (page, frame..frame);
        }
        run.end = Pfn(frame.0 + 1);
    }
    show(run_start, run)
}

/// On the kernel's own tables and the boot CPU's own stack.
extern "C" fn on_own_tables() -> ! {
    debug_assert!(IMAGE.contains(on_own_tables as *const () as usize));
    crate::smp::start(crate::run::run)
}
