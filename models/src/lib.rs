//! The protocols of `mm` as small state machines, of which every interleaving is explored. Sequentially consistent: what the
//! code makes of them, orders included, is checked by `mm`'s loom models and its runs under chosen schedules.
//!
//! A rule of a protocol can be left out, and then what it prevents must be found: else the model would show nothing.

#[cfg(test)]
mod tables;
