//! Which accelerator to use, and why.

use std::fs::{self, OpenOptions};

use crate::machine::Accelerator;

/// What this machine offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Virtualisation {
    /// The processor shows `vmx` or `svm`. Without it `/dev/kvm` may exist all the same and be an emulation that is
    /// slower than TCG and runs little.
    pub processor: bool,
    /// `/dev/kvm` can be opened.
    pub device: bool,
}

impl Virtualisation {
    /// Looks.
    pub fn detect() -> Self {
        Self {
            processor: shows_virtualisation(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            device: OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok(),
        }
    }

    /// KVM only when both are there.
    pub fn accelerator(self) -> Accelerator {
        if self.processor && self.device { Accelerator::Kvm } else { Accelerator::Tcg }
    }

    /// The reason for that choice.
    pub fn reason(self) -> &'static str {
        match (self.processor, self.device) {
            (true, true) => "the processor has vmx or svm, and /dev/kvm opens",
            (true, false) => "the processor has vmx or svm, but /dev/kvm does not open",
            (false, true) => "/dev/kvm opens, but the processor shows neither vmx nor svm",
            (false, false) => "no /dev/kvm, and the processor shows neither vmx nor svm",
        }
    }
}

fn shows_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_flag_and_the_device() {
        for (processor, device, expected) in [
            (true, true, Accelerator::Kvm),
            (false, true, Accelerator::Tcg),
            (true, false, Accelerator::Tcg),
            (false, false, Accelerator::Tcg),
        ] {
            assert_eq!(Virtualisation { processor, device }.accelerator(), expected);
        }
    }

    #[test]
    fn flags_are_whole_words() {
        assert!(shows_virtualisation("model: x\nflags\t\t: fpu vmx sse\n"));
        assert!(shows_virtualisation("flags : fpu svm\n"));
        assert!(!shows_virtualisation("flags : fpu svm_lock\nbugs : vmx\n"));
        assert!(!shows_virtualisation(""));
    }
}
