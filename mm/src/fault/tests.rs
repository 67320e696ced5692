//! Faults on the simulated machine: one CPU first, then races on all.

mod one_cpu;
mod races;
