//! The machine QEMU is asked for, and the words the kernel is given.

use std::fmt;
use std::time::Duration;

use protocol::logline::Level;

use crate::build::Arch;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU's translator, one host thread per CPU.
    Tcg,
    /// The processor's own virtualisation.
    Kvm,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        })
    }
}

/// How time passes for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// As it passes for the host.
    Host,
    /// One instruction takes 2^shift nanoseconds, all CPUs take turns on one thread, and nothing comes from outside:
    /// the run repeats byte for byte. Each shift is another schedule.
    Instructions {
        /// 0 to [`MAX_SHIFT`].
        shift: u8,
    },
}

/// QEMU refuses a larger `-icount shift`.
pub const MAX_SHIFT: u8 = 10;

/// The machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its processors.
    pub arch: Arch,
    /// CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What executes it.
    pub accelerator: Accelerator,
    /// How time passes.
    pub clock: Clock,
    /// A feature its CPUs do not have, in QEMU's word for it; they have all others that QEMU knows.
    pub lacks: Option<&'static str>,
}

/// A machine to try things on: eight translated CPUs that keep the host's time.
#[cfg(test)]
pub const EIGHT_CPUS: Machine = Machine {
    arch: Arch::X86_64,
    cpus: 8,
    memory_mib: 512,
    accelerator: Accelerator::Tcg,
    clock: Clock::Host,
    lacks: None,
};

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.cpus == 1 { "" } else { "s" };
        let Self { arch, cpus, memory_mib, accelerator, .. } = self;
        write!(f, "{}, {cpus} CPU{plural}, {memory_mib} MiB, {accelerator}", arch.word())?;
        match self.clock {
            Clock::Host => Ok(()),
            Clock::Instructions { shift } => write!(f, ", deterministic {shift}"),
        }
    }
}

/// What the kernel shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Run the tests whose name contains the filter.
    Test {
        /// Part of a name; empty for all.
        filter: String,
    },
    /// Run them with a rule broken.
    Sabotage {
        /// The rule.
        name: &'static str,
        /// Part of a name.
        filter: String,
    },
    /// Name those tests.
    List {
        /// Part of a name; empty for all.
        filter: String,
    },
    /// Run a workload.
    Workload {
        /// Its name.
        name: String,
        /// How often it repeats its work, if not as often as it likes.
        rounds: Option<u64>,
    },
    /// Go wrong on purpose.
    Misbehave {
        /// In which way.
        kind: String,
    },
}

/// The kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// What to do.
    pub task: Task,
    /// Where every random choice comes from.
    pub seed: u64,
    /// How long one test may take, on the guest's clock.
    pub timeout: Duration,
    /// The least grave lines to log.
    pub log: Level,
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.task {
            Task::Test { filter } if filter.is_empty() => write!(f, "mode=test")?,
            Task::Test { filter } => write!(f, "mode=test filter={filter}")?,
            Task::Sabotage { name, filter } => write!(f, "mode=test filter={filter} sabotage={name}")?,
            Task::List { filter } if filter.is_empty() => write!(f, "mode=list")?,
            Task::List { filter } => write!(f, "mode=list filter={filter}")?,
            Task::Workload { name, rounds } => {
                write!(f, "mode=run workload={name}")?;
                if let Some(rounds) = rounds {
                    write!(f, " rounds={rounds}")?;
                }
            }
            Task::Misbehave { kind } => write!(f, "mode=misbehave kind={kind}")?,
        }
        let log = match self.log {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        write!(f, " seed={} timeout={} log={log}", self.seed, self.timeout.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_reads_words_of_key_and_value() {
        let line = CommandLine {
            task: Task::Workload { name: "storm".to_owned(), rounds: Some(3) },
            seed: 42,
            timeout: Duration::from_secs(60),
            log: Level::Info,
        };
        assert_eq!(line.to_string(), "mode=run workload=storm rounds=3 seed=42 timeout=60 log=info");
        let line = CommandLine { task: Task::Test { filter: String::new() }, ..line };
        assert_eq!(line.to_string(), "mode=test seed=42 timeout=60 log=info");
        let line = CommandLine { task: Task::Sabotage { name: "dtor", filter: "race".to_owned() }, ..line };
        assert_eq!(line.to_string(), "mode=test filter=race sabotage=dtor seed=42 timeout=60 log=info");
    }
}
