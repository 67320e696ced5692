//! Builds the kernel and its disk image with the compiler that was found.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup::Missing;
use crate::setup::toolchain::{KERNEL_TARGET, Need, Toolchain, Toolchains};
use crate::workspace::Workspace;

/// The processor the kernel is built for. A build of its own each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Arch {
    /// 64 bits; four or five levels of page tables.
    #[value(name = "x86_64")]
    X86_64,
    /// 32 bits, with 64-bit page-table entries (PAE): three levels, and more memory than addresses.
    #[value(name = "i686-pae")]
    I686Pae,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::I686Pae];

    /// Its word on our command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::I686Pae => "i686-pae",
        }
    }

    /// What its builds need of a compiler: nobody ships `core` for a target of our own.
    pub fn need(self) -> Need {
        match self {
            Self::X86_64 => Need::KernelTarget,
            Self::I686Pae => Need::LibrarySource,
        }
    }

    /// The folder of its builds in cargo's target folder: the target's name, or that of the file that describes it.
    fn folder(self) -> &'static str {
        match self {
            Self::X86_64 => KERNEL_TARGET,
            Self::I686Pae => "i686-pae",
        }
    }
}

/// Where page-table locks live. A build of its own each, not a switch at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Locks {
    /// One lock in each PTE and PMD table.
    Split,
    /// One lock in each PTE table, none in PMD tables.
    SplitPte,
    /// One lock for the address space.
    Single,
}

impl Locks {
    /// Its word in `@boot` and on our command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::SplitPte => "split-pte",
            Self::Single => "single",
        }
    }

    /// The feature of `mm` that makes it so.
    fn feature(self) -> Option<&'static str> {
        match self {
            Self::Split => None,
            Self::SplitPte => Some("split-pte"),
            Self::Single => Some("single-lock"),
        }
    }
}

/// How many levels page tables have. A build of its own each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Levels {
    /// 48-bit addresses.
    #[value(name = "4")]
    Four,
    /// 57-bit addresses; by PVH only, on a CPU with LA57.
    #[value(name = "5")]
    Five,
}

/// How the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As it runs and is measured.
    Release,
    /// With debug assertions.
    Debug,
}

impl Profile {
    /// Its name in `Cargo.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "kernel",
            Self::Debug => "kernel-debug",
        }
    }
}

/// One way to build the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What it runs on.
    pub arch: Arch,
    /// Where page-table locks live.
    pub locks: Locks,
    /// Whether locks check how they are used.
    pub debug_locks: bool,
    /// How deep page tables are.
    pub levels: Levels,
    /// How it is compiled.
    pub profile: Profile,
    /// Whether rules can be broken in it.
    pub sabotage: bool,
    /// Whether it counts what it executes.
    pub coverage: bool,
}

impl Variant {
    /// Every placement of locks, each without and with checks: the builds that must all pass the same tests.
    pub fn all(arch: Arch, profile: Profile) -> impl Iterator<Item = Self> {
        let checks = [false, true].into_iter();
        checks.flat_map(move |debug_locks| {
            [Locks::Split, Locks::SplitPte, Locks::Single].map(|locks| Self {
                arch,
                locks,
                debug_locks,
                levels: Levels::Four,
                profile,
                sabotage: false,
                coverage: false,
            })
        })
    }

    /// Whether its locks are those of a build that nobody asked anything of.
    pub fn has_usual_locks(self) -> bool {
        self.locks == Locks::Split && !self.debug_locks
    }

    /// The features of `mm` that this takes; its paging mode is no feature but a type.
    pub fn lock_features(self) -> Vec<&'static str> {
        self.locks.feature().into_iter().chain(self.debug_locks.then_some("debug-locks")).collect()
    }

    /// The features of the kernel that this takes.
    pub fn features(self) -> Vec<&'static str> {
        let five_levels = (self.levels == Levels::Five).then_some("five-level");
        let sabotage = self.sabotage.then_some("sabotage");
        let coverage = self.coverage.then_some("coverage");
        self.lock_features().into_iter().chain(five_levels).chain(sabotage).chain(coverage).collect()
    }

    /// What to type to get it.
    pub fn options(self) -> String {
        let arch = format!(" --arch {}", self.arch.word());
        let locks = if self.locks == Locks::Split { String::new() } else { format!(" --config {}", self.locks.word()) };
        let debug_locks = if self.debug_locks { " --debug-locks" } else { "" };
        let levels = if self.levels == Levels::Five { " --levels 5" } else { "" };
        let profile = if self.profile == Profile::Debug { " --debug" } else { "" };
        arch + &locks + debug_locks + levels + profile
    }

    /// Its locks, as the kernel names them in `@boot`, and in reports.
    pub fn name(self) -> String {
        format!("{}{}", self.locks.word(), if self.debug_locks { "+debug" } else { "" })
    }

    /// What it is, in file names.
    fn file_name(self) -> String {
        let arch = if self.arch == Arch::X86_64 { String::new() } else { format!("-{}", self.arch.word()) };
        let levels = if self.levels == Levels::Five { "-5level" } else { "" };
        let sabotage = if self.sabotage { "-sabotage" } else { "" };
        let coverage = if self.coverage { "-coverage" } else { "" };
        format!("kernel{arch}-{}{levels}{sabotage}{coverage}-{}.elf", self.name(), self.profile.name())
    }
}

/// A build did not come about.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No compiler or linker.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// Cargo did not start.
    #[error("cannot start cargo: {0}")]
    Cargo(io::Error),
    /// Cargo's own messages are on the terminal.
    #[error("building the {0} failed")]
    Failed(&'static str),
    /// The result cannot be put in its place.
    #[error("cannot write {}: {error}", .path.display())]
    Place {
        /// The place.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Compiler flags of the kernel: linked at fixed addresses, those of 64 bits in the top 2 GiB, and with frame pointers,
/// without which a backtrace is fiction.
const KERNEL_FLAGS: [(&str, &str); 2] = [
    (
        "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS",
        "-Cforce-frame-pointers=yes -Crelocation-model=static -Ccode-model=kernel",
    ),
    ("CARGO_TARGET_I686_PAE_RUSTFLAGS", "-Cforce-frame-pointers=yes -Crelocation-model=static"),
];

/// Adds to a cargo command what every build of the kernel for `arch` needs.
pub fn for_kernel_target(command: &mut Command, arch: Arch, toolchain: &Toolchain, workspace: &Workspace) {
    command.arg("--target-dir").arg(workspace.target("kernel")).envs(KERNEL_FLAGS).arg("--target");
    let build_library = match arch {
        Arch::X86_64 => {
            command.arg(KERNEL_TARGET);
            !toolchain.target_installed
        }
        Arch::I686Pae => {
            command.arg(workspace.root().join("arch/x86/i686-pae.json")).arg("-Zjson-target-spec");
            true
        }
    };
    if build_library {
        command.env("RUSTC_BOOTSTRAP", "1");
        command.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"]);
    }
}

/// Crates compiled for the kernel's target.
pub const KERNEL_CRATES: [&str; 4] = ["kernel", "arch-x86", "handover", "mm"];

/// Makes the crates of ours that are built count what they execute; the kernel itself is the runtime that this takes.
fn count_what_runs(command: &mut Command, profile: Profile) {
    command.env("RUSTC_BOOTSTRAP", "1").arg("-Zprofile-rustflags");
    for name in KERNEL_CRATES {
        let flags = r#"["-Cinstrument-coverage", "-Zno-profiler-runtime"]"#;
        command.arg("--config").arg(format!("profile.{}.package.{name}.rustflags={flags}", profile.name()));
    }
}

/// Builds what runs in the guest.
pub struct Builder<'a> {
    workspace: &'a Workspace,
    toolchains: Toolchains,
    /// What has been built, and where it is.
    kernels: Vec<(Variant, PathBuf)>,
}

impl<'a> Builder<'a> {
    /// With this machine's compilers.
    pub fn new(workspace: &'a Workspace) -> Self {
        Self { workspace, toolchains: Toolchains::new(workspace), kernels: Vec::new() }
    }

    /// The compilers.
    pub fn toolchains(&mut self) -> &mut Toolchains {
        &mut self.toolchains
    }

    /// Builds the kernel, once; the ELF stays in place when another variant is built.
    pub fn kernel(&mut self, variant: Variant) -> Result<PathBuf, BuildError> {
        if let Some((_, place)) = self.kernels.iter().find(|(built, _)| *built == variant) {
            return Ok(place.clone());
        }
        let toolchain = self.toolchains.require(variant.arch.need())?;
        let mut command = self.toolchains.cargo(&toolchain)?;
        command.args(["build", "--package", "kernel", "--profile", variant.profile.name()]);
        for_kernel_target(&mut command, variant.arch, &toolchain, self.workspace);
        command.arg("--features").arg(variant.features().join(","));
        if variant.coverage {
            count_what_runs(&mut command, variant.profile);
        }
        run(&mut command, "kernel")?;
        let folder = self.workspace.target("kernel").join(variant.arch.folder());
        let built = folder.join(variant.profile.name()).join("kernel");
        let place = self.workspace.out(&variant.file_name());
        copy(&built, &place)?;
        self.kernels.push((variant, place.clone()));
        Ok(place)
    }

    /// Makes a UEFI disk image of a kernel.
    pub fn image(&mut self, kernel: &Path, image: &Path) -> Result<(), BuildError> {
        let toolchain = self.toolchains.require(Need::LibrarySource)?;
        let mut command = self.toolchains.cargo(&toolchain)?;
        command.args(["run", "--quiet", "--package", "latchwork-boot", "--target-dir"]);
        command.arg(self.workspace.target("boot"));
        // The boot loader's build script builds it for a target that needs library source.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.arg("--").arg(kernel).arg(image);
        run(&mut command, "disk image")
    }
}

fn run(command: &mut Command, what: &'static str) -> Result<(), BuildError> {
    let status = command.status().map_err(BuildError::Cargo)?;
    if status.success() { Ok(()) } else { Err(BuildError::Failed(what)) }
}

/// Copies, making the folder if it is not there.
fn copy(from: &Path, to: &Path) -> Result<(), BuildError> {
    let failed = |error| BuildError::Place { path: to.to_path_buf(), error };
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::copy(from, to).map(|_| ()).map_err(failed)
}
