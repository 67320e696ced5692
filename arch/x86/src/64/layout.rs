//! The kernel half with four levels of tables: 128 TiB from the first canonical address of the upper half. With five levels
//! the kernel stays there: one entry of the top table leads to all of it.

use mm::pgtable::Level;

use crate::control;
use crate::layout::Window;

/// The format of page tables.
#[cfg(not(feature = "five-level"))]
pub type Mode = mm::pgtable::FourLevel;
/// The format of page tables.
#[cfg(feature = "five-level")]
pub type Mode = mm::pgtable::FiveLevel;

/// Levels of tables.
pub const LEVELS: u32 = if cfg!(feature = "five-level") { 5 } else { 4 };

const GIB: usize = 1 << 30;
const TIB: usize = 1 << 40;

/// Everything that belongs to the kernel.
pub const KERNEL_HALF: Window = Window { start: 0xffff_8000_0000_0000, bytes: 128 * TIB };

/// All RAM, at its physical address plus the window's start.
pub const DIRECT_MAP: Window = Window { start: 0xffff_8880_0000_0000, bytes: 64 * TIB };

/// Registers of devices, uncached.
pub const DEVICES: Window = Window { start: 0xffff_e000_0000_0000, bytes: 512 * GIB };

/// Kernel stacks, each above its guard.
pub const STACKS: Window = Window { start: 0xffff_e080_0000_0000, bytes: 512 * GIB };

/// The kernel image; its link address in `kernel/link.ld` lies here.
pub const IMAGE: Window = Window { start: 0xffff_ffff_8000_0000, bytes: 2 * GIB };

/// All windows of the kernel half.
pub const WINDOWS: [Window; 4] = [DIRECT_MAP, DEVICES, STACKS, IMAGE];

/// Every window has its tables of this level from boot on: what lies below one of them is the same for all address spaces.
pub const SHARED: Level = Level::Pud;

/// Whether entries of the top table carry no rights.
pub const BARE_TOP: bool = false;

/// First page of the tests' address spaces; a PMD table begins there.
pub const TEST_BASE: u64 = 4 << 30;

/// First pages of the storm's regions: at the beginning of a table, and in the middle of one far away.
pub const STORM: [u64; 2] = [64 << 30, (192 << 30) + 37 * 4096];

/// Levels of tables that a CPU with this `CR4` walks.
#[must_use]
pub const fn levels_in_use(cr4: usize) -> u32 {
    if cr4 & control::CR4_LA57 == 0 { 4 } else { 5 }
}
