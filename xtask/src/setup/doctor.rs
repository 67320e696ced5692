//! `cargo xtask doctor`: what was found, where, and what is missing. Installs nothing.

use std::fmt::Display;
use std::path::PathBuf;

use super::accelerator::Virtualisation;
use super::packages::{Package, System};
use super::toolchain::{Need, Toolchains, choose, survey};
use super::{find_program, llvm, missing_packages, objdump, ovmf, qemu};
use crate::build::Arch;
use crate::workspace::Workspace;

/// Prints the findings; whether all is there.
pub fn examine(workspace: &Workspace) -> bool {
    let system = System::detect();
    let root = if system.root { "root" } else { "not root" };
    line("system", format_args!("packages by {:?}, {root}", system.manager));
    line("workspace", workspace.root().display());

    let all = survey();
    for toolchain in &all {
        let mut has = Vec::new();
        has.extend(toolchain.target_installed.then_some("the kernel's target"));
        has.extend(toolchain.library_source.then_some("library source"));
        has.extend(toolchain.clippy.is_some().then_some("clippy"));
        has.extend(toolchain.too_old().then_some("too old"));
        let has = if has.is_empty() { "host only".to_owned() } else { has.join(", ") };
        line("compiler", format_args!("{} {} ({has})", toolchain.rustc.display(), toolchain.version));
    }
    let mut missing = missing_packages();
    for (need, what) in [(Need::KernelTarget, "x86_64 by"), (Need::LibrarySource, "PAE, image by")] {
        match choose(&all, need) {
            Some(toolchain) => line(what, toolchain.rustc.display()),
            None => line(what, "MISSING"),
        }
    }
    if let Some(toolchain) = choose(&all, Need::KernelTarget) {
        match Toolchains::new(workspace).existing_linker(toolchain) {
            Some(path) => line("linker", path.display()),
            None => {
                line("linker", "MISSING");
                missing.push(Package::Linker);
            }
        }
    }
    line("rustup", find_program("rustup").map_or_else(|| "none".to_owned(), |path| path.display().to_string()));
    for arch in Arch::ALL {
        let what = format!("QEMU {}", arch.word());
        match qemu::find(arch) {
            Some(path) => match qemu::version(&path) {
                Some(version) => line(&what, format_args!("{} {version}", path.display())),
                None => {
                    line(&what, format_args!("{} does not run", path.display()));
                    if !missing.contains(&Package::Qemu) {
                        missing.push(Package::Qemu);
                    }
                }
            },
            None => line(&what, "MISSING"),
        }
    }
    match ovmf::find() {
        Some(ovmf) => line("OVMF", ovmf.code.display()),
        None => line("OVMF", "MISSING"),
    }
    line("objdump", objdump::find().map_or_else(|| "MISSING".to_owned(), |path| path.display().to_string()));
    let mut of_others = Vec::new();
    if let Some(toolchain) = choose(&all, Need::LibrarySource) {
        let mut optional = |what: &str, found: Option<PathBuf>, package: Package, command: &str| match found {
            Some(path) => line(what, path.display()),
            None => {
                line(what, format_args!("none; it is for {command} alone"));
                of_others.push(package);
            }
        };
        let readers = llvm::find_readers(toolchain).map(|readers| readers.cov);
        optional("llvm-cov", readers, Package::Llvm, "cargo xtask coverage");
        optional("clang", llvm::find_clang(toolchain), Package::Clang, "cargo xtask test --sanitize, cargo xtask fuzz");
    }
    let virtualisation = Virtualisation::detect();
    line("accelerator", format_args!("{} ({})", virtualisation.accelerator(), virtualisation.reason()));
    if missing.is_empty() {
        println!("\nAll there: cargo xtask run, cargo xtask test.");
        if !of_others.is_empty() {
            println!("For the other commands:\n    {}", system.install_command(&of_others));
        }
        return true;
    }
    if system.may_install() {
        println!("\ncargo xtask run and cargo xtask test install what is missing:");
    } else {
        println!("\nTo install what is missing, run:");
    }
    println!("    {}", system.install_command(&missing));
    false
}

fn line(what: &str, finding: impl Display) {
    println!("{what:>14}  {finding}");
}
