//! `cargo xtask run`: a workload and its report.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use protocol::Event;

use super::{compare, guest};
use crate::build::{Arch, Builder, Variant};
use crate::cli::{self, Boot};
use crate::machine::{Clock, Machine, Task};
use crate::postmortem;
use crate::qemu::Observer;
use crate::report;
use crate::runner::{self, Medium, Plan};
use crate::setup::{ovmf, qemu};
use crate::symbolise::Symbols;
use crate::workspace::Workspace;

/// Runs a workload; whether every oracle is satisfied.
pub fn run(workspace: &Workspace, options: &cli::Run) -> Result<bool> {
    let variant = guest::variant(&options.guest.variant)?;
    let machine = guest::machine(&options.guest, variant.arch)?;
    ensure!(
        variant.arch == Arch::X86_64 || (options.boot != Some(Boot::Uefi) && options.image.is_none()),
        "UEFI starts x86_64 alone; i686-pae boots by pvh"
    );
    let emulator = qemu::require(variant.arch)?;
    let mut builder = Builder::new(workspace);
    if options.compare {
        return compare::compare(workspace, &emulator, &mut builder, options, variant, machine);
    }
    let (medium, kernel) = medium(workspace, &mut builder, options, variant, &machine)?;
    if options.guest.gdb {
        println!("{}", guest::debugger_line(&kernel, options.guest.gdb_port));
    }
    let plan = plan(options, machine, medium);
    announce(&plan);
    let run = runner::run(workspace, &emulator, &plan, &mut Console)?;
    if let Some(path) = &options.json {
        super::write(path, &std::fs::read_to_string(run.saved.file("run.json"))?)?;
    }
    print!("{}", report::report(&plan, &run.ended.transcript));
    if run.verdict.passed() {
        println!(
            "\npassed in {:.1} s; log: cargo xtask log --run {}",
            run.ended.duration.as_secs_f64(),
            run.saved.id()
        );
        return Ok(true);
    }
    let symbols = Symbols::load(&kernel, workspace.root());
    println!();
    postmortem::report(&run, &symbols).iter().for_each(|line| println!("{line}"));
    Ok(false)
}

/// A plan for the workload.
pub fn plan(options: &cli::Run, machine: Machine, medium: Medium) -> Plan {
    let task = Task::Workload { name: options.workload.clone(), rounds: options.rounds };
    guest::plan(&options.guest, machine, medium, task, options.guest.seed)
}

/// Says what is about to run, so that it can be run again.
pub fn announce(plan: &Plan) {
    let how = match plan.medium {
        Medium::Pvh(_) => "pvh",
        Medium::Uefi(..) => "uefi",
    };
    println!("booting on {} by {how}, seed {}", plan.machine, plan.seed);
}

/// What the options ask to boot, and the kernel in it.
fn medium(
    workspace: &Workspace,
    builder: &mut Builder<'_>,
    options: &cli::Run,
    variant: Variant,
    machine: &Machine,
) -> Result<(Medium, PathBuf)> {
    if let Some(image) = &options.image {
        return Ok((Medium::Uefi(image.clone(), ovmf::require()?), PathBuf::new()));
    }
    // Firmware under a counted clock takes longer than anybody waits.
    let may_wait = machine.clock == Clock::Host && options.guest.kernel.is_none();
    let usual = if may_wait && variant.arch == Arch::X86_64 { Boot::Uefi } else { Boot::Pvh };
    let kernel = match &options.guest.kernel {
        Some(kernel) => kernel.clone(),
        None => builder.kernel(variant)?,
    };
    let medium = match options.boot.unwrap_or(usual) {
        Boot::Pvh => Medium::Pvh(kernel.clone()),
        Boot::Uefi => {
            let firmware = ovmf::require()?;
            let image = workspace.out("latchwork.img");
            builder.image(&kernel, &image)?;
            Medium::Uefi(image, firmware)
        }
    };
    Ok((medium, kernel))
}

/// Shows the kernel's log, and how far it is, as it comes.
struct Console;

impl Observer for Console {
    fn line(&mut self, text: &str, event: &Event<'_>) {
        match event {
            Event::Booted(boot) => {
                println!("up: {} CPUs, {} MiB usable, {} locks", boot.cpus, boot.memory_mib, boot.build);
            }
            Event::Phase(phase) => println!("done: {} {}", phase.workload, phase.phase),
            _ if text.starts_with('[') => println!("{text}"),
            _ => {}
        }
    }
}
