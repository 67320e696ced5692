//! CPUs that get in each other's way. Each file holds the races of one operation.

pub mod come_and_go;
pub mod held;
mod huge;
mod mprotect;
mod munmap;
mod pages;
mod reclaim;
mod reuse;
mod tables;
