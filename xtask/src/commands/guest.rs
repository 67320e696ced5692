//! From options to a plan for one run.

use anyhow::{Result, bail};

use crate::cli::{Accel, Guest};
use crate::machine::{Accelerator, Clock, Machine, Task};
use crate::runner::{Medium, Plan};
use crate::setup::accelerator::Virtualisation;
use crate::timing;

/// The machine the options ask for.
///
/// # Errors
/// When they ask for KVM where there is none.
pub fn machine(options: &Guest) -> Result<Machine> {
    let virtualisation = Virtualisation::detect();
    let clock = options.deterministic.map_or(Clock::Host, |shift| Clock::Instructions { shift });
    let accelerator = match options.accel {
        Accel::Kvm if clock != Clock::Host => bail!("a deterministic run needs TCG"),
        Accel::Kvm if !virtualisation.device => bail!("no KVM here: {}", virtualisation.reason()),
        Accel::Kvm => Accelerator::Kvm,
        Accel::Auto if clock == Clock::Host => virtualisation.accelerator(),
        Accel::Auto | Accel::Tcg => Accelerator::Tcg,
    };
    Ok(Machine { cpus: options.smp, memory_mib: options.mem, accelerator, clock, lacks: None })
}

/// A plan for one run.
pub fn plan(options: &Guest, machine: Machine, medium: Medium, task: Task, seed: u64) -> Plan {
    Plan {
        machine,
        medium,
        task,
        seed,
        timeout: options.timeout,
        margin: options.margin.unwrap_or(timing::MARGIN),
        log: options.log,
        gdb: options.gdb.then_some(options.gdb_port),
    }
}

/// What to type while the machine waits for the debugger.
pub fn debugger_line(kernel: &std::path::Path, port: u16) -> String {
    format!(
        "waiting for a debugger; in another terminal, type:\n    \
         gdb {} -ex 'target remote 127.0.0.1:{port}'",
        kernel.display()
    )
}
