//! The kernel's own page tables: one tree whose upper half every address space shares.
//!
//! Rules. No page is writable and executable, in any of its mappings (W^X): the image's code and constants are
//! read-only in the direct map too. Every window of the kernel half has its top-level entries from the start, so
//! copying the kernel's top-level entries once is enough. After activation entries only go from none to present, which needs no
//! flush. Nothing is mapped in the user half.

mod tree;

use core::sync::atomic::{AtomicUsize, Ordering};

use mm::address::{Pfn, VirtAddr};
use mm::config::PAGE_SIZE;
use mm::pgtable::{EntrySlot, Level, PagingMode};
use mm::sabotaged;
use spin::Mutex;

use crate::bits::switch;
use crate::control;
use crate::layout::{self, Mode, StackSlot};

pub use tree::{KernelMap, Mapping};

/// The memory location of an entry.
pub type Slot = <Mode as PagingMode>::Slot;

/// Where frames for tables and stacks come from.
///
/// # Safety
/// A frame given must be RAM, used by nobody else until it is given back, and mapped where the tree it is for is reached.
pub unsafe trait FrameSource {
    /// A frame, with any content.
    fn take(&mut self) -> Option<Pfn>;
    /// Takes back the frame that was taken last of those not given back, unused.
    fn give_back(&mut self, frame: Pfn);
}

/// What the kernel may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Execute and read.
    Code,
    /// Read.
    ReadOnly,
    /// Read and write.
    Data,
    /// Read and write, uncached.
    Device,
}

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table or a stack.
    OutOfFrames,
    /// Something is mapped at this address already.
    Occupied(usize),
    /// The address lies outside the window it was meant for, or the window is full.
    OutsideWindow(usize),
    /// Nothing is mapped at this address, where something must be.
    Unmapped(usize),
}

/// Number of the frame that holds the active tree's top table. Stored once on the boot CPU before others run, read relaxed.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// What changes after activation. Not to be locked in interrupt handlers; its holder waits for nothing.
static CHANGES: Mutex<Changes> = Mutex::new(Changes { next_device: layout::DEVICES.start });

struct Changes {
    /// First free address of the devices' window.
    next_device: usize,
}

/// Loads the tree, and goes on in `entry` on the stack that ends at `stack_top`, with interrupts off.
///
/// # Safety
/// The tree must map the kernel image where it is now, all RAM in the direct map and the stack. The CPU must have
/// every feature switched on that the entries use. Nothing of the caller's stack may be used any more. Call once.
pub unsafe fn activate(map: KernelMap, stack_top: usize, entry: extern "C" fn() -> !) -> ! {
    ACTIVE.store(map.top().0 as usize, Ordering::Relaxed);
    // SAFETY: the caller vouches for tree and stack.
    unsafe { switch::leave_boot(map.top().address() as usize, stack_top, entry) }
}

/// The CPU was brought into long mode with another number of levels than this kernel's tables have. Changing it there is
/// impossible: it takes paging off, which takes long mode off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongLevels {
    /// Levels of the tables in use.
    pub found: u32,
    /// Levels of the kernel's tables.
    pub wanted: u32,
}

/// Checks that the CPU walks as many levels as the kernel's tables have.
///
/// # Errors
/// When it does not.
pub fn check_levels() -> Result<(), WrongLevels> {
    let found = layout::levels_in_use(control::cr4());
    if found == layout::LEVELS { Ok(()) } else { Err(WrongLevels { found, wanted: layout::LEVELS }) }
}

/// The active tree.
///
/// # Panics
/// Before there is one.
#[must_use]
pub fn active() -> KernelMap {
    let top = ACTIVE.load(Ordering::Relaxed);
    assert_ne!(top, 0, "the kernel's page tables are not active yet");
    // SAFETY: every table of the active tree is RAM, and so in the direct map; the tree is only changed through here.
    unsafe { KernelMap::of(Pfn(top as u64), layout::DIRECT_MAP.start) }
}

/// The top table of the active tree: what a CPU without an address space loads.
#[must_use]
pub fn top() -> Pfn {
    active().top()
}

/// Writes the kernel's entries into a new top table. They never change afterwards, but for what an emulator's walker sets
/// against the architecture (I39), and that is not copied.
pub fn copy_kernel_half(to: &[Slot]) {
    let map = active();
    let first = Mode::index(Level::Pgd, VirtAddr(layout::KERNEL_HALF.start as u64));
    let to = if sabotaged!("kernel-half") { &to[..to.len() - 1] } else { to };
    for (from, to) in map.top_entries().iter().zip(to).skip(first) {
        to.store(Mode::to_hardware(Level::Pgd, Mode::from_hardware(Level::Pgd, from.load())));
    }
}

/// The entry of a PTE table for the kernel's own data in `frame`.
#[cfg(target_pointer_width = "32")]
pub(crate) fn page(frame: Pfn) -> mm::pgtable::Entry {
    tree::leaf(frame, Level::Pte, Rights::Data)
}

/// Maps the stack of `slot` and returns its top. Stacks stay mapped for good.
///
/// # Errors
/// As [`KernelMap::map_stack`].
pub fn stack(slot: StackSlot, frames: &mut dyn FrameSource) -> Result<usize, MapError> {
    let _changes = CHANGES.lock();
    active().map_stack(slot, frames)
}

/// Maps `bytes` of device registers at physical address `physical`, uncached and for good, and returns where.
///
/// # Errors
/// Out of frames, or the window for devices is full.
pub fn device(physical: u64, bytes: usize, frames: &mut dyn FrameSource) -> Result<usize, MapError> {
    let mut changes = CHANGES.lock();
    let offset = physical as usize % PAGE_SIZE;
    let first = Pfn::containing(physical);
    let pages = (offset + bytes).div_ceil(PAGE_SIZE);
    let start = changes.next_device;
    let end = start + pages * PAGE_SIZE;
    if !layout::DEVICES.contains(end) {
        return Err(MapError::OutsideWindow(end));
    }
    changes.next_device = end;
    active().map(start, first..Pfn(first.0 + pages as u64), Rights::Device, frames)?;
    Ok(start + offset)
}
