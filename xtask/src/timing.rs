//! Time limits, scaled to how fast the guest runs.

use std::time::Duration;

use crate::machine::{Accelerator, Clock, Machine};
use crate::qemu::Limits;

/// What the host allows beyond the guest's own limit, so that the kernel's watchdog, which knows more, comes first.
pub const MARGIN: Duration = Duration::from_secs(15);
/// Instructions a slow host executes each second when all CPUs take turns on one thread.
const INSTRUCTIONS_PER_SECOND: u64 = 25_000_000;
/// In a deterministic run one test may take this many instructions, or [`LEAST_GUEST_TIME`], whichever is more.
const INSTRUCTIONS_PER_TEST: u64 = 2_000_000_000;
const LEAST_GUEST_TIME: Duration = Duration::from_secs(30);
/// The longest a deterministic test may keep the host waiting.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How the machine is entered, as far as time is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The kernel at once.
    Direct,
    /// Firmware and boot loader first.
    Firmware,
}

/// How long one test may take on the guest's clock; `asked` is the user's word.
pub fn guest_limit(machine: &Machine, asked: Option<Duration>) -> Duration {
    asked.unwrap_or(match (machine.clock, machine.accelerator) {
        (Clock::Host, Accelerator::Kvm) => Duration::from_secs(30),
        (Clock::Host, Accelerator::Tcg) => Duration::from_secs(60),
        (Clock::Instructions { shift }, _) => {
            LEAST_GUEST_TIME.max(Duration::from_nanos(INSTRUCTIONS_PER_TEST << shift))
        }
    })
}

/// The host's limits for a run in which one test may take `guest_limit`; `margin` is usually [`MARGIN`].
pub fn host_limits(machine: &Machine, guest_limit: Duration, margin: Duration, entry: Entry) -> Limits {
    let test = margin
        + match machine.clock {
            Clock::Host => guest_limit,
            Clock::Instructions { shift } => {
                let instructions = guest_limit.as_nanos() >> shift;
                let seconds = instructions / u128::from(INSTRUCTIONS_PER_SECOND);
                LONGEST_WAIT.min(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)))
            }
        };
    let boot = match (machine.clock, entry) {
        (Clock::Host, Entry::Direct) => Duration::from_secs(60),
        (Clock::Host, Entry::Firmware) => Duration::from_secs(180),
        (Clock::Instructions { .. }, _) => Duration::from_secs(300),
    };
    Limits {
        boot: Some(boot),
        silence: Some(test),
        test: Some(test),
        total: Some(Duration::from_secs(3600).max(test * 4)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::EIGHT_CPUS;

    #[test]
    fn a_translated_guest_gets_more_time_than_a_native_one() {
        let kvm = Machine { accelerator: Accelerator::Kvm, ..EIGHT_CPUS };
        assert!(guest_limit(&kvm, None) < guest_limit(&EIGHT_CPUS, None));
        assert_eq!(guest_limit(&kvm, Some(Duration::from_secs(7))), Duration::from_secs(7));
    }

    #[test]
    fn the_kernels_watchdog_comes_before_the_hosts() {
        for shift in 0..=crate::machine::MAX_SHIFT {
            let machine = Machine { clock: Clock::Instructions { shift }, ..EIGHT_CPUS };
            let guest = guest_limit(&machine, None);
            assert!(guest >= LEAST_GUEST_TIME);
            let host = host_limits(&machine, guest, MARGIN, Entry::Direct);
            assert!(host.silence.is_some_and(|limit| limit >= Duration::from_secs(60)), "shift {shift}: {host:?}");
        }
        let host = host_limits(&EIGHT_CPUS, Duration::from_secs(60), MARGIN, Entry::Direct);
        assert_eq!(host.silence, Some(Duration::from_secs(75)));
    }
}
