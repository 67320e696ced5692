//! Everything that touches an x86 CPU: registers, descriptor tables, traps, the local APIC, clocks, the
//! start of application processors.
//!
//! What holds for both word sizes sits at the top level; what is 64-bit only sits in `64/`, whose modules
//! `32/` mirrors file by file. Nothing here knows what the kernel *does* with a trap or an IPI.
#![no_std]

pub mod apic;
pub mod backtrace;
pub mod control;
pub mod cpu;
pub mod entry;
pub mod idt;
pub mod interrupts;
pub mod io_port;
pub mod ipi;
pub mod kernel_map;
pub mod layout;
pub mod machine;
pub mod msr;
pub mod paging;
pub mod percpu;
pub mod reset;
pub mod time;
pub mod trampoline;
pub mod user_access;

#[cfg(target_pointer_width = "64")]
#[path = "64/mod.rs"]
mod bits;

#[cfg(target_pointer_width = "32")]
#[path = "32/mod.rs"]
mod bits;

#[cfg(target_pointer_width = "32")]
pub use bits::kmap;
pub use bits::{gdt, switch};
