//! UEFI firmware for the emulator.

use std::path::{Path, PathBuf};

use super::packages::Package;
use super::{Missing, find_or_install};

/// Where systems keep it: code, variables.
const PLACES: [(&str, &str); 7] = [
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
    ("/opt/homebrew/share/qemu/edk2-x86_64-code.fd", "/opt/homebrew/share/qemu/edk2-i386-vars.fd"),
];

/// The two halves of the firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ovmf {
    /// Read only.
    pub code: PathBuf,
    /// A template: each run writes a copy of its own.
    pub variables: PathBuf,
}

/// Looks for it.
pub fn find() -> Option<Ovmf> {
    let place = PLACES.iter().find(|(code, variables)| Path::new(code).is_file() && Path::new(variables).is_file());
    place.map(|(code, variables)| Ovmf { code: code.into(), variables: variables.into() })
}

/// Finds or installs it.
pub fn require() -> Result<Ovmf, Missing> {
    find_or_install("UEFI firmware (OVMF)", &[Package::Ovmf], find)
}
