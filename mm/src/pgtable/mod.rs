//! Page tables: entries, modes, where a table's lock lives, and the helpers that map and lock them.

mod entry;
mod mode;
mod ptlock;

pub use entry::{Entry, EntrySlot, Protection, Slot64};
pub use mode::{FourLevel, Level, PagingMode, Tiny};
pub use ptlock::{PageTableLock, PtlGuard, PtlStorage};
