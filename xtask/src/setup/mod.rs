//! Finds what xtask needs on this machine and, where it may, fetches what is missing.
//!
//! The rule: look first, install only what was not found, say each command before it runs, look again. Where we may
//! not install, the error carries the one command that does.

pub mod accelerator;
pub mod doctor;
pub mod llvm;
pub mod objdump;
pub mod ovmf;
pub mod packages;
pub mod qemu;
pub mod toolchain;

use std::path::{Path, PathBuf};

use crate::build::Arch;
use packages::{Package, System};
use toolchain::Need;

/// Something is missing, and this is how to get it.
#[derive(Debug, thiserror::Error)]
#[error("{what} is missing; to install what this machine lacks, run:\n    {command}")]
pub struct Missing {
    /// What was looked for.
    what: &'static str,
    /// One command for this system.
    command: String,
}

impl Missing {
    /// With a command for these packages and all others that are missing too, so that one is enough.
    fn packages(what: &'static str, packages: &[Package]) -> Self {
        let mut all = packages.to_vec();
        all.extend(missing_packages().into_iter().filter(|package| !packages.contains(package)));
        Self { what, command: System::detect().install_command(&all) }
    }
}

/// What is missing of all that `run` and `test` need. What only another command needs is asked for by that command.
fn missing_packages() -> Vec<Package> {
    let compilers = toolchain::survey();
    let serves = |need| toolchain::choose(&compilers, need).is_some();
    let found = [
        (Package::Toolchain, serves(Need::KernelTarget) && serves(Need::LibrarySource)),
        (Package::Qemu, Arch::ALL.iter().all(|&arch| qemu::find(arch).is_some())),
        (Package::Ovmf, ovmf::find().is_some()),
        (Package::Binutils, objdump::find().is_some()),
    ];
    found.into_iter().filter(|(_, found)| !found).map(|(package, _)| package).collect()
}

/// Looks with `find`; if that fails, installs `packages` and looks again.
fn find_or_install<T>(what: &'static str, packages: &[Package], find: impl Fn() -> Option<T>) -> Result<T, Missing> {
    if let Some(found) = find() {
        return Ok(found);
    }
    let system = System::detect();
    if system.may_install()
        && system.install(packages)
        && let Some(found) = find()
    {
        return Ok(found);
    }
    Err(Missing::packages(what, packages))
}

/// The folders programs are looked for in.
fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map_or_else(Vec::new, |path| std::env::split_paths(&path).collect())
}

/// The first program of that name on the search path.
fn find_program(name: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|folder| folder.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
