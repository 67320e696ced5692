//! Programs of LLVM, which have to fit the compiler: those that read what an instrumented program wrote, and the C
//! compiler that brings the sanitizers' runtime and links it.

use std::path::PathBuf;
use std::process::Command;

use super::packages::Package;
use super::toolchain::Toolchain;
use super::{Missing, find_or_install, find_program};

/// What reads a coverage profile. It is written in a form of the compiler's LLVM, which no older one understands.
#[derive(Clone, Debug)]
pub struct Readers {
    /// Joins profiles.
    pub profdata: PathBuf,
    /// Turns a profile and the programs that wrote it into lines of source.
    pub cov: PathBuf,
}

/// Finds or installs the readers for what this compiler instruments.
pub fn require_readers(toolchain: &Toolchain) -> Result<Readers, Missing> {
    find_or_install("what reads coverage (llvm-profdata, llvm-cov)", &[Package::Llvm], || find_readers(toolchain))
}

/// Looks for them: rustup's component, else the distribution's.
pub fn find_readers(toolchain: &Toolchain) -> Option<Readers> {
    let find = |name: &str| toolchain.own_program(name).or_else(|| of_version(name, toolchain.llvm));
    Some(Readers { profdata: find("llvm-profdata")?, cov: find("llvm-cov")? })
}

/// Finds or installs the linker for what this compiler instruments for a sanitizer.
pub fn require_clang(toolchain: &Toolchain) -> Result<PathBuf, Missing> {
    find_or_install("clang and its sanitizers", &[Package::Clang], || find_clang(toolchain))
}

/// Looks for one that has the sanitizers' runtime.
pub fn find_clang(toolchain: &Toolchain) -> Option<PathBuf> {
    of_version("clang", toolchain.llvm).filter(has_sanitizers)
}

/// The program of exactly this version, else of the next ones, else the one that tells nothing of its version.
fn of_version(name: &str, version: u32) -> Option<PathBuf> {
    let versioned = (version..version + 5).find_map(|version| find_program(&format!("{name}-{version}")));
    versioned.or_else(|| find_program(name))
}

fn has_sanitizers(clang: &PathBuf) -> bool {
    let asked = Command::new(clang).arg("--print-file-name=libclang_rt.tsan-x86_64.a").output();
    // Of a file it does not have, it prints the bare name.
    asked.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim().starts_with('/'))
}
