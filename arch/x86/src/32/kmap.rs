//! Slots of the kernel half at which a CPU maps frames of high memory for a moment.
//!
//! Rules. Each CPU has [`DEPTH`] slots of its own and uses them as a stack: a mapping is ended on the CPU that made it, last
//! in, first out, before that CPU sleeps or changes threads. An interrupt may map too, if it ends what it maps. So nobody waits
//! for a slot, no other CPU ever has the translation of one cached, and a slot costs one entry and one flush on one CPU.
//!
//! Every build finds a ninth mapping, one that is ended out of order, and one that is ended and was not there. In checked
//! builds the entry goes when the mapping ends, so that a use after it faults. Otherwise it stays, and costs nothing if the
//! same frame is the next to be mapped there, as a PTE table often is. Who keeps a mapping across a sleep is found by
//! `mm::sync::order`, in builds that check the order of locks.

use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use mm::address::Pfn;
use mm::config::{NR_CPUS, PAGE_SIZE};
use mm::pgtable::{Entry, EntrySlot, Level};
use mm::sabotaged;

use crate::kernel_map::{self, FrameSource, KernelMap, MapError, Slot};
use crate::{layout, paging, percpu};

/// Frames a CPU can have mapped at once.
pub const DEPTH: usize = 8;

/// Whether the use of an ended mapping is to fault.
const CHECKED: bool = cfg!(any(debug_assertions, feature = "debug-locks"));

const _: () = assert!(NR_CPUS * DEPTH * PAGE_SIZE <= layout::KMAP.bytes);

/// Where the direct map shows the PTE table of all slots. Stored once, while the kernel's tree is built, and read relaxed.
static TABLE: AtomicUsize = AtomicUsize::new(0);

/// How many slots a CPU uses. Only that CPU reads and writes it, so relaxed.
#[repr(align(64))]
struct Depth(AtomicUsize);

static DEPTHS: [Depth; NR_CPUS] = [const { Depth(AtomicUsize::new(0)) }; NR_CPUS];

/// Gives the new tree `map` the PTE table of the slots.
///
/// # Errors
/// Out of frames.
pub(super) fn prepare(map: &KernelMap, frames: &mut dyn FrameSource) -> Result<(), MapError> {
    map.slot(layout::KMAP.start, Level::Pte, frames)?;
    let table = map.slot(layout::KMAP.start, Level::Pmd, frames)?.load().pfn();
    TABLE.store(layout::direct(table), Ordering::Relaxed);
    Ok(())
}

/// Maps `frame` in the running CPU's next slot and returns where.
///
/// # Panics
/// If it has used all of them.
#[must_use]
pub fn map(frame: Pfn) -> usize {
    let (depth, first) = own();
    let used = depth.load(Ordering::Relaxed);
    assert!(used < DEPTH, "cpu {} has {used} frames mapped, and has no slot for {frame:?}", percpu::cpu().0);
    // An interrupt from here on uses the slots above, and has left them when it returns. It may have come before, too, since
    // it leaves `depth` as it was.
    depth.store(used + 1, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let (address, slot) = (address(first + used), slot(first + used));
    let entry = kernel_map::page(frame);
    let old = slot.load();
    if old != entry {
        if !old.is_none() && !sabotaged!("kmap-flush") {
            slot.swap(Entry::NONE);
            paging::flush_page(address);
        }
        slot.store(entry);
    }
    address
}

/// Ends the mapping at `address`.
///
/// # Panics
/// If that is not the last of the running CPU's.
pub fn unmap(address: usize) {
    let (depth, first) = own();
    let used = depth.load(Ordering::Relaxed);
    assert!(used > 0, "cpu {} ends the mapping at {address:#x}, and has none", percpu::cpu().0);
    let last = first + used - 1;
    assert!(
        address == self::address(last),
        "cpu {} ends the mapping at {address:#x} before its last at {:#x}",
        percpu::cpu().0,
        self::address(last)
    );
    if CHECKED {
        slot(last).swap(Entry::NONE);
        paging::flush_page(address);
    }
    // An interrupt from here on may use the slot.
    compiler_fence(Ordering::SeqCst);
    depth.store(used - 1, Ordering::Relaxed);
}

/// Mappings of the running CPU that have not been ended.
#[must_use]
pub fn depth() -> usize {
    own().0.load(Ordering::Relaxed)
}

/// The running CPU's depth and the number of its first slot.
fn own() -> (&'static AtomicUsize, usize) {
    let cpu = percpu::cpu().index();
    (&DEPTHS[cpu].0, cpu * DEPTH)
}

fn address(number: usize) -> usize {
    layout::KMAP.start + number * PAGE_SIZE
}

fn slot(number: usize) -> &'static Slot {
    let table = TABLE.load(Ordering::Relaxed) as *const Slot;
    // SAFETY: nothing is mapped here before `prepare`, after which the table stays in the direct map for good; it has a slot
    // for each page of the window, and slots are atomics.
    unsafe { &*table.add(number) }
}
