//! The emulator, a program for each processor.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use super::packages::Package;
use super::{Missing, find_or_install, find_program};
use crate::build::Arch;

/// Its name on the search path, and a variable that names another program to run in its place; nothing is searched or
/// installed then.
fn names(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::X86_64 => ("qemu-system-x86_64", "LATCHWORK_QEMU"),
        Arch::I686Pae => ("qemu-system-i386", "LATCHWORK_QEMU_I386"),
    }
}

/// Looks for the one that runs kernels of `arch`.
pub fn find(arch: Arch) -> Option<PathBuf> {
    let (program, replacement) = names(arch);
    env::var_os(replacement).map(PathBuf::from).or_else(|| find_program(program))
}

/// Finds or installs it.
pub fn require(arch: Arch) -> Result<PathBuf, Missing> {
    find_or_install("QEMU", &[Package::Qemu], || find(arch))
}

/// Its own word on its version.
pub fn version(qemu: &PathBuf) -> Option<String> {
    let output = Command::new(qemu).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next()?.strip_prefix("QEMU emulator version ").map(str::to_owned)
}
