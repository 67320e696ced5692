//! The 64-bit half of the crate.

pub mod backtrace;
pub mod entry;
pub mod gdt;
pub mod idt;
pub mod kernel_map;
pub mod layout;
pub mod machine;
pub mod percpu;
pub mod switch;
pub mod trampoline;
pub mod user_access;
