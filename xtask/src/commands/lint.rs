//! `cargo xtask clippy`: clippy for host code with the host's compiler, and for code of the bare-metal target with the
//! kernel's. The host's clippy never sees what is under `cfg(target_os = "none")`.

use std::collections::BTreeSet;
use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build::{Arch, KERNEL_CRATES, for_kernel_target};
use crate::setup::toolchain::{Need, Toolchains};
use crate::workspace::Workspace;

/// Folders of the crates compiled for the kernel's target.
const KERNEL_FOLDERS: [&str; 4] = ["kernel/src/", "arch/x86/src/", "handover/src/", "mm/src/"];
/// A lint that every function with a value trips over; nobody wants to follow it.
const PROBE_LINT: &str = "clippy::implicit_return";

/// Lints everything; whether there was no complaint.
pub fn clippy(workspace: &Workspace) -> Result<bool> {
    let mut toolchains = Toolchains::new(workspace);
    let mut clean = true;

    println!("clippy: host crates");
    let mut host = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    host.current_dir(workspace.root()).args(["clippy", "--keep-going", "--all-targets", "--", "-Dwarnings"]);
    clean &= host.status().context("cannot start cargo clippy")?.success();

    for arch in Arch::ALL {
        println!("clippy: kernel crates, {}", arch.word());
        let mut kernel = kernel_clippy(workspace, arch, &mut toolchains)?;
        clean &= kernel.args(["--", "-Dwarnings"]).status().context("cannot start the kernel's clippy")?.success();
        prove_it_sees_the_kernel(kernel_clippy(workspace, arch, &mut toolchains)?)?;
    }

    println!("clippy: boot");
    let (toolchain, program) = toolchains.require_clippy(Need::LibrarySource)?;
    let mut boot = Command::new(program);
    toolchains.isolate(&toolchain, &mut boot)?;
    boot.env("RUSTC_BOOTSTRAP", "1").args(["clippy", "--package", "latchwork-boot", "--target-dir"]);
    boot.arg(workspace.target("boot")).args(["--", "-Dwarnings"]);
    clean &= boot.status().context("cannot start the boot crate's clippy")?.success();
    Ok(clean)
}

fn kernel_clippy(workspace: &Workspace, arch: Arch, toolchains: &mut Toolchains) -> Result<Command> {
    let (toolchain, program) = toolchains.require_clippy(arch.need())?;
    let mut command = Command::new(program);
    toolchains.isolate(&toolchain, &mut command)?;
    command.args(["clippy", "--keep-going"]);
    for name in KERNEL_CRATES {
        command.args(["--package", name]);
    }
    for_kernel_target(&mut command, arch, &toolchain, workspace);
    Ok(command)
}

/// A clean run of a clippy that saw nothing is worth nothing: a lint that must find something in each crate has to.
fn prove_it_sees_the_kernel(mut clippy: Command) -> Result<()> {
    clippy.args(["--message-format=json", "--", "--cap-lints=warn", "--force-warn", PROBE_LINT]);
    let output = clippy.stderr(Stdio::null()).output().context("cannot start the kernel's clippy")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found: BTreeSet<String> = text.lines().flat_map(probe_findings).collect();
    for folder in KERNEL_FOLDERS {
        let count = found.iter().filter(|place| place.starts_with(folder)).count();
        if count == 0 {
            bail!("clippy found no {PROBE_LINT} in {folder}: it does not see the kernel's code");
        }
        println!("clippy: sees {folder} ({count} files)");
    }
    Ok(())
}

/// Files in which one of cargo's messages reports the probe lint.
fn probe_findings(message: &str) -> Vec<String> {
    let Ok(message) = serde_json::from_str::<Value>(message) else {
        return Vec::new();
    };
    if message["message"]["code"]["code"] != PROBE_LINT {
        return Vec::new();
    }
    let spans = message["message"]["spans"].as_array().cloned().unwrap_or_default();
    spans.iter().filter_map(|span| span["file_name"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_probe_lint_counts_as_proof() {
        let message = |lint: &str| {
            format!(r#"{{"message":{{"code":{{"code":"{lint}"}},"spans":[{{"file_name":"kernel/src/trap.rs"}}]}}}}"#)
        };
        assert_eq!(probe_findings(&message(PROBE_LINT)), ["kernel/src/trap.rs"]);
        assert!(probe_findings(&message("clippy::all")).is_empty());
        assert!(probe_findings("not json").is_empty());
    }
}
