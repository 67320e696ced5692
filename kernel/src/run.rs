//! What the kernel does once it is up: whatever the command line asks for, and then it ends.

use core::fmt;

use mm::config::USE_SPLIT_PTE_PTLOCKS;

use crate::boot;
use crate::cmdline::{self, Mode, Options};
use crate::exit::{ExitCode, exit};
use crate::fw_cfg;
use crate::harness;
use crate::memory;
use crate::misbehave::misbehave;
use crate::record::Record;
use crate::smp;

/// Reads the command line, does what it asks for, reports, and turns the machine off.
pub fn run() -> ! {
    let boot = boot::info();
    if let Err(error) = memory::take_over() {
        log::error!("boot failed: {error}");
        exit(ExitCode::BootFailed)
    }
    let mut buffer = [0; fw_cfg::MAX_CMDLINE];
    let line = match fw_cfg::cmdline(&mut buffer) {
        Some(Ok(line)) => line,
        Some(Err(error)) => reject(format_args!("the command line cannot be read: {error:?}")),
        None => "",
    };
    let options = match cmdline::parse(line) {
        Ok(options) => options,
        Err(error) => reject(format_args!("command line: {error}")),
    };
    crate::log::set_level(options.log);
    let cpus = smp::online().iter().count();
    Record::new("boot")
        .number("cpus", cpus as u64)
        .text("boot", boot.kind)
        .number("memory_mib", boot.ram_bytes.div_ceil(1 << 20))
        .text("build", if USE_SPLIT_PTE_PTLOCKS { "split" } else { "single" })
        .emit();
    perform(&options, cpus)
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
    exit(if tally.failed == 0 { ExitCode::Passed } else { ExitCode::Failed })
}

fn reject(reason: fmt::Arguments) -> ! {
    log::error!("{reason}");
    exit(ExitCode::BadCommandLine)
}
