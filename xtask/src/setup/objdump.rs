//! The disassembler, which shows what the PAE kernel is made of.

use std::path::PathBuf;

use super::packages::Package;
use super::{Missing, find_or_install, find_program};

/// Looks for it.
pub fn find() -> Option<PathBuf> {
    find_program("objdump")
}

/// Finds or installs it.
pub fn require() -> Result<PathBuf, Missing> {
    find_or_install("objdump", &[Package::Binutils], find)
}
