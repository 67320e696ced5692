//! One QEMU: its arguments, its monitor, its life.

pub mod command;
pub mod monitor;
pub mod session;

pub use command::{BootMedium, Invocation};
pub use session::{Ended, Limits, Observer, Session, SpawnError};
