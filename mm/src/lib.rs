//! SMP-safe paging with split page-table locks.
#![cfg_attr(not(any(test, feature = "sim", loom)), no_std)]
#![deny(unsafe_code)]

pub mod address;
pub mod config;
pub mod cpu;
pub mod frame;
pub mod machine;
pub mod page;
pub mod pgtable;
pub mod slab;
pub mod stats;
pub mod sync;
pub mod tlb;
