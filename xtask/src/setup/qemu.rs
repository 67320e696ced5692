//! The emulator.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use super::packages::Package;
use super::{Missing, find_or_install, find_program};

/// Its name on the search path.
const PROGRAM: &str = "qemu-system-x86_64";
/// Names another program to run in its place; nothing is searched or installed then.
const OVERRIDE: &str = "LATCHWORK_QEMU";

/// Looks for it.
pub fn find() -> Option<PathBuf> {
    env::var_os(OVERRIDE).map(PathBuf::from).or_else(|| find_program(PROGRAM))
}

/// Finds or installs it.
pub fn require() -> Result<PathBuf, Missing> {
    find_or_install("QEMU", &[Package::Qemu], find)
}

/// Its own word on its version.
pub fn version(qemu: &PathBuf) -> Option<String> {
    let output = Command::new(qemu).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next()?.strip_prefix("QEMU emulator version ").map(str::to_owned)
}
