//! Latchwork, a microkernel whose heart is an SMP-safe paging subsystem with split page-table locks.
//!
//! On the host this crate is an empty stub, so that workspace-wide host commands work.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod cmdline;
#[cfg(all(target_os = "none", feature = "coverage"))]
mod coverage;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod fw_cfg;
#[cfg(target_os = "none")]
mod harness;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod interrupt;
#[cfg(target_os = "none")]
mod line;
#[cfg(target_os = "none")]
mod log;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod misbehave;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod record;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod serial;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod sync;
#[cfg(target_os = "none")]
mod tests;
#[cfg(target_os = "none")]
mod thread;
#[cfg(target_os = "none")]
mod trap;
#[cfg(target_os = "none")]
mod watchdog;
#[cfg(target_os = "none")]
mod workload;

#[cfg(not(target_os = "none"))]
fn main() {}
