//! From options to a plan for one run.

use anyhow::{Result, bail, ensure};

use crate::build::{Arch, Levels, Locks, Profile, Variant};
use crate::cli::{self, Accel, Guest};
use crate::machine::{Accelerator, Clock, Machine, Task};
use crate::runner::{Medium, Plan};
use crate::setup::accelerator::Virtualisation;
use crate::timing;

/// Memory where nobody asked for another size, in MiB. With PAE so much that most frames are beyond 32 bits.
const USUAL_MEMORY_MIB: u64 = 512;
const USUAL_PAE_MEMORY_MIB: u64 = 6 * 1024;
/// With more, the descriptors of its frames leave the PAE kernel too little of what it can address.
const MOST_PAE_MEMORY_MIB: u64 = 32 * 1024;

/// The build the options ask for.
///
/// # Errors
/// When there is no such build.
pub fn variant(options: &cli::Variant) -> Result<Variant> {
    let arch = options.arch.unwrap_or(Arch::X86_64);
    ensure!(arch == Arch::X86_64 || options.levels == Levels::Four, "--levels 5 is for x86_64: PAE has three levels");
    Ok(Variant {
        arch,
        locks: if options.single_lock { Locks::Single } else { options.config },
        debug_locks: options.debug_locks,
        levels: options.levels,
        profile: if options.debug { Profile::Debug } else { Profile::Release },
        sabotage: false,
        coverage: false,
    })
}

/// The machine nobody asked anything of, for kernels of `arch`.
pub fn usual_machine(arch: Arch) -> Machine {
    Machine {
        arch,
        cpus: cli::USUAL_CPUS,
        memory_mib: usual_memory_mib(arch),
        accelerator: Virtualisation::detect().accelerator(),
        clock: Clock::Host,
        lacks: None,
    }
}

fn usual_memory_mib(arch: Arch) -> u64 {
    match arch {
        Arch::X86_64 => USUAL_MEMORY_MIB,
        Arch::I686Pae => USUAL_PAE_MEMORY_MIB,
    }
}

/// The machine the options ask for, for kernels of `arch`.
///
/// # Errors
/// When they ask for KVM where there is none, or for more memory than the kernel can use.
pub fn machine(options: &Guest, arch: Arch) -> Result<Machine> {
    let memory_mib = match (arch, options.mem) {
        (Arch::I686Pae, Some(mib)) if mib > MOST_PAE_MEMORY_MIB => {
            bail!("--mem: i686-pae takes at most {}G; --arch x86_64 takes more", MOST_PAE_MEMORY_MIB / 1024)
        }
        (_, Some(mib)) => mib,
        (_, None) => usual_memory_mib(arch),
    };
    let virtualisation = Virtualisation::detect();
    let clock = options.deterministic.map_or(Clock::Host, |shift| Clock::Instructions { shift });
    let accelerator = match options.accel {
        Accel::Kvm if clock != Clock::Host => bail!("a deterministic run needs TCG"),
        Accel::Kvm if !virtualisation.device => bail!("no KVM here: {}", virtualisation.reason()),
        Accel::Kvm => Accelerator::Kvm,
        Accel::Auto if clock == Clock::Host => virtualisation.accelerator(),
        Accel::Auto | Accel::Tcg => Accelerator::Tcg,
    };
    Ok(Machine { arch, cpus: options.smp, memory_mib, accelerator, clock, lacks: None })
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
        counts: None,
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn memory(arch: Arch, mem: Option<u64>) -> Result<u64> {
        let Command::Run(options) = Cli::parse_from(["xtask", "run"]).command else {
            bail!("that is run");
        };
        machine(&Guest { mem, ..options.guest }, arch).map(|machine| machine.memory_mib)
    }

    #[test]
    fn memory_fits_the_processor() {
        for (arch, mem, expected) in [
            (Arch::X86_64, None, Some(512)),
            (Arch::I686Pae, None, Some(6144)),
            (Arch::I686Pae, Some(300), Some(300)),
            (Arch::I686Pae, Some(MOST_PAE_MEMORY_MIB + 1), None),
            (Arch::X86_64, Some(MOST_PAE_MEMORY_MIB + 1), Some(MOST_PAE_MEMORY_MIB + 1)),
        ] {
            assert_eq!(memory(arch, mem).ok(), expected, "{arch:?} {mem:?}");
        }
    }
}
