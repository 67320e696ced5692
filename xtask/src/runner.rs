//! Runs the kernel once and keeps what came of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::logline::Level;
use protocol::record::{Cpu, Oracle, Phase};
use serde::Serialize;

use crate::machine::{CommandLine, Machine, Task};
use crate::qemu::{BootMedium, Ended, Invocation, Limits, Observer, Session, SpawnError};
use crate::saved::SavedRun;
use crate::setup::ovmf::Ovmf;
use crate::timing::{self, Entry};
use crate::verdict::Verdict;
use crate::workspace::Workspace;

/// What the machine starts from, before this run's private files are made.
#[derive(Clone, Debug)]
pub enum Medium {
    /// A kernel's ELF, entered through PVH.
    Pvh(PathBuf),
    /// A disk image and the firmware to start it.
    Uefi(PathBuf, Ovmf),
}

/// One run to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The machine.
    pub machine: Machine,
    /// What it starts from.
    pub medium: Medium,
    /// What the kernel shall do.
    pub task: Task,
    /// Where every random choice comes from.
    pub seed: u64,
    /// The user's word on how long one test may take.
    pub timeout: Option<Duration>,
    /// What the host allows beyond that.
    pub margin: Duration,
    /// The least grave lines to log.
    pub log: Level,
    /// Port of the debugger to wait for. Time limits are off then.
    pub gdb: Option<u16>,
    /// File for the counts of a kernel that counts what it executes.
    pub counts: Option<PathBuf>,
}

/// One run that was made.
pub struct Run {
    /// How it ended.
    pub verdict: Verdict,
    /// All that was seen.
    pub ended: Ended,
    /// Where it is kept.
    pub saved: SavedRun,
}

/// The run could not be made at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// QEMU did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The run cannot be kept, or QEMU not waited for.
    #[error("cannot keep the run: {0}")]
    Save(#[from] io::Error),
}

/// What `run.json` holds.
#[derive(Serialize)]
struct Record<'a> {
    verdict: &'a str,
    detail: String,
    command_line: String,
    machine: String,
    seed: u64,
    seconds: f64,
    qemu: Vec<String>,
    phases: &'a [Phase],
    cpus: &'a [Cpu],
    oracles: &'a [Oracle],
}

/// Runs the kernel once.
pub fn run(workspace: &Workspace, qemu: &Path, plan: &Plan, observer: &mut dyn Observer) -> Result<Run, RunError> {
    let name = match &plan.task {
        Task::Test { .. } => "test",
        Task::Sabotage { .. } => "sabotage",
        Task::List { .. } => "list",
        Task::Workload { .. } => "run",
        Task::Misbehave { .. } => "misbehave",
    };
    let saved = SavedRun::create(workspace, name)?;
    let (medium, entry) = medium(plan, &saved)?;
    let timeout = timing::guest_limit(&plan.machine, plan.timeout);
    let command_line = CommandLine { task: plan.task.clone(), seed: plan.seed, timeout, log: plan.log };
    let limits = match plan.gdb {
        Some(_) => Limits::default(),
        None => timing::host_limits(&plan.machine, timeout, plan.margin, entry),
    };
    let invocation = Invocation {
        machine: &plan.machine,
        medium: &medium,
        command_line: &command_line,
        gdb: plan.gdb,
        serial: &saved.serial(),
        monitor: &Session::monitor_path(),
        debug_console: plan.counts.as_deref(),
    };
    let words = invocation.arguments();
    let session = Session::start(qemu, &invocation, &saved.file("qemu.log"))?;
    let ended = session.watch(&limits, observer)?;
    if let BootMedium::Uefi { variables, .. } = &medium {
        fs::remove_file(variables)?;
    }
    if !ended.cpus.is_empty() {
        let dump = ended.cpus.iter().map(|cpu| format!("cpu{}\n{}\n", cpu.cpu, cpu.registers));
        fs::write(saved.file("registers.log"), dump.collect::<String>())?;
    }
    let verdict = Verdict::of(&ended.ending, &ended.transcript);
    let words = words.iter().map(|word| word.to_string_lossy().into_owned());
    let record = Record {
        verdict: verdict.word(),
        detail: verdict.to_string(),
        command_line: command_line.to_string(),
        machine: plan.machine.to_string(),
        seed: plan.seed,
        seconds: ended.duration.as_secs_f64(),
        qemu: std::iter::once(qemu.display().to_string()).chain(words).collect(),
        phases: &ended.transcript.phases,
        cpus: &ended.transcript.cpus,
        oracles: &ended.transcript.oracles,
    };
    let json = serde_json::to_string_pretty(&record).map_err(io::Error::from)?;
    fs::write(saved.file("run.json"), json + "\n")?;
    Ok(Run { verdict, ended, saved })
}

fn medium(plan: &Plan, saved: &SavedRun) -> io::Result<(BootMedium, Entry)> {
    Ok(match &plan.medium {
        Medium::Pvh(kernel) => (BootMedium::Pvh { kernel: kernel.clone() }, Entry::Direct),
        Medium::Uefi(image, ovmf) => {
            let variables = saved.file("variables.fd");
            fs::copy(&ovmf.variables, &variables)?;
            (BootMedium::Uefi { image: image.clone(), code: ovmf.code.clone(), variables }, Entry::Firmware)
        }
    })
}
