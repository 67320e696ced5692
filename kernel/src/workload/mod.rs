//! What `cargo xtask run` has the kernel do: jobs that check themselves.

pub mod crew;
pub mod storm;
