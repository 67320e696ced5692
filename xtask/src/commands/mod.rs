//! What each command does, in the order it does it.

mod bench;
mod compare;
mod guest;
mod lint;
mod log;
mod run;
mod test;

use std::path::Path;

use anyhow::{Context, Result};

use crate::build::{Builder, Locks, Profile, Variant};
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
        Command::Clippy => lint::clippy(&workspace),
    }
}

impl From<&cli::Variant> for Variant {
    fn from(options: &cli::Variant) -> Self {
        Self {
            locks: if options.single_lock { Locks::Single } else { options.config },
            debug_locks: options.debug_locks,
            levels: options.levels,
            profile: if options.debug { Profile::Debug } else { Profile::Release },
        }
    }
}

fn build(workspace: &Workspace, options: &cli::Build) -> Result<bool> {
    let kernel = Builder::new(workspace).kernel(Variant::from(&options.variant))?;
    println!("{}", kernel.display());
    Ok(true)
}

fn image(workspace: &Workspace, options: &cli::Image) -> Result<bool> {
    let mut builder = Builder::new(workspace);
    let kernel = builder.kernel(Variant::from(&options.variant))?;
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
