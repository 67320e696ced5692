//! What of `CR3` is the mode's. With PAE it names a table of four entries, which the CPU copies when it is loaded, and does not
//! read again until the next load: a changed entry counts only then (I38). An emulator may read them at every walk instead and
//! so hide a missing load, so there is a record of what each CPU has copied.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use mm::config::NR_CPUS;
use mm::pgtable::{Entry, EntrySlot};

use crate::kernel_map::Slot;
use crate::{interrupts, layout, percpu};

/// Bits of `CR3` that name the root table.
pub(crate) const CR3_ROOT: usize = !0x1f;

/// Entries of the root table.
const ENTRIES: usize = 4;

/// The accessed bit, which an emulator sets in the table, against the architecture.
const ACCESSED: u64 = 1 << 5;

/// What a CPU has copied. Read and written by that CPU alone, with interrupts off, so relaxed.
#[repr(align(64))]
struct Latched {
    /// The root table; 0 before the first recorded load.
    root: AtomicUsize,
    /// Low and high words of its entries.
    entries: [[AtomicU32; 2]; ENTRIES],
}

static LATCHED: [Latched; NR_CPUS] =
    [const { Latched { root: AtomicUsize::new(0), entries: [const { [const { AtomicU32::new(0) }; 2] }; ENTRIES] } };
        NR_CPUS];

/// Does `reload`, which has the CPU copy the entries of the root table at `root`, in the direct map, and records what it
/// copies. The record is read first: an entry that changes in between is the newer one in the CPU, never in the record.
pub(crate) fn reloading(root: usize, reload: impl FnOnce()) {
    let table = (layout::DIRECT_MAP.start + root) as *const [Slot; ENTRIES];
    // SAFETY: whoever loads a root table keeps it, and slots are atomics.
    let table = unsafe { &*table };
    // Whoever interrupts a load may be the one who asks for another.
    interrupts::without(|| {
        let latched = &LATCHED[percpu::cpu().index()];
        latched.root.store(root, Ordering::Relaxed);
        for (slot, [low, high]) in table.iter().zip(&latched.entries) {
            let entry = slot.load().0 & !ACCESSED;
            low.store(entry as u32, Ordering::Relaxed);
            high.store((entry >> 32) as u32, Ordering::Relaxed);
        }
        reload();
    });
}

/// What the running CPU has copied of entry `index` of the root table; `None` before its first recorded load.
pub(crate) fn latched(index: usize) -> Option<Entry> {
    interrupts::without(|| {
        let latched = &LATCHED[percpu::cpu().index()];
        if latched.root.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let [low, high] = latched.entries.get(index)?;
        Some(Entry(u64::from(high.load(Ordering::Relaxed)) << 32 | u64::from(low.load(Ordering::Relaxed))))
    })
}
