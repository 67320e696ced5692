//! The 32-bit half of the crate: PAE.

pub mod entry;
pub mod gate;
pub mod gdt;
pub mod kmap;
pub mod layout;
pub mod memory;
pub mod paging;
pub mod switch;
pub mod trampoline;
pub mod user_access;
