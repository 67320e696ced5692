//! The command line from outside, with a script in QEMU's place.

mod bad_input;
mod bench;
mod benches;
mod saved_runs;
mod verdicts;
