//! `cargo xtask coverage`: which lines of `mm` its host tests reach; with `--kernel`, which lines the tests in the kernel reach.
//!
//! The tests are built once more, instrumented, with each set of locks that compiles code of its own, and what all these
//! programs counted is added up. Models and documentation tests are left out: the former are of another build of `mm`.

mod kernel;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::{Arch, Levels, Locks, Profile, Variant};
use crate::cli;
use crate::interrupt;
use crate::report::lines;
use crate::setup::llvm::{self, Readers};
use crate::setup::toolchain::{Need, Toolchain, Toolchains};
use crate::suite::program::{self, BUILD_TESTS, Program};
use crate::suite::progress::Progress;
use crate::workspace::Workspace;

/// What counts as `mm`, and what its tests run on.
const HOST_SUMS: [lines::Sum; 2] = [("the simulated machine", "machine/sim/"), ("mm", "")];

/// The instrumented builds.
const BUILDS: [(Locks, bool); 3] = [(Locks::Split, false), (Locks::Single, false), (Locks::Split, true)];

/// Runs the tests and prints what they reach; whether all passed.
pub fn coverage(workspace: &Workspace, options: &cli::Coverage) -> Result<bool> {
    if options.kernel {
        return kernel::coverage(workspace, options);
    }
    let mut toolchains = Toolchains::new(workspace);
    let toolchain = toolchains.require(Need::KernelTarget)?;
    let readers = llvm::require_readers(&toolchain)?;
    let filter = options.filter.as_deref().unwrap_or_default();
    let mut measured = Measured::prepare(workspace)?;
    let mut progress = Progress::new();
    for (locks, debug_locks) in BUILDS {
        let (arch, levels, profile) = (Arch::X86_64, Levels::Four, Profile::Release);
        let variant = Variant { arch, locks, debug_locks, levels, profile, sabotage: false, coverage: true };
        progress.section(&format!("host tests of mm, {} locks", variant.name()));
        measured.run(&toolchains, &toolchain, variant, filter, &mut progress)?;
    }
    ensure!(!interrupt::requested(), "interrupted");
    ensure!(!progress.tally().cases().is_empty(), "no test of mm has a name with {filter:?} in it");
    let tally = progress.close();
    measured.show(&readers, options, Path::new("mm/src"), &HOST_SUMS)?;
    println!("{tally}");
    Ok(tally.passed())
}

/// Programs that count what they execute, and what they counted.
struct Measured<'a> {
    workspace: &'a Workspace,
    /// Where each run leaves its counts.
    counts: PathBuf,
    /// All counts, joined.
    joined: PathBuf,
    programs: Vec<PathBuf>,
}

impl<'a> Measured<'a> {
    /// Forgets the counts of an earlier call.
    fn prepare(workspace: &'a Workspace) -> Result<Self> {
        let counts = workspace.out("coverage");
        if counts.exists() {
            fs::remove_dir_all(&counts).with_context(|| format!("cannot empty {}", counts.display()))?;
        }
        fs::create_dir_all(&counts).with_context(|| format!("cannot make {}", counts.display()))?;
        let joined = counts.join("all.profdata");
        Ok(Self { workspace, counts, joined, programs: Vec::new() })
    }

    /// Builds and runs the tests of one build of `mm`.
    fn run(
        &mut self,
        toolchains: &Toolchains,
        toolchain: &Toolchain,
        variant: Variant,
        filter: &str,
        progress: &mut Progress,
    ) -> Result<()> {
        let mut command = toolchains.cargo(toolchain)?;
        command.args(BUILD_TESTS).args(["--package", "mm", "--lib", "--tests", "--target-dir"]);
        command.arg(self.workspace.target("coverage")).env("RUSTFLAGS", "-Cinstrument-coverage");
        // What is instrumented counts while it builds, too: procedural macros, build scripts.
        command.env("LLVM_PROFILE_FILE", "/dev/null");
        // What counts takes its time; and simulated machines call what takes too long a hang.
        command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
        command.arg("--features").arg(variant.lock_features().join(","));
        for program in program::build(&mut command)? {
            let Program { suite, executable, .. } = &program;
            let mut run = program.command(filter);
            run.env("LLVM_PROFILE_FILE", self.counts.join("%m-%p.profraw"));
            program::run(run, &format!("{suite} ({})", variant.name()), progress)?;
            self.programs.push(executable.clone());
        }
        Ok(())
    }

    /// Prints what was reached of the sources below `folder`, and writes what else was asked for.
    fn show(&self, readers: &Readers, options: &cli::Coverage, folder: &Path, sums: &[lines::Sum]) -> Result<()> {
        self.join(readers)?;
        let sources = self.workspace.root().join(folder);
        let lcov = self.read(readers, &["export", "--format=lcov", "--skip-functions"])?;
        let covered = lines::read(&lcov, &sources, |path| fs::read_to_string(path).ok());
        ensure!(!covered.is_empty(), "llvm-cov found no line of ours in what the tests counted");
        if let Some(path) = &options.lcov {
            super::write(path, &lcov)?;
        }
        if let Some(folder) = &options.html {
            let output = format!("--output-dir={}", folder.display());
            self.read(readers, &["show", "--format=html", &output, "--sources", &sources.to_string_lossy()])?;
            println!("{}", folder.join("index.html").display());
        }
        println!("\n{}", lines::report(&covered, sums));
        Ok(())
    }

    /// Joins what the runs counted.
    fn join(&self, readers: &Readers) -> Result<()> {
        let files = self.counts.read_dir().context("the tests left no counts")?.flatten().map(|entry| entry.path());
        let files = files.filter(|path| path.extension() == Some(OsStr::new("profraw")));
        let mut merge = Command::new(&readers.profdata);
        merge.args(["merge", "-sparse", "-o"]).arg(&self.joined).args(files);
        output(merge).map(|_| ())
    }

    /// Asks what the counts mean in lines of source.
    fn read(&self, readers: &Readers, words: &[&str]) -> Result<String> {
        let mut cov = Command::new(&readers.cov);
        cov.args(words).arg("-instr-profile").arg(&self.joined);
        for program in &self.programs {
            cov.arg("-object").arg(program);
        }
        output(cov)
    }
}

/// What a program prints; an error with its own words if it fails.
fn output(mut command: Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
