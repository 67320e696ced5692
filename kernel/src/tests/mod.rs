//! Tests of `mm` on the real machine: faults taken by the CPU, translations cached by it, CPUs that truly run at once.
//!
//! Rule: a race test is bounded in work, takes its random choices from the run's seed and goes through with one CPU too, or
//! says why it does not.

mod algorithms;
mod configuration;
mod failure;
mod fault;
mod helpers;
mod highmem;
mod injection;
mod lock;
mod pae;
mod race;
mod shootdown;
mod storm;
pub mod support;
mod tearing;
mod tlb;
mod turns;
