//! Programs of LLVM, which have to fit the compiler: those that read what an instrumented program wrote, and the C
//! compiler that brings the sanitizers' runtime and links it.

use std::path::{Path, PathBuf};
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

/// The program of exactly this version, else of the next ones, else the one whose name has no version, if it is not older.
fn of_version(name: &str, version: u32) -> Option<PathBuf> {
    let versioned = (version..version + 5).find_map(|version| find_program(&format!("{name}-{version}")));
    versioned.or_else(|| find_program(name).filter(|program| own_version(program).is_some_and(|own| own >= version)))
}

/// The version of LLVM that a program says it is of.
fn own_version(program: &Path) -> Option<u32> {
    let asked = Command::new(program).arg("--version").output().ok()?;
    version_in(&String::from_utf8_lossy(&asked.stdout))
}

fn version_in(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("version ")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn has_sanitizers(clang: &PathBuf) -> bool {
    let asked = Command::new(clang).arg("--print-file-name=libclang_rt.tsan-x86_64.a").output();
    // Of a file it does not have, it prints the bare name.
    asked.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim().starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_llvm_says_which_version_it_is_of() {
        let profdata = "Debian LLVM version 14.0.6\n  Optimized build.\n  Default target: x86_64-pc-linux-gnu";
        assert_eq!(version_in(profdata), Some(14));
        assert_eq!(version_in("Debian clang version 22.1.8 (1~deb12u1)"), Some(22));
        assert_eq!(version_in("Apple clang version 17.0.0 (clang-1700)"), Some(17));
        assert_eq!(version_in("usage: clang"), None);
        assert_eq!(version_in("version unknown"), None);
    }

    /// Every system has this program, and none of a version that high.
    #[test]
    fn a_program_that_is_older_or_says_nothing_is_not_taken() {
        assert!(find_program("true").is_some());
        assert_eq!(of_version("true", 1_000), None);
    }
}
