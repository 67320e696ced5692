//! What the kernel does once it is up: whatever the command line asks for, and then it ends.

use alloc::vec;
use core::fmt;

use handover::cmdline::Mode;
use mm::config::CONFIG_NAME;
use spin::Once;

use crate::boot;
use crate::cmdline::{self, Options};
use crate::exit::{ExitCode, exit};
use crate::fw_cfg;
use crate::harness;
use crate::memory;
use crate::misbehave::misbehave;
use crate::record::Record;
use crate::smp;

/// What this run does; set by [`configure`].
static OPTIONS: Once<Options<'static>> = Once::new();

/// Reads the command line, and ends the run if there is anything wrong with it. Early, so that nothing else is done for
/// a run that nobody asked for, and so that the log has its level from the start.
pub fn configure() {
    let buffer = vec![0; fw_cfg::MAX_CMDLINE].leak();
    let line: &str = match fw_cfg::cmdline(buffer) {
        Some(Ok(line)) => line,
        Some(Err(error)) => reject(format_args!("the command line cannot be read: {error}")),
        None => "",
    };
    match cmdline::parse(line) {
        Ok(options) => {
            crate::log::set_level(options.log);
            if let Some(name) = options.sabotage {
                break_a_rule(name);
            }
            OPTIONS.call_once(|| options);
        }
        Err(error) => reject(format_args!("command line: {error}")),
    }
}

/// From now on the rule of this name is broken.
#[cfg(feature = "sabotage")]
fn break_a_rule(name: &str) {
    mm::sabotage::choose(name);
}

/// Only kernels that are built for it break rules.
#[cfg(not(feature = "sabotage"))]
fn break_a_rule(name: &str) {
    reject(format_args!("sabotage={name}: this kernel was not built for it"))
}

/// Does what the command line asks for, reports, and turns the machine off.
pub fn run() -> ! {
    let boot = boot::info();
    if let Err(error) = memory::take_over() {
        log::error!("boot failed: {error}");
        exit(ExitCode::BootFailed)
    }
    let Some(options) = OPTIONS.get() else { panic!("the command line was not read") };
    let cpus = smp::online().iter().count();
    Record::new("boot")
        .number("cpus", cpus as u64)
        .text("boot", boot.kind)
        .number("memory_mib", boot.ram_bytes.div_ceil(1 << 20))
        .text("build", CONFIG_NAME)
        .emit();
    perform(options, cpus)
}

fn perform(options: &Options, cpus: usize) -> ! {
    let (mode, tally) = match options.mode {
        Mode::Test => ("test", harness::run_tests(options, cpus)),
        Mode::List => ("list", harness::list_tests(options)),
        Mode::Run => ("run", harness::run_workload(options, cpus)),
        Mode::Misbehave(how) => misbehave(how, options.timeout),
    };
    let Some(tally) = tally else {
        match options.mode {
            Mode::Run => reject(format_args!("there is no workload '{}'", options.workload)),
            _ => reject(format_args!("no test matches filter '{}'", options.filter.unwrap_or(""))),
        }
    };
    Record::new("end")
        .text("mode", mode)
        .number("passed", tally.passed)
        .number("failed", tally.failed)
        .number("skipped", tally.skipped)
        .emit();
    #[cfg(feature = "coverage")]
    crate::coverage::write();
    exit(if tally.failed == 0 { ExitCode::Passed } else { ExitCode::Failed })
}

fn reject(reason: fmt::Arguments) -> ! {
    log::error!("{reason}");
    exit(ExitCode::BadCommandLine)
}
