//! The protocols of `mm` as small state machines, of which every interleaving is explored. Sequentially consistent: what the
//! code makes of them, orders included, is checked by `mm`'s loom models and its runs under chosen schedules.
//!
//! | file | protocol | races |
//! | --- | --- | --- |
//! | `tables.rs` | look, lock, look again; clear, wait for who looks, free | R3 to R5 |
//! | `reclaim.rs` | an empty table goes though faults may fill it | R7, R8 |
//! | `shootdown.rs` | generations, the mask of CPUs, laziness, answers; copies of a top table | R20, R23 to R28, R31 |
//! | `lock.rs` | tickets, waiters outside the queue, halting and kicking | R38, R40 |
//!
//! A rule of a protocol can be left out, and then what it prevents must be found: else the model would show nothing.

#[cfg(test)]
mod check;
#[cfg(test)]
mod lock;
#[cfg(test)]
mod reclaim;
#[cfg(test)]
mod shootdown;
#[cfg(test)]
mod tables;
