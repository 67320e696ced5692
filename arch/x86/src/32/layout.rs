//! The kernel half with PAE: the last GiB. One entry of the top table leads to it, so all address spaces share the PMD table
//! below that entry, and with it the whole of the kernel's tree.

use mm::pgtable::Level;

use crate::layout::Window;

/// The format of page tables.
pub type Mode = mm::pgtable::Pae;

/// Levels of tables.
pub const LEVELS: u32 = 3;

const MIB: usize = 1 << 20;

/// Everything that belongs to the kernel.
pub const KERNEL_HALF: Window = Window { start: 0xc000_0000, bytes: 1024 * MIB };

/// Low memory, at its physical address plus the window's start. Frames above it are high memory: see [`KMAP`].
pub const DIRECT_MAP: Window = Window { start: 0xc000_0000, bytes: 896 * MIB };

/// Registers of devices, uncached.
pub const DEVICES: Window = Window { start: 0xf800_0000, bytes: 16 * MIB };

/// Kernel stacks, each above its guard.
pub const STACKS: Window = Window { start: 0xf900_0000, bytes: 48 * MIB };

/// Frames of high memory, each for a moment; one PTE table maps them all.
pub const KMAP: Window = Window { start: 0xfc00_0000, bytes: 2 * MIB };

/// The kernel image; `kernel/build.rs` links it here.
pub const IMAGE: Window = Window { start: 0xfd00_0000, bytes: 48 * MIB };

/// All windows of the kernel half.
pub const WINDOWS: [Window; 5] = [DIRECT_MAP, DEVICES, STACKS, KMAP, IMAGE];

/// Every window has its tables of this level from boot on: what lies below one of them is the same for all address spaces.
pub const SHARED: Level = Level::Pmd;

/// Whether entries of the top table carry no rights.
pub const BARE_TOP: bool = true;

/// First page of the tests' address spaces; a PMD table begins there.
pub const TEST_BASE: u64 = 1 << 30;

/// First pages of the storm's regions: at the beginning of a table, and in the middle of one far away.
pub const STORM: [u64; 2] = [512 << 20, (2 << 30) + 37 * 4096];

/// Levels of tables that a CPU with this `CR4` walks.
#[must_use]
pub const fn levels_in_use(_cr4: usize) -> u32 {
    LEVELS
}
