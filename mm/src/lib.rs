//! SMP-safe paging with split page-table locks.
//!
//! Every PTE table and every PMD table has its own lock, in the descriptor of the frame that holds the table. CPUs that fault
//! on one address space wait for each other only if they touch the same table.
//!
//! | to see | read |
//! | --- | --- |
//! | one fault from address to entry | [`fault`] |
//! | the helpers that map and lock a PTE | `pgtable/offset.rs`, `pgtable/lockptr.rs` |
//! | what is checked before a store, and why | [`vma`], `docs/locking.md` |
//! | the order unhook, flush, free | `gather.rs`, [`tlb`], `deferred.rs` |
//! | the lock | [`sync::ticket`] |
//! | what a machine must provide | [`machine`] |
#![cfg_attr(not(any(test, feature = "sim", loom, shuttle)), no_std)]
#![deny(unsafe_code)]

#[macro_use]
pub mod sabotage;

pub mod address;
pub mod address_space;
pub mod config;
pub mod cpu;
mod deferred;
pub mod fault;
pub mod frame;
mod gather;
pub mod machine;
pub mod memory;
pub mod object;
pub mod page;
pub mod pgtable;
pub mod slab;
pub mod stats;
#[cfg(any(all(test, not(any(loom, shuttle))), feature = "sweep"))]
pub mod sweep;
pub mod sync;
#[cfg(all(test, not(any(feature = "testing", loom, shuttle))))]
mod testing;
#[cfg(any(feature = "testing", shuttle))]
pub mod testing;
pub mod tlb;
pub mod vma;

/// Whether a host test unwinds from a failure: a destructor must not fail again then, it would hide the first.
fn is_unwinding() -> bool {
    #[cfg(any(test, feature = "testing", shuttle))]
    return std::thread::panicking();
    #[cfg(not(any(test, feature = "testing", shuttle)))]
    false
}
