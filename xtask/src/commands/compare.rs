//! `cargo xtask run --compare`: the split-lock and the single-lock kernel in turn.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::run;
use crate::build::{Builder, Locks, Variant};
use crate::cli;
use crate::machine::Machine;
use crate::postmortem;
use crate::report::comparison::Comparison;
use crate::runner::{self, Medium};
use crate::symbolise::Symbols;
use crate::workspace::Workspace;

/// Runs of each kernel; their median counts.
const RUNS: usize = 5;

/// Builds both, runs them in turn, prints the ratios.
pub fn compare(
    workspace: &Workspace,
    emulator: &Path,
    builder: &mut Builder<'_>,
    options: &cli::Run,
    machine: Machine,
) -> Result<bool> {
    let base = Variant::from(&options.guest.variant);
    let mut kernels = Vec::new();
    for locks in [Locks::Split, Locks::Single] {
        kernels.push((locks, builder.kernel(Variant { locks, ..base })?));
    }
    let mut comparison = Comparison::default();
    for round in 1..=RUNS {
        // In turn, so that whatever else this host does falls on both.
        for (locks, kernel) in &kernels {
            let plan = run::plan(options, machine, Medium::Pvh(kernel.clone()));
            if round == 1 && *locks == Locks::Split {
                run::announce(&plan);
            }
            println!("{round:>6} of {RUNS}: {} locks", locks.word());
            let run = runner::run(workspace, emulator, &plan, &mut ())?;
            if !run.verdict.passed() {
                let symbols = Symbols::load(kernel, workspace.root());
                postmortem::report(&run, &symbols).iter().for_each(|line| println!("{line}"));
                return Ok(false);
            }
            let built = run.ended.transcript.boot.map(|boot| boot.build).unwrap_or_default();
            ensure!(built == locks.word(), "the kernel built with {} locks says it has {built:?} locks", locks.word());
            comparison.add(*locks, &run.ended.transcript.phases);
        }
    }
    println!("\nmedians of {RUNS} runs each on {machine}, seed {}", options.guest.seed);
    print!("{}", comparison.table());
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&comparison.figures()).context("cannot write the figures")?;
        super::write(path, &(json + "\n"))?;
    }
    Ok(true)
}
