//! The kernel half with four levels of tables: 128 TiB from the first canonical address of the upper half. With five levels
//! the kernel stays there: one entry of the top table leads to all of it.

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
