//! A compiler that can build `core` for the kernel's target.
//!
//! In this order: one with the bare-metal target installed, one with library source, the distribution's. They are
//! called by path and told nothing of rustup, so that each keeps to itself: a compiler with another version's library
//! source does not work.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::packages::{Package, RUSTUP_INSTALL, System};
use super::{Missing, find_program, is_program, search_path};
use crate::workspace::Workspace;

/// The kernel's target.
pub const KERNEL_TARGET: &str = "x86_64-unknown-none";
/// The oldest minor version of Rust 1 that builds the workspace (`rust-version` in `Cargo.toml`).
const OLDEST: u32 = 95;

/// What a build needs of a compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `core` for the kernel's target, built or buildable.
    KernelTarget,
    /// Library source: for targets nobody ships, and for the boot loader, which builds itself.
    LibrarySource,
}

/// One compiler and what comes with it.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// Its cargo.
    pub cargo: PathBuf,
    /// `rustc --version`, without the word.
    pub version: String,
    /// Its minor version.
    minor: u32,
    /// The major version of the LLVM it is built with.
    pub llvm: u32,
    /// The kernel's target is installed.
    pub target_installed: bool,
    /// Library source is installed.
    pub library_source: bool,
    /// Its clippy, if it has one.
    pub clippy: Option<PathBuf>,
    /// Folder with a `rust-lld` of its own, if it has one.
    linker_folder: Option<PathBuf>,
}

impl Toolchain {
    /// Whether it serves.
    pub fn serves(&self, need: Need) -> bool {
        !self.too_old()
            && match need {
                Need::KernelTarget => self.target_installed || self.library_source,
                Need::LibrarySource => self.library_source,
            }
    }

    /// Whether it is older than the workspace allows.
    pub fn too_old(&self) -> bool {
        self.minor < OLDEST
    }

    /// A program that came with it, for its own host.
    pub fn own_program(&self, name: &str) -> Option<PathBuf> {
        self.linker_folder.as_ref().map(|folder| folder.join(name)).filter(|path| is_program(path))
    }

    /// Looks at the compiler at a path, which may be rustup's stand-in.
    fn probe(rustc: &Path) -> Option<Self> {
        let ask = |arguments: &[&str]| {
            let output = Command::new(rustc).args(arguments).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        let program = |name: &str| Some(sysroot.join("bin").join(name)).filter(|path| is_program(path));
        let rustc = program("rustc")?;
        let verbose = ask(&["-vV"])?;
        let version = verbose.lines().next()?.strip_prefix("rustc ")?.to_owned();
        let host = verbose.lines().find_map(|line| line.strip_prefix("host: "))?;
        let minor = version.split('.').nth(1)?.parse().ok()?;
        let llvm = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
        let llvm = llvm.split('.').next()?.parse().ok()?;
        let rustlib = sysroot.join("lib/rustlib");
        let linker_folder = rustlib.join(host).join("bin");
        Some(Self {
            rustc,
            cargo: program("cargo")?,
            version,
            minor,
            llvm,
            target_installed: has_core(&rustlib.join(KERNEL_TARGET).join("lib")),
            library_source: rustlib.join("src/rust/library/Cargo.lock").is_file(),
            clippy: program("cargo-clippy").filter(|_| program("clippy-driver").is_some()),
            linker_folder: Some(linker_folder).filter(|folder| is_program(&folder.join("rust-lld"))),
        })
    }
}

fn has_core(folder: &Path) -> bool {
    let Ok(files) = folder.read_dir() else {
        return false;
    };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// All compilers on this machine, each once: those on the search path in its order, then the distribution's.
pub fn survey() -> Vec<Toolchain> {
    let mut places = search_path();
    places.push("/usr/bin".into());
    let mut seen = HashSet::new();
    let found = places.into_iter().map(|folder| folder.join("rustc")).filter(|path| is_program(path));
    let toolchains = found.filter_map(|rustc| Toolchain::probe(&rustc));
    toolchains.filter(|toolchain| seen.insert(toolchain.rustc.clone())).collect()
}

/// The compiler to use for a need, of those surveyed.
pub fn choose(toolchains: &[Toolchain], need: Need) -> Option<&Toolchain> {
    let installed = toolchains.iter().find(|toolchain| toolchain.target_installed && toolchain.serves(need));
    installed.or_else(|| toolchains.iter().find(|toolchain| toolchain.serves(need)))
}

/// The compilers of this machine, looked at when first needed.
pub struct Toolchains {
    workspace: Workspace,
    all: OnceCell<Vec<Toolchain>>,
}

impl Toolchains {
    /// Those of this machine.
    pub fn new(workspace: &Workspace) -> Self {
        Self { workspace: workspace.clone(), all: OnceCell::new() }
    }

    fn all(&self) -> &[Toolchain] {
        self.all.get_or_init(survey)
    }

    /// The compiler for a need: found, added by rustup, or installed.
    pub fn require(&mut self, need: Need) -> Result<Toolchain, Missing> {
        if let Some(found) = choose(self.all(), need) {
            return Ok(found.clone());
        }
        let rustup = find_program("rustup").filter(|_| rustup_may_download());
        if let Some(rustup) = &rustup {
            add_with_rustup(rustup, &self.workspace);
            if let Some(found) = self.look_again(need) {
                return Ok(found);
            }
        }
        let system = System::detect();
        if system.may_install()
            && system.install(&[Package::Toolchain])
            && let Some(found) = self.look_again(need)
        {
            return Ok(found);
        }
        const WHAT: &str = "a compiler that can build `core` for the kernel";
        if rustup.is_some() {
            return Err(Missing { what: WHAT, command: RUSTUP_ADD.join(" && ") });
        }
        if system.may_install() {
            // The distribution was asked and has no such package.
            return Err(Missing { what: WHAT, command: RUSTUP_INSTALL.to_owned() });
        }
        Err(Missing::packages(WHAT, &[Package::Toolchain]))
    }

    /// The same, with clippy.
    pub fn require_clippy(&mut self, need: Need) -> Result<(Toolchain, PathBuf), Missing> {
        self.require(need)?;
        let with_clippy = |all: &[Toolchain]| {
            let having: Vec<Toolchain> = all.iter().filter(|toolchain| toolchain.clippy.is_some()).cloned().collect();
            let chosen = choose(&having, need)?.clone();
            let clippy = chosen.clippy.clone()?;
            Some((chosen, clippy))
        };
        if let Some(found) = with_clippy(self.all()) {
            return Ok(found);
        }
        let system = System::detect();
        if system.may_install() && system.install(&[Package::Clippy]) {
            self.all = OnceCell::new();
            if let Some(found) = with_clippy(self.all()) {
                return Ok(found);
            }
        }
        Err(Missing::packages("clippy for the kernel's compiler", &[Package::Toolchain, Package::Clippy]))
    }

    /// A cargo command that knows its own compiler and linker and nothing of rustup.
    ///
    /// # Errors
    /// When there is no linker for bare-metal targets.
    pub fn cargo(&self, toolchain: &Toolchain) -> Result<Command, Missing> {
        let mut command = Command::new(&toolchain.cargo);
        self.isolate(toolchain, &mut command)?;
        Ok(command)
    }

    /// Gives a command that compiler and linker, and takes rustup's and the outer cargo's variables away.
    pub fn isolate(&self, toolchain: &Toolchain, command: &mut Command) -> Result<(), Missing> {
        const OUTER: [&str; 8] = [
            "CARGO",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOC",
            "CARGO_TARGET_DIR",
        ];
        for name in OUTER {
            command.env_remove(name);
        }
        let mut path: Vec<PathBuf> = vec![self.linker_folder(toolchain)?];
        // Its own programs before rustup's stand-ins: the boot loader's build script calls them by name.
        path.extend(toolchain.rustc.parent().map(Path::to_path_buf));
        path.extend(search_path());
        let path: OsString = env::join_paths(path).unwrap_or_default();
        command.env("RUSTC", &toolchain.rustc).env("CARGO", &toolchain.cargo).env("PATH", path);
        command.current_dir(self.workspace.root());
        Ok(())
    }

    /// A folder with a `rust-lld`: the compiler's own, another compiler's, one on the search path, or one made of the
    /// distribution's `lld`, which is the same program by another name.
    fn linker_folder(&self, toolchain: &Toolchain) -> Result<PathBuf, Missing> {
        if let Some(linker) = self.existing_linker(toolchain)
            && linker.ends_with("rust-lld")
        {
            return Ok(linker.parent().map(Path::to_path_buf).unwrap_or_default());
        }
        super::find_or_install("a linker for bare-metal targets", &[Package::Linker], || {
            let lld = newest_lld()?;
            let folder = self.workspace.out("linker");
            std::fs::create_dir_all(&folder).ok()?;
            let link = folder.join("rust-lld");
            // A link from an earlier run may name an lld that is gone.
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(lld, &link).ok()?;
            Some(folder)
        })
    }

    /// The linker a build would use, without installing or making one.
    pub fn existing_linker(&self, toolchain: &Toolchain) -> Option<PathBuf> {
        let own = std::iter::once(toolchain).chain(self.all()).find_map(|one| one.linker_folder.as_ref());
        own.map(|folder| folder.join("rust-lld")).or_else(|| find_program("rust-lld")).or_else(newest_lld)
    }

    fn look_again(&mut self, need: Need) -> Option<Toolchain> {
        self.all = OnceCell::new();
        choose(self.all(), need).cloned()
    }
}

fn newest_lld() -> Option<PathBuf> {
    let versioned = (14..40).rev().map(|version| format!("lld-{version}"));
    versioned.chain(std::iter::once("lld".to_owned())).find_map(|name| find_program(&name))
}

/// What rustup is asked for.
const RUSTUP_ADD: [&str; 2] = ["rustup component add rust-src clippy", "rustup target add x86_64-unknown-none"];

fn rustup_may_download() -> bool {
    env::var_os("RUSTUP_AUTO_INSTALL").is_none_or(|value| value != "0")
}

/// Adds what it can; what it could not add is still missing afterwards, and that is looked at.
fn add_with_rustup(rustup: &Path, workspace: &Workspace) {
    for line in RUSTUP_ADD {
        eprintln!("xtask: running: {line}");
        let arguments = line.split(' ').skip(1);
        let status = Command::new(rustup).args(arguments).current_dir(workspace.root()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("xtask: that failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(name: &str, minor: u32, target_installed: bool, library_source: bool) -> Toolchain {
        Toolchain {
            rustc: name.into(),
            cargo: "cargo".into(),
            version: format!("1.{minor}.0"),
            minor,
            llvm: 22,
            target_installed,
            library_source,
            clippy: None,
            linker_folder: None,
        }
    }

    fn chosen(toolchains: &[Toolchain], need: Need) -> Option<&str> {
        choose(toolchains, need).and_then(|toolchain| toolchain.rustc.to_str())
    }

    #[test]
    fn an_installed_target_comes_before_library_source() {
        let all = [toolchain("source", 96, false, true), toolchain("target", 95, true, false)];
        assert_eq!(chosen(&all, Need::KernelTarget), Some("target"));
        assert_eq!(chosen(&all, Need::LibrarySource), Some("source"));
    }

    #[test]
    fn without_either_there_is_none() {
        let all = [toolchain("bare", 95, false, false)];
        assert_eq!(chosen(&all, Need::KernelTarget), None);
        assert_eq!(chosen(&[], Need::KernelTarget), None);
    }

    #[test]
    fn a_compiler_that_is_too_old_is_passed_over() {
        let all = [toolchain("old", 85, true, true), toolchain("new", 96, false, true)];
        assert_eq!(chosen(&all, Need::KernelTarget), Some("new"));
    }
}
