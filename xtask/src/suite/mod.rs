//! `cargo xtask test`: host tests, models, checks, and the tests in the kernel, one list and one sum.

pub mod citations;
pub mod guest;
pub mod host;
pub mod kernel;
pub mod libtest;
pub mod program;
pub mod progress;
pub mod sanitized;
pub mod tally;

pub use tally::{Case, Outcome, Tally};
