//! The one command line of Latchwork: `cargo xtask run`, `cargo xtask test`, and what they need.
//!
//! It runs on the host, knows no crate of ours, and talks to the kernel by `docs/harness.md` alone.

mod build;
mod child;
mod cli;
mod commands;
mod interrupt;
mod machine;
mod options;
mod postmortem;
mod qemu;
mod report;
mod results;
mod runner;
mod sabotage;
mod saved;
mod setup;
mod suite;
mod symbolise;
mod timing;
mod verdict;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    end_with_the_reader();
    let cli = cli::Cli::parse();
    // Without the handler Ctrl-C still ends us; QEMU then ends with us by other means.
    if let Err(error) = interrupt::install() {
        eprintln!("xtask: no handler for Ctrl-C: {error}");
    }
    match commands::run(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ends us quietly when whoever reads our output goes away, as `head` does.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: this restores the default action; no code of ours runs on the signal. It cannot fail for SIGPIPE.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
