//! `cargo xtask fuzz`: random input, steered by what it reaches, for whatever reads bytes from outside.
//!
//! The targets are programs of `fuzz/`, each with a few inputs to start from. Instrumented by the compiler and linked with clang's
//! libFuzzer, they take no nightly compiler. What a run has found to lead somewhere new it keeps, and the next starts from it.

use std::env::consts::{ARCH, OS};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::child::{self, Finish};
use crate::cli;
use crate::setup::llvm;
use crate::setup::toolchain::{Need, Toolchains};
use crate::workspace::Workspace;

/// What makes the compiler count branches and show what is compared.
const INSTRUMENTED: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Seconds one input may take, however busy the machine is.
const INPUT_LIMIT: u32 = 60;
/// Time a target gets beyond what it was given, to read its inputs and to end.
const MARGIN: Duration = Duration::from_secs(600);
/// Time that one input gets which is repeated.
const REPEAT_LIMIT: Duration = Duration::from_secs(120);

/// Runs the targets; whether none of them found anything.
pub fn fuzz(workspace: &Workspace, options: &cli::Fuzz) -> Result<bool> {
    let all = targets(&workspace.root().join("fuzz/targets"))?;
    let chosen = chosen(&all, options.target.as_deref())?;
    if options.list {
        chosen.iter().for_each(|target| println!("{target}"));
        return Ok(true);
    }
    let folder = build(workspace)?;
    let mut clean = true;
    for target in &chosen {
        if options.input.is_none() {
            println!("fuzz: {target} for {} s", options.time);
        }
        let run = Run { workspace, target, program: &folder.join(target) };
        clean &= run.run(options)?;
    }
    println!("fuzzed {}: {}", chosen.join(", "), if clean { "nothing found" } else { "see above" });
    Ok(clean)
}

/// The targets there are, by name.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let files = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".rs")?.to_owned());
    let mut names: Vec<String> = files.flatten().filter_map(|file| name(file.path())).collect();
    names.sort_unstable();
    Ok(names)
}

fn chosen(all: &[String], one: Option<&str>) -> Result<Vec<String>> {
    match one {
        None => Ok(all.to_vec()),
        Some(name) if all.iter().any(|target| target == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("there is no fuzz target {name:?}; there are {}", all.join(", ")),
    }
}

/// Builds them; the folder they are in.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut toolchains = Toolchains::new(workspace);
    let toolchain = toolchains.require(Need::KernelTarget)?;
    let clang = llvm::require_clang(&toolchain)?;
    let (target, folder) = (format!("{ARCH}-unknown-{OS}-gnu"), workspace.target("fuzz"));
    let mut command = toolchains.cargo(&toolchain)?;
    command.args(["build", "--release", "--no-default-features", "--manifest-path"]);
    command.arg(workspace.root().join("fuzz/Cargo.toml"));
    // With a target of their own, build scripts and procedural macros stay as they are.
    command.arg("--target").arg(&target).arg("--target-dir").arg(&folder);
    let linker = [format!("-Clinker={}", clang.display()), "-Clink-arg=-fsanitize=fuzzer".to_owned()];
    let flags = INSTRUMENTED.map(str::to_owned).into_iter().chain(linker).collect::<Vec<_>>();
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    ensure!(command.status().context("cannot start cargo")?.success(), "building the fuzz targets failed");
    Ok(folder.join(target).join("release"))
}

struct Run<'a> {
    workspace: &'a Workspace,
    target: &'a str,
    program: &'a Path,
}

impl Run<'_> {
    /// Repeats one input, or looks for new ones; whether nothing was found.
    fn run(&self, options: &cli::Fuzz) -> Result<bool> {
        let mut command = Command::new(self.program);
        command.arg(format!("-timeout={INPUT_LIMIT}"));
        match &options.input {
            Some(input) => {
                let finish = child::run(command.arg(input), REPEAT_LIMIT, |line| println!("{line}"), || ())?;
                ensure!(finish != Finish::Interrupted, "interrupted");
                Ok(finish.success())
            }
            None => self.search(command, options.time),
        }
    }

    /// Looks for inputs that fail, for so many seconds.
    fn search(&self, mut command: Command, seconds: u32) -> Result<bool> {
        let kept = self.workspace.out("fuzz").join(self.target);
        let (grown, found, log) = (kept.join("corpus"), kept.join("found"), kept.join("log"));
        for folder in [&grown, &found] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.arg(format!("-max_total_time={seconds}")).args(["-verbosity=0", "-print_final_stats=1"]);
        command.arg(format!("-artifact_prefix={}/", found.display()));
        // New inputs go into the first folder.
        command.arg(&grown).arg(self.workspace.root().join("fuzz/corpus").join(self.target)).stderr(file);
        let limit = Duration::from_secs(u64::from(seconds)) + MARGIN;
        let finish = child::run(&mut command, limit, |line| println!("{line}"), || ())?;
        ensure!(finish != Finish::Interrupted, "interrupted");

        let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let said = String::from_utf8_lossy(&said);
        if finish.success() {
            println!("fuzz: {}: {} inputs, nothing found", self.target, inputs(&said).unwrap_or(0));
            return Ok(true);
        }
        findings(&said).for_each(|line| println!("{line}"));
        if finish == Finish::TimedOut {
            println!("fuzz: {} did not end within {} s", self.target, limit.as_secs());
        }
        match input(&said) {
            Some(file) => println!("fuzz: to repeat: cargo xtask fuzz {} --input {file}", self.target),
            None => println!("fuzz: {} failed without an input to repeat", self.target),
        }
        Ok(false)
    }
}

/// How many inputs libFuzzer says it has run.
fn inputs(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

/// The file in which it left the input that failed.
fn input(said: &str) -> Option<&str> {
    said.lines().find_map(|line| Some(line.split_once("Test unit written to ")?.1))
}

/// What it says but for its statistics, and for hints on how to fuzz.
fn findings(said: &str) -> impl Iterator<Item = &str> {
    let is_hint = |line: &&str| {
        ["stat::", "\tNEW_", "\"", "######"].iter().any(|start| line.starts_with(start)) || line.trim().is_empty()
    };
    said.lines().filter(move |line| !is_hint(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_in_the_manifest_and_has_inputs_to_start_from() {
        let root = Workspace::locate().root().join("fuzz");
        let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        let all = targets(&root.join("targets")).unwrap();
        assert!(!all.is_empty());
        for target in all {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not built");
            let inputs = root.join("corpus").join(&target).read_dir().map(Iterator::count);
            assert!(inputs.is_ok_and(|count| count > 0), "{target} has nothing to start from");
        }
    }

    #[test]
    fn what_was_found_is_shown_with_the_file_to_repeat_it() {
        let said = "INFO: seed\n\tNEW_FUNC[1/2]: 0x1 in f a.rs:1\n\nthread '<unnamed>' panicked at t.rs:1:\nodd\n\
            ###### Recommended dictionary. ######\n\"ok\" # Uses: 2\n\
            artifact_prefix='/o/'; Test unit written to /o/crash-1\nstat::number_of_executed_units: 815\n";
        assert_eq!(input(said), Some("/o/crash-1"));
        assert_eq!(inputs(said), Some(815));
        let shown: Vec<&str> = findings(said).collect();
        assert_eq!(shown[..3], ["INFO: seed", "thread '<unnamed>' panicked at t.rs:1:", "odd"]);
        assert_eq!(shown.len(), 4);
        assert_eq!((input("INFO: seed\n"), inputs("")), (None, None));
    }

    #[test]
    fn a_target_is_chosen_by_its_name() {
        let all = ["acpi".to_owned(), "command_line".to_owned()];
        assert_eq!(chosen(&all, None).unwrap(), all);
        assert_eq!(chosen(&all, Some("acpi")).unwrap(), ["acpi"]);
        let refused = chosen(&all, Some("acp")).unwrap_err().to_string();
        assert_eq!(refused, "there is no fuzz target \"acp\"; there are acpi, command_line");
    }
}
