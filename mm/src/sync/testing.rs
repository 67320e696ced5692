//! The simulated machine as the tests of this module want it: no memory to speak of, and a waiting rule to choose.

use super::RawLock;
use crate::machine::WaitingRule;
use crate::machine::sim::{Sim, SimConfig, SimMachine};
use crate::pgtable::FourLevel;
use std::time::Duration;

pub(super) type TestMachine = Sim<FourLevel>;

/// Gives up what the test took before.
#[allow(unsafe_code)]
pub(super) fn unlock<L: RawLock>(lock: &L, machine: TestMachine) {
    // SAFETY: the tests give up only what they took, on the CPU that took it.
    unsafe { lock.unlock(machine) }
}

/// A machine of `cpus` CPUs that wait by `rounds` and `polls`. A wake-up that is lost ends it long before
/// [`STUCK_AFTER`](super::parking::STUCK_AFTER).
pub(super) fn machine(cpus: usize, rounds: u32, polls: u32) -> SimMachine<FourLevel> {
    SimMachine::new(SimConfig {
        waiting_rule: WaitingRule { rounds, polls, polls_per_pause: 1 },
        time_limit: Duration::from_secs(40),
        ..SimConfig::racy(1, cpus, 1)
    })
}
