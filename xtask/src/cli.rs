//! What may be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::logline::Level;

use crate::build::{Arch, Levels, Locks};
use crate::options;

/// Build, boot and test the Latchwork kernel.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Boot the kernel and run a workload; print its report.
    Run(Run),
    /// Run every test there is, on the host and in the kernel.
    Test(Test),
    /// Name the tests (the same as `test --list`).
    List(List),
    /// Build the kernel and print where it is.
    Build(Build),
    /// Write a UEFI disk image, for a USB stick for example.
    Image(Image),
    /// Show what was found on this machine, where, and what is missing.
    Doctor,
    /// Measure lock algorithms, waiting rules and where locks are stored.
    Bench(Bench),
    /// Read the log of a saved run.
    Log(Log),
    /// Break each rule in turn and show that the tests notice.
    Sabotage(Sabotage),
    /// Clippy, warnings being errors, for host and kernel code.
    Clippy,
    /// Show which lines of mm its host tests reach, and list those that none does.
    Coverage(Coverage),
    /// Try random input on whatever reads bytes from outside.
    Fuzz(Fuzz),
    /// Run what takes too long for each change, in parts, and sum up.
    Nightly(Nightly),
}

/// CPUs of a machine of which nobody asked another number.
pub const USUAL_CPUS: u32 = 8;

/// Options of every run.
#[derive(Args, Clone)]
pub struct Guest {
    /// CPUs, 1 to 64.
    #[arg(long, value_name = "N", default_value_t = USUAL_CPUS, value_parser = options::cpus, allow_negative_numbers = true)]
    pub smp: u32,
    /// Memory, such as 512M or 2G; 512M, or with PAE 6G, if none is given.
    #[arg(long, value_name = "SIZE", value_parser = options::memory, allow_hyphen_values = true)]
    pub mem: Option<u64>,
    /// What executes the guest; auto takes KVM only where it is the processor's own.
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    pub accel: Accel,
    /// Seconds one test may take on the guest's clock, 1 to 86400.
    #[arg(long, value_name = "SECONDS", value_parser = options::timeout, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,
    /// Seconds the host waits beyond that before it calls a run hung.
    #[arg(long, value_name = "SECONDS", value_parser = options::timeout, hide = true)]
    pub margin: Option<Duration>,
    /// Where every random choice comes from. Round N of a repeated run takes SEED + N.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Repeat byte for byte: 2^SHIFT nanoseconds per instruction (0 to 10), one thread, fixed clock.
    #[arg(long, value_name = "SHIFT", num_args = 0..=1, default_missing_value = "4", value_parser = options::shift)]
    pub deterministic: Option<u8>,
    /// Wait for a debugger, and print the line that starts it.
    #[arg(long)]
    pub gdb: bool,
    /// Port for the debugger.
    #[arg(long, value_name = "PORT", default_value_t = 1234, requires = "gdb")]
    pub gdb_port: u16,
    /// The least grave log lines the kernel writes.
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub log: Level,
    /// Run this kernel instead of building one.
    #[arg(
        long,
        value_name = "ELF",
        value_parser = options::file,
        conflicts_with_all = ["release", "debug", "config", "single_lock", "debug_locks", "levels"]
    )]
    pub kernel: Option<PathBuf>,
    /// How the kernel is built.
    #[command(flatten)]
    pub variant: Variant,
}

/// How the kernel is built.
#[derive(Args, Clone)]
pub struct Variant {
    /// The processor it is for. If none is named, test and list take both, and all else x86_64.
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Optimised (the default).
    #[arg(long, conflicts_with = "debug")]
    pub release: bool,
    /// With debug assertions.
    #[arg(long)]
    pub debug: bool,
    /// Where page-table locks live.
    #[arg(long, value_enum, default_value_t = Locks::Split)]
    pub config: Locks,
    /// The same as --config single.
    #[arg(long, conflicts_with = "config")]
    pub single_lock: bool,
    /// Locks that know their owner and check every use.
    #[arg(long)]
    pub debug_locks: bool,
    /// Levels of page tables. Five take a CPU with LA57 and boot by PVH only.
    #[arg(long, value_enum, default_value_t = Levels::Four)]
    pub levels: Levels,
}

/// The user's word on the accelerator.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM where it is real, else TCG.
    Auto,
    /// QEMU's translator.
    Tcg,
    /// The processor's virtualisation.
    Kvm,
}

/// How the kernel is entered.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Boot {
    /// UEFI firmware and the boot loader, from a disk image.
    Uefi,
    /// At once.
    Pvh,
}

/// `run`
#[derive(Args)]
pub struct Run {
    /// The workload.
    #[arg(default_value = "storm", value_parser = options::word)]
    pub workload: String,
    /// How often it repeats its work.
    #[arg(long, value_name = "N")]
    pub rounds: Option<u64>,
    /// How the kernel is entered; pvh if the run is deterministic or the kernel has 32 bits.
    #[arg(long, value_enum)]
    pub boot: Option<Boot>,
    /// Run this disk image instead of building one.
    #[arg(
        long,
        value_name = "PATH",
        value_parser = options::file,
        conflicts_with_all = ["compare", "kernel", "boot"]
    )]
    pub image: Option<PathBuf>,
    /// Run the split and the single-lock kernel in turn, five times each, and print the ratios of the medians.
    #[arg(long, conflicts_with_all = ["config", "single_lock", "gdb", "kernel"])]
    pub compare: bool,
    /// Compare on host threads even where the guest has more CPUs than the host has cores.
    #[arg(long, requires = "compare")]
    pub threads: bool,
    /// Write the figures as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub guest: Guest,
}

/// `bench`
#[derive(Args)]
pub struct Bench {
    /// Only this one.
    #[arg(value_enum)]
    pub bench: Option<BenchName>,
    /// Name the benches, run none.
    #[arg(long)]
    pub list: bool,
    /// How often each measurement is repeated.
    #[arg(long, value_name = "N", value_parser = options::rounds, allow_negative_numbers = true)]
    pub rounds: Option<u64>,
    /// Measure on host threads alone, even where the guest has more CPUs than the host has cores.
    #[arg(long)]
    pub threads: bool,
    /// Write the figures as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub guest: Guest,
}

/// A bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchName {
    /// Lock algorithms.
    Locks,
    /// Waiting rules of the ticket lock.
    Waiting,
    /// Where a lock is stored.
    Storage,
    /// Taking pages and tables away.
    Tables,
}

/// `test`
#[derive(Args)]
pub struct Test {
    /// Only tests whose name contains this; on the host all of a suite whose name does.
    #[arg(value_parser = options::word)]
    pub filter: Option<String>,
    /// Name the tests, run none.
    #[arg(long)]
    pub list: bool,
    /// Only one half. --repeat, --schedules, --deterministic and --gdb run the kernel's half alone.
    #[arg(long, value_enum)]
    pub only: Option<Half>,
    /// Run the kernel's tests so many times.
    #[arg(long, value_name = "N", value_parser = options::times, allow_negative_numbers = true)]
    pub repeat: Option<u32>,
    /// Run the kernel's tests under so many deterministic schedules, and name those that fail. Without a filter the races
    /// have a few of them anyway.
    #[arg(long, value_name = "N", value_parser = options::times, conflicts_with_all = ["deterministic", "repeat", "gdb"])]
    pub schedules: Option<u32>,
    /// Run all tests with each placement of page-table locks, without and with their checks, and the usual build on
    /// 1, 2, 4 and 8 CPUs.
    #[arg(long, conflicts_with_all = ["config", "single_lock", "debug_locks", "kernel", "gdb", "list"])]
    pub all_configs: bool,
    /// Run mm's host tests alone, watched by a sanitizer.
    #[arg(
        long,
        value_enum,
        conflicts_with_all = [
            "only",
            "repeat",
            "schedules",
            "deterministic",
            "gdb",
            "all_configs",
            "kernel",
            "list",
            "loom_bound",
            "seeds"
        ]
    )]
    pub sanitize: Option<Sanitizer>,
    /// Explore the host's loom models with so many preemptions; 2 or 3 if none is given, by their size.
    #[arg(long, value_name = "N", value_parser = options::times, allow_negative_numbers = true)]
    pub loom_bound: Option<u32>,
    /// Run the host's tests under chosen schedules with so many times as many seeds, and those that hold random programs against a
    /// model with so many times as many.
    #[arg(long, value_name = "N", value_parser = options::times, allow_negative_numbers = true)]
    pub seeds: Option<u32>,
    /// Write the results as JUnit XML.
    #[arg(long, value_name = "PATH")]
    pub junit: Option<PathBuf>,
    /// Write the results as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub guest: Guest,
}

/// What watches a program for errors of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sanitizer {
    /// Data races.
    Thread,
    /// Use after free, out of bounds.
    Address,
}

/// A half of the tests.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Half {
    /// Those that run on the host.
    Host,
    /// Those that need the kernel.
    Kernel,
}

/// `sabotage`
#[derive(Args)]
pub struct Sabotage {
    /// Only rules whose name contains this.
    #[arg(value_parser = options::word)]
    pub filter: Option<String>,
    /// Name the rules and who notices, break none.
    #[arg(long)]
    pub list: bool,
    /// Only tests of this kind; may be given more than once.
    #[arg(long, value_enum)]
    pub only: Vec<SabotageKind>,
    /// Break each rule before one of its tests, not all.
    #[arg(long)]
    pub once: bool,
}

/// A kind of tests that notice when a rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SabotageKind {
    /// Those of `mm` on the simulated machine.
    Host,
    /// Those under the model checker.
    Loom,
    /// Those of whole operations under chosen schedules.
    Schedules,
    /// Those in the kernels.
    Kernel,
}

/// `list`
#[derive(Args)]
pub struct List {
    /// Only tests whose name contains this.
    #[arg(value_parser = options::word)]
    pub filter: Option<String>,
    /// The machine.
    #[command(flatten)]
    pub guest: Guest,
}

/// `build`
#[derive(Args)]
pub struct Build {
    /// How the kernel is built.
    #[command(flatten)]
    pub variant: Variant,
}

/// `image`
#[derive(Args)]
pub struct Image {
    /// Where to write it.
    pub path: PathBuf,
    /// How the kernel is built.
    #[command(flatten)]
    pub variant: Variant,
}

/// `log`
#[derive(Args)]
pub struct Log {
    /// A run by its number or name; the last one by default.
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,
    /// Name the saved runs.
    #[arg(long)]
    pub list: bool,
    /// Only lines of this CPU.
    #[arg(long, value_name = "N")]
    pub cpu: Option<u32>,
    /// Only lines at least as grave.
    #[arg(long, value_enum)]
    pub level: Option<Level>,
    /// Only lines of this module or one below it.
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Only lines whose text matches.
    #[arg(long, value_name = "RE")]
    pub grep: Option<String>,
}

/// `coverage`
#[derive(Args)]
pub struct Coverage {
    /// Only what tests reach whose name contains this.
    #[arg(value_parser = options::word)]
    pub filter: Option<String>,
    /// What the tests in the kernel reach, of the kernel too.
    #[arg(long)]
    pub kernel: bool,
    /// The kernel to measure.
    #[arg(long, value_enum, default_value = "x86_64", requires = "kernel")]
    pub arch: Arch,
    /// Write the lines in LCOV's form.
    #[arg(long, value_name = "PATH")]
    pub lcov: Option<PathBuf>,
    /// Write the source with counts as web pages into this folder.
    #[arg(long, value_name = "FOLDER")]
    pub html: Option<PathBuf>,
}

/// `fuzz`
#[derive(Args)]
pub struct Fuzz {
    /// Only this target.
    #[arg(value_parser = options::word)]
    pub target: Option<String>,
    /// Name the targets, run none.
    #[arg(long)]
    pub list: bool,
    /// Seconds for each target, 1 to 86400.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub time: u32,
    /// Only this input, once, to repeat what was found.
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "time", value_parser = options::file)]
    pub input: Option<PathBuf>,
}

/// `nightly`
#[derive(Args)]
pub struct Nightly {
    /// Only this part; may be given several times.
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Vec<NightlyPart>,
    /// Name the parts, run none.
    #[arg(long)]
    pub list: bool,
    /// Leave out the parts that have passed since the source last changed.
    #[arg(long)]
    pub resume: bool,
}

/// A part of the nightly run, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NightlyPart {
    /// Clippy on all code.
    Clippy,
    /// The tests of the host under the address sanitizer.
    Address,
    /// The tests of the host under the thread sanitizer.
    Thread,
    /// Which lines of mm the host's tests reach.
    Coverage,
    /// Which lines of the kernel its tests reach.
    KernelCoverage,
    /// Each rule broken, once for each test that must notice.
    Sabotage,
    /// A minute of random input for each of the fuzz targets.
    Fuzz,
    /// The tests of the host with every placement of page-table locks.
    Host,
    /// Loom's models with more preemptions.
    Loom,
    /// The simulated machine under twenty times as many schedules.
    Shuttle,
    /// Twenty times as many random programs of operations.
    Properties,
    /// The tests in every build of the 64-bit kernel, on 1 to 8 CPUs.
    #[value(name = "x86_64")]
    X86_64,
    /// The tests in every build of the 32-bit kernel, on 1 to 8 CPUs.
    #[value(name = "i686-pae")]
    I686Pae,
    /// The kernel with five levels of page tables.
    FiveLevels,
    /// Both kernels with debug assertions.
    Assertions,
    /// The kernels' races ten times, each time with another seed.
    Repeats,
    /// The kernels' races under fifty deterministic schedules.
    Schedules,
}
