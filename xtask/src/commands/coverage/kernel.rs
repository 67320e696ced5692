//! What the tests in the kernel reach, of all that is compiled for it. One build, one boot: the kernel writes what it has counted to
//! QEMU's debug console when its tests have ended.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use protocol::logline::Level;

use super::Measured;
use crate::build::{Builder, Levels, Locks, Profile, Variant};
use crate::cli;
use crate::commands::guest;
use crate::machine::Task;
use crate::report::lines;
use crate::runner::{Medium, Plan};
use crate::setup::{llvm, qemu};
use crate::suite::kernel::{Round, Tested};
use crate::suite::progress::Progress;
use crate::timing;
use crate::verdict::Verdict;
use crate::workspace::Workspace;

/// The crates that are measured.
const SUMS: [lines::Sum; 4] =
    [("mm", "mm/"), ("arch/x86", "arch/x86/"), ("handover", "handover/"), ("kernel", "kernel/")];

/// Runs the tests in the kernel and prints what they reach; whether all passed.
pub fn coverage(workspace: &Workspace, options: &cli::Coverage) -> Result<bool> {
    let arch = options.arch;
    let mut builder = Builder::new(workspace);
    let readers = llvm::require_readers(&builder.toolchains().require(arch.need())?)?;
    let emulator = qemu::require(arch)?;
    let (locks, levels, profile) = (Locks::Split, Levels::Four, Profile::Release);
    let variant = Variant { arch, locks, debug_locks: false, levels, profile, sabotage: false, coverage: true };
    let kernel = builder.kernel(variant)?;

    let mut measured = Measured::prepare(workspace)?;
    let machine = guest::usual_machine(arch);
    let filter = options.filter.clone().unwrap_or_default();
    let mut progress = Progress::new();
    progress.section(&format!("kernel tests on {machine}, {} locks, counting", variant.name()));
    let plan = Plan {
        machine,
        medium: Medium::Pvh(kernel.clone()),
        task: Task::Test { filter: filter.clone() },
        seed: 1,
        timeout: None,
        margin: timing::MARGIN,
        log: Level::Info,
        gdb: None,
        counts: Some(measured.counts.join("kernel.profraw")),
    };
    let tested = Tested { workspace, emulator: &emulator, kernel: &kernel, label: arch.word() };
    match tested.run(&plan, &mut progress)? {
        Round::NoMatch => bail!("no test in the kernel has a name with {filter:?} in it"),
        Round::Ran(run) => ensure!(run.verdict != Verdict::Interrupted, "interrupted"),
    }
    let tally = progress.close();
    measured.programs.push(kernel);
    measured.show(&readers, options, Path::new(""), &SUMS)?;
    println!("{tally}");
    Ok(tally.passed())
}
