//! Everything that touches an x86 CPU: registers, descriptor tables, traps, the local APIC, clocks, the
//! start of application processors.
//!
//! What holds for both word sizes sits at the top level; what is 64-bit only sits in `64/`, whose modules
//! a 32-bit kernel mirrors file by file. Nothing here knows what the kernel *does* with a trap or an IPI.
#![no_std]

pub mod interrupts;
pub mod io_port;
