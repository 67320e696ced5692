//! The kernel half with four levels of tables: 128 TiB from the first canonical address of the upper half.

use crate::layout::Window;

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
