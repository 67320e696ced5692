//! `cargo xtask run --compare`: the split-lock and the single-lock kernel in turn.
//!
//! Where the guest has more CPUs than the host has cores, a CPU that waits for a lock gives its core to one that works, so
//! waiting costs nothing and nothing is compared but the host's scheduling. There the CPUs take turns under a counted
//! clock: one that waits loses its turn, as on a processor of its own.

use std::num::NonZero;
use std::path::Path;
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};

use super::run;
use crate::build::{Builder, Locks, Variant};
use crate::cli;
use crate::machine::{Accelerator, Clock, Machine, Task};
use crate::postmortem;
use crate::report::comparison::Comparison;
use crate::runner::{self, Medium};
use crate::symbolise::Symbols;
use crate::workspace::Workspace;

/// Runs of each kernel; their median counts.
const RUNS: u64 = 5;
/// Each instruction takes four nanoseconds: the counted clock that is nearest to how fast QEMU translates.
const TURNS: Clock = Clock::Instructions { shift: 2 };
/// Rounds of the workload under a counted clock, where more only repeat what one says, and take long.
const COUNTED_ROUNDS: u64 = 1;

/// Builds both, runs them in turn, prints the ratios.
pub fn compare(
    workspace: &Workspace,
    emulator: &Path,
    builder: &mut Builder<'_>,
    options: &cli::Run,
    base: Variant,
    asked: Machine,
) -> Result<bool> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    let machine = on_its_clock(asked, cores, options.threads);
    if machine.clock != asked.clock {
        println!(
            "{} CPUs on {cores} cores: a CPU that waits would give its core away and lose nothing, so the CPUs take \
             turns under a counted clock; --threads compares on threads",
            machine.cpus
        );
    }
    let mut kernels = Vec::new();
    for locks in [Locks::Split, Locks::Single] {
        let variant = Variant { locks, ..base };
        kernels.push((variant, builder.kernel(variant)?));
    }
    let mut comparison = Comparison::default();
    for round in 1..=RUNS {
        // In turn, so that whatever else this host does falls on both.
        for (variant, kernel) in &kernels {
            let mut plan = run::plan(options, machine, Medium::Pvh(kernel.clone()));
            plan.seed = plan.seed.wrapping_add(round - 1);
            if let (Clock::Instructions { .. }, Task::Workload { rounds, .. }) = (machine.clock, &mut plan.task) {
                rounds.get_or_insert(COUNTED_ROUNDS);
            }
            if round == 1 && variant.locks == Locks::Split {
                run::announce(&plan);
            }
            println!("{round:>6} of {RUNS}: {} locks", variant.name());
            let run = runner::run(workspace, emulator, &plan, &mut ())?;
            if !run.verdict.passed() {
                let symbols = Symbols::load(kernel, workspace.root());
                postmortem::report(&run, &symbols).iter().for_each(|line| println!("{line}"));
                return Ok(false);
            }
            let built = run.ended.transcript.boot.map(|boot| boot.build).unwrap_or_default();
            let name = variant.name();
            ensure!(built == name, "the kernel built with {name} locks says it has {built:?} locks");
            comparison.add(variant.locks, &run.ended.transcript.phases);
        }
    }
    println!("\nmedians of {RUNS} runs each on {machine}, seeds {} on", options.guest.seed);
    print!("{}", comparison.table());
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&comparison.figures()).context("cannot write the figures")?;
        super::write(path, &(json + "\n"))?;
    }
    Ok(true)
}

/// The machine as asked for, or taking turns where threads would hide what is compared.
pub(super) fn on_its_clock(asked: Machine, cores: usize, threads: bool) -> Machine {
    let overcommitted = asked.cpus as usize > cores;
    match asked.clock {
        Clock::Host if overcommitted && !threads && asked.accelerator == Accelerator::Tcg => {
            Machine { clock: TURNS, ..asked }
        }
        _ => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::EIGHT_CPUS;

    #[test]
    fn cpus_take_turns_where_cores_are_too_few_and_nobody_asked_otherwise() {
        let asked = EIGHT_CPUS;
        assert_eq!(on_its_clock(asked, 2, false).clock, TURNS);
        assert_eq!(on_its_clock(asked, 8, false), asked);
        assert_eq!(on_its_clock(asked, 2, true), asked);
        let counted = Machine { clock: Clock::Instructions { shift: 5 }, ..asked };
        assert_eq!(on_its_clock(counted, 2, false), counted);
        let real = Machine { accelerator: Accelerator::Kvm, ..asked };
        assert_eq!(on_its_clock(real, 2, false), real);
    }
}
