//! Runs the tests one after the other and reports in KTAP (`docs/harness.md`).

use alloc::format;
use alloc::vec::Vec;

use arch_x86::layout::Mode;
use mm::pgtable::PagingMode;

use super::books::Books;
use super::context::{diagnostic, ktap};
use super::{Stop, TESTS, Test, TestContext, deadline};
use crate::cmdline::Options;
use crate::record::Record;

/// How many things ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Skipped.
    pub skipped: u64,
}

/// How one test ended.
enum Outcome {
    Passed,
    Failed,
    Skipped(alloc::string::String),
}

/// Names and descriptions of the tests the options choose, as `@test` records. `None`: there are none.
pub fn list_tests(options: &Options) -> Option<Tally> {
    let tests = chosen(options)?;
    for test in tests {
        Record::new("test").text("name", test.name).text("about", test.about.trim()).emit();
    }
    Some(Tally::default())
}

/// Runs the tests the options choose. `None`: there are none.
pub fn run_tests(options: &Options, cpus: usize) -> Option<Tally> {
    let tests = chosen(options)?;
    let mut tally = Tally::default();
    ktap(format_args!("KTAP version 1"));
    ktap(format_args!("1..{}", tests.len()));
    for (index, test) in tests.iter().enumerate() {
        let (number, name) = (index + 1, test.name);
        Record::new("start").text("test", name).emit();
        match run(test, options, cpus) {
            Outcome::Passed => {
                tally.passed += 1;
                ktap(format_args!("ok {number} {name}"));
            }
            Outcome::Failed => {
                tally.failed += 1;
                ktap(format_args!("not ok {number} {name}"));
            }
            Outcome::Skipped(reason) => {
                tally.skipped += 1;
                ktap(format_args!("ok {number} {name} # SKIP {reason}"));
            }
        }
    }
    Some(tally)
}

/// The chosen tests by name, so that their order depends on nothing but the sources.
fn chosen(options: &Options) -> Option<Vec<&'static Test>> {
    let wanted = |test: &&Test| options.filter.is_none_or(|filter| test.name.contains(filter));
    let mut tests: Vec<&Test> = TESTS.iter().filter(wanted).collect();
    tests.sort_unstable_by_key(|test| test.name);
    (!tests.is_empty()).then_some(tests)
}

fn run(test: &'static Test, options: &Options, cpus: usize) -> Outcome {
    if !test.modes.is_empty() && !test.modes.contains(&Mode::NAME) {
        return Outcome::Skipped(format!("only with {} page tables", test.modes.join(" or ")));
    }
    let context = TestContext::new(test.name, options.seed, cpus);
    let books = Books::open();
    let result = {
        let _limit = deadline::set(&test.name, arch_x86::time::now_micros(), options.timeout);
        (test.run)(&context)
    };
    match result {
        Ok(()) if context.has_failed() => Outcome::Failed,
        Ok(()) => {
            let balanced = books.balance(|what, before, now| {
                diagnostic(test.name, format_args!("leak: {what}: {before} before the test, {now} after it"));
            });
            if balanced { Outcome::Passed } else { Outcome::Failed }
        }
        Err(Stop::Failed(message)) => {
            diagnostic(test.name, format_args!("{message}"));
            Outcome::Failed
        }
        Err(Stop::Skipped(_)) if context.has_failed() => Outcome::Failed,
        Err(Stop::Skipped(reason)) => Outcome::Skipped(reason),
    }
}
