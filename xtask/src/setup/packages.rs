//! The system's own packages: what ours are called there, and how they are installed.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

/// Something a system package brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// A compiler with library source.
    Toolchain,
    /// Clippy for that compiler.
    Clippy,
    /// An ELF and PE linker.
    Linker,
    /// The emulator, for 64 bits and for 32.
    Qemu,
    /// UEFI firmware for it.
    Ovmf,
    /// The disassembler.
    Binutils,
    /// What reads coverage, of the LLVM that Debian's compiler is built with.
    Llvm,
    /// The C compiler of that LLVM, with the sanitizers' runtime.
    Clang,
}

/// Who installs packages here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Debian and its children.
    Apt,
    /// Fedora and its kin.
    Dnf,
    /// Arch.
    Pacman,
    /// openSUSE.
    Zypper,
    /// Alpine.
    Apk,
    /// macOS.
    Brew,
    /// None we know.
    Unknown,
}

/// The system we run on.
#[derive(Clone, Copy, Debug)]
pub struct System {
    /// Who installs packages.
    pub manager: Manager,
    /// Whether we are root.
    pub root: bool,
}

impl System {
    /// Reads `/etc/os-release`.
    pub fn detect() -> Self {
        let manager = if cfg!(target_os = "macos") {
            Manager::Brew
        } else {
            manager_of(&fs::read_to_string("/etc/os-release").unwrap_or_default())
        };
        Self { manager, root: nix::unistd::geteuid().is_root() }
    }

    /// Whether we install without being asked: as root on a Debian-like system.
    pub fn may_install(self) -> bool {
        self.root && self.manager == Manager::Apt
    }

    /// Installs, saying what it runs. `false` when a command failed; its own words are on the terminal then.
    pub fn install(self, packages: &[Package]) -> bool {
        let names: Vec<&str> = packages.iter().flat_map(|&package| names(self.manager, package)).copied().collect();
        let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
        install.extend(names);
        static UPDATED: OnceLock<bool> = OnceLock::new();
        *UPDATED.get_or_init(|| apt_get(&["update", "-q"])) && apt_get(&install)
    }

    /// The one command a person would type.
    pub fn install_command(self, packages: &[Package]) -> String {
        // Only Debian has a compiler among its packages that is new enough and comes with library source.
        let by_rustup = |package: &&Package| **package == Package::Toolchain && self.manager != Manager::Apt;
        let rustup = packages.iter().find(by_rustup).map(|_| RUSTUP_INSTALL.to_owned());
        let others = packages.iter().filter(|package| !by_rustup(package));
        let names: Vec<&str> = others.flat_map(|&package| names(self.manager, package)).copied().collect();
        let system = (!names.is_empty()).then(|| self.system_command(&names.join(" ")));
        rustup.into_iter().chain(system).collect::<Vec<_>>().join(" && ")
    }

    fn system_command(self, names: &str) -> String {
        let sudo = if self.root { "" } else { "sudo " };
        match self.manager {
            Manager::Apt => {
                format!("{sudo}apt-get update && {sudo}apt-get install --no-install-recommends {names}")
            }
            Manager::Dnf => format!("{sudo}dnf install {names}"),
            Manager::Pacman => format!("{sudo}pacman -S {names}"),
            Manager::Zypper => format!("{sudo}zypper install {names}"),
            Manager::Apk => format!("{sudo}apk add {names}"),
            Manager::Brew => format!("brew install {names}"),
            Manager::Unknown => format!("(this system's package manager) install {names}"),
        }
    }
}

/// Runs it, saying so.
fn apt_get(arguments: &[&str]) -> bool {
    eprintln!("xtask: running: apt-get {}", arguments.join(" "));
    let status = Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    status.is_ok_and(|status| status.success())
}

/// How rustup itself comes to a machine without it.
pub const RUSTUP_INSTALL: &str = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh";

fn manager_of(os_release: &str) -> Manager {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let (id, like) = (value("ID="), value("ID_LIKE="));
    let mut ids = std::iter::once(id.as_str()).chain(like.split(' '));
    ids.find_map(|id| match id {
        "debian" | "ubuntu" => Some(Manager::Apt),
        "fedora" | "rhel" | "centos" => Some(Manager::Dnf),
        "arch" => Some(Manager::Pacman),
        "suse" | "opensuse" | "opensuse-tumbleweed" => Some(Manager::Zypper),
        "alpine" => Some(Manager::Apk),
        _ => None,
    })
    .unwrap_or(Manager::Unknown)
}

fn names(manager: Manager, package: Package) -> &'static [&'static str] {
    match (package, manager) {
        (Package::Toolchain, _) => &["rustc-web", "cargo-web", "rust-web-src"],
        (Package::Clippy, _) => &["rust-web-clippy"],
        (Package::Linker, _) => &["lld"],
        (Package::Qemu, Manager::Apt) => &["qemu-system-x86"],
        (Package::Qemu, Manager::Pacman | Manager::Dnf) => &["qemu-system-x86"],
        (Package::Qemu, Manager::Apk) => &["qemu-system-x86_64", "qemu-system-i386"],
        (Package::Qemu, Manager::Zypper) => &["qemu-x86"],
        (Package::Qemu, Manager::Brew | Manager::Unknown) => &["qemu"],
        (Package::Ovmf, Manager::Apt | Manager::Apk | Manager::Unknown) => &["ovmf"],
        (Package::Ovmf, Manager::Dnf | Manager::Pacman) => &["edk2-ovmf"],
        (Package::Ovmf, Manager::Zypper) => &["qemu-ovmf-x86_64"],
        (Package::Ovmf, Manager::Brew) => &["qemu"],
        (Package::Binutils, _) => &["binutils"],
        (Package::Llvm, Manager::Apt) => &["llvm-22"],
        (Package::Llvm, _) => &["llvm"],
        (Package::Clang, Manager::Apt) => &["clang-22", "libclang-rt-22-dev"],
        (Package::Clang, _) => &["clang", "compiler-rt"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_known_by_their_own_name_or_their_parents() {
        assert_eq!(manager_of("NAME=x\nID=debian\n"), Manager::Apt);
        assert_eq!(manager_of("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Manager::Apt);
        assert_eq!(manager_of("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Manager::Dnf);
        assert_eq!(manager_of("ID=plan9\n"), Manager::Unknown);
        assert_eq!(manager_of(""), Manager::Unknown);
    }

    #[test]
    fn only_root_on_a_debian_like_system_installs_unasked() {
        assert!(System { manager: Manager::Apt, root: true }.may_install());
        assert!(!System { manager: Manager::Apt, root: false }.may_install());
        assert!(!System { manager: Manager::Dnf, root: true }.may_install());
    }

    #[test]
    fn the_command_to_type_is_whole() {
        let user = System { manager: Manager::Apt, root: false };
        assert_eq!(
            user.install_command(&[Package::Qemu, Package::Ovmf]),
            "sudo apt-get update && sudo apt-get install --no-install-recommends qemu-system-x86 ovmf"
        );
        let mac = System { manager: Manager::Brew, root: false };
        assert_eq!(mac.install_command(&[Package::Qemu]), "brew install qemu");
        assert_eq!(mac.install_command(&[Package::Toolchain]), RUSTUP_INSTALL);
        let both = System { manager: Manager::Dnf, root: true }.install_command(&[Package::Toolchain, Package::Ovmf]);
        assert_eq!(both, format!("{RUSTUP_INSTALL} && dnf install edk2-ovmf"));
    }
}
