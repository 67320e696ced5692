//! What `cargo xtask run` and `bench` have the kernel do: jobs that check themselves.

pub mod crew;
pub mod locks;
mod storage;
pub mod storm;
mod tables;
