//! `mm`'s host tests under a sanitizer, which sees in a running program what no test asks: data races, use after free,
//! accesses out of bounds.
//!
//! The standard library is built with the sanitizer too: without, it takes the library's own synchronisation for races.

use std::env::consts::{ARCH, OS};
use std::time::Duration;

use super::program::{self, BUILD_TESTS, HostError};
use super::progress::Progress;
use crate::build::Variant;
use crate::cli::Sanitizer;
use crate::setup::llvm;
use crate::setup::toolchain::{Need, Toolchains};
use crate::workspace::Workspace;

/// How long a program under a sanitizer may take, and each simulated machine in it: many times what it takes without.
const LIMIT: Duration = Duration::from_secs(3600);
const MACHINE_LIMIT: Duration = Duration::from_secs(600);

impl Sanitizer {
    /// Its name, the same for both compilers and on our command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Address => "address",
        }
    }
}

/// Builds and runs them, with the locks of `variant`. What a sanitizer finds it writes to the terminal, and the program's
/// status says so.
///
/// # Errors
/// When a program that this takes is missing, or the tests cannot be built.
pub fn run(
    workspace: &Workspace,
    sanitizer: Sanitizer,
    variant: Variant,
    filter: &str,
    progress: &mut Progress,
) -> Result<(), HostError> {
    let mut toolchains = Toolchains::new(workspace);
    let toolchain = toolchains.require(Need::LibrarySource)?;
    let clang = llvm::require_clang(&toolchain)?;
    let word = sanitizer.word();
    progress.section(&format!("host tests of mm, {} locks, {word} sanitizer", variant.name()));

    let mut command = toolchains.cargo(&toolchain)?;
    command.args(BUILD_TESTS).args(["--package", "mm", "--lib", "--tests", "-Zbuild-std"]);
    // With a target of their own, build scripts and procedural macros stay as they are.
    command.arg("--target").arg(format!("{ARCH}-unknown-{OS}-gnu"));
    command.arg("--target-dir").arg(workspace.target(&format!("sanitize-{word}")));
    command.arg("--features").arg(variant.lock_features().join(","));
    let flags = [
        format!("-Zsanitizer={word}"),
        // The runtime comes from clang: Debian's compiler has none of its own.
        "-Zexternal-clangrt".to_owned(),
        format!("-Clinker={}", clang.display()),
        format!("-Clink-arg=-fsanitize={word}"),
    ];
    // Unoptimised, what is watched runs a hundred times slower, and simulated machines call that a hang.
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "2").env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    // One flag may hold blanks; these are parted by what no path holds.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("RUSTC_BOOTSTRAP", "1");
    for program in program::build(&mut command)? {
        let suite = format!("{} ({word} sanitizer)", program.suite);
        let mut command = program.command(filter);
        // A simulated machine's memory is never freed, since handles to it are `'static`.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
        command.env("LATCHWORK_TIME_LIMIT", MACHINE_LIMIT.as_secs().to_string());
        program::run_within(LIMIT, command, &suite, progress)?;
    }
    Ok(())
}
