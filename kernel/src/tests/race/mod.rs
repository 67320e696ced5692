//! CPUs that get in each other's way. Each file holds the races of one operation.

pub mod come_and_go;
mod copy;
mod exit;
mod fork;
pub mod held;
mod huge;
mod mprotect;
mod munmap;
mod pages;
mod reclaim;
mod remap;
mod reuse;
mod tables;
