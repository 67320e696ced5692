//! What each command does, in the order it does it.

mod bench;
mod compare;
mod coverage;
mod fuzz;
mod guest;
mod lint;
mod log;
mod nightly;
mod run;
mod sabotage;
mod setups;
mod test;

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::build::{Arch, Builder};
use crate::cli::{self, Command};
use crate::setup::doctor;
use crate::workspace::Workspace;

/// Does it; whether all is well.
pub fn run(command: Command) -> Result<bool> {
    let workspace = Workspace::locate();
    match command {
        Command::Run(options) => run::run(&workspace, &options),
        Command::Test(options) if options.list => test::list(&workspace, options.filter.as_deref(), &options.guest),
        Command::Test(options) => test::test(&workspace, &options),
        Command::List(options) => test::list(&workspace, options.filter.as_deref(), &options.guest),
        Command::Build(options) => build(&workspace, &options),
        Command::Image(options) => image(&workspace, &options),
        Command::Doctor => Ok(doctor::examine(&workspace)),
        Command::Bench(options) => bench::bench(&workspace, &options),
        Command::Log(options) => log::log(&workspace, &options),
        Command::Sabotage(options) => sabotage::sabotage(&workspace, &options),
        Command::Clippy => lint::clippy(&workspace),
        Command::Coverage(options) => coverage::coverage(&workspace, &options),
        Command::Fuzz(options) => fuzz::fuzz(&workspace, &options),
        Command::Nightly(options) => nightly::nightly(&workspace, &options),
    }
}

fn build(workspace: &Workspace, options: &cli::Build) -> Result<bool> {
    let kernel = Builder::new(workspace).kernel(guest::variant(&options.variant)?)?;
    println!("{}", kernel.display());
    Ok(true)
}

fn image(workspace: &Workspace, options: &cli::Image) -> Result<bool> {
    let variant = guest::variant(&options.variant)?;
    ensure!(variant.arch == Arch::X86_64, "a disk image is for x86_64: the boot loader starts 64-bit kernels");
    let mut builder = Builder::new(workspace);
    let kernel = builder.kernel(variant)?;
    let path = std::path::absolute(&options.path).context("no such path")?;
    builder.image(&kernel, &path)?;
    println!("{}", path.display());
    println!("To write it to a USB stick: sudo dd if={} of=/dev/sdX bs=1M conv=fsync", path.display());
    Ok(true)
}

/// Writes a file a person asked for.
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
