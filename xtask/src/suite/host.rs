//! Tests that run on the host: the unit and integration tests of `mm` and `xtask`, `mm`'s documentation tests, its loom
//! models and its runs under chosen schedules, whether its example runs, and whether it compiles for a 32-bit target.

use std::env;
use std::num::NonZeroUsize;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::libtest;
use super::program::{self, BUILD_LIMIT, BUILD_TESTS, HostError, PROGRAM_LIMIT, Program, start};
use super::progress::Progress;
use super::tally::{Case, Outcome};
use crate::build::Variant;
use crate::setup::toolchain::{Need, Toolchains};
use crate::workspace::Workspace;

/// Where `mm` must compile too: 32-bit, with 64-bit atomics, and shipped by nobody for `core` alone.
const NARROW_TARGET: &str = "i686-unknown-linux-gnu";
/// The name of that check.
const NARROW_CHECK: &str = "compiles_for_a_32_bit_target";
/// The program that embeds `mm`, and the check that it runs and is content with what it sees.
const EXAMPLE: &str = "minimal";
const EXAMPLE_CHECK: &str = "the_minimal_example_runs";
/// It takes a fraction of a second, but `mm` says after a minute what it waits for in vain.
const EXAMPLE_LIMIT: Duration = Duration::from_secs(90);
/// A program that explores more than usual may take this long.
const DEEP_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Random programs that stand for what a test run does by itself: proptest's own number.
const PROGRAMS: u32 = 256;

/// How many tests a program runs at once.
const TEST_THREADS: &str = "RUST_TEST_THREADS";

/// The feature of `mm` that lets rules be broken.
const SABOTAGE: &str = "sabotage";

/// How much of what there is to explore is explored: as much as CI has time for, or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Preemptions in an execution of a loom model.
    pub loom_bound: Option<u32>,
    /// So many times as many schedules, and as many random programs against a model.
    pub seeds: Option<u32>,
}

impl Depth {
    /// What tells the tests.
    fn environment(self) -> impl Iterator<Item = (&'static str, String)> {
        let variable = |name, value: Option<u32>| value.map(|value| (name, value.to_string()));
        let programs = self.seeds.map(|seeds| seeds.saturating_mul(PROGRAMS));
        [
            variable("LOOM_MAX_PREEMPTIONS", self.loom_bound),
            variable("LATCHWORK_SCHEDULES", self.seeds),
            variable("PROPTEST_CASES", programs),
        ]
        .into_iter()
        .flatten()
    }

    /// Tells the tests that `command` runs.
    fn tell(self, mut command: Command) -> Command {
        command.envs(self.environment());
        command
    }

    /// How long one of their programs may take.
    fn limit(self) -> Duration {
        if self == Self::default() { PROGRAM_LIMIT } else { DEEP_LIMIT }
    }
}

/// The host's tests of this workspace.
pub struct HostTests<'a> {
    workspace: &'a Workspace,
    filter: &'a str,
    /// Builds of `mm`, besides the usual one, whose tests run too.
    variants: &'a [Variant],
    depth: Depth,
}

impl<'a> HostTests<'a> {
    /// Those whose name, or the name of whose suite, contains the filter.
    pub fn new(workspace: &'a Workspace, filter: &'a str, variants: &'a [Variant]) -> Self {
        Self { workspace, filter, variants, depth: Depth::default() }
    }

    /// To this depth.
    pub fn with_depth(self, depth: Depth) -> Self {
        Self { depth, ..self }
    }

    /// Names them all.
    pub fn list(&self) -> Result<Vec<(String, String)>, HostError> {
        let mut names = Vec::new();
        let mut programs = program::build(&mut self.unit_tests())?;
        for variant in self.variants {
            programs.extend(self.tests_of(*variant)?);
        }
        programs.extend(program::build(&mut self.loom_models())?);
        programs.extend(program::build(&mut self.schedules())?);
        for program in programs {
            let mut command = self.chosen(&program);
            command.arg("--list");
            let hear =
                |line: &str| names.extend(libtest::listed(line).map(|name| (program.suite.clone(), name.to_owned())));
            start(&mut command, PROGRAM_LIMIT, hear, || ())?;
        }
        for check in [EXAMPLE_CHECK, NARROW_CHECK] {
            if check.contains(self.filter) {
                names.push(("mm".to_owned(), check.to_owned()));
            }
        }
        Ok(names)
    }

    /// Runs them all.
    pub fn run(&self, toolchains: &mut Toolchains, progress: &mut Progress) -> Result<(), HostError> {
        progress.section("host tests");
        for program in program::build(&mut self.unit_tests())? {
            let command = self.depth.tell(self.chosen(&program));
            program::run_within(self.depth.limit(), command, &program.suite, progress)?;
        }
        for variant in self.variants {
            progress.section(&format!("host tests, {} locks", variant.name()));
            for program in self.tests_of(*variant)? {
                let command = self.depth.tell(self.chosen(&program));
                program::run_within(self.depth.limit(), command, &program.suite, progress)?;
            }
        }
        let mut documentation = self.cargo();
        documentation.args(["test", "--doc", "--quiet", "--package", "mm", "--", self.filter, "--format=pretty"]);
        program::run(documentation, "mm (doc)", progress)?;
        progress.section("loom models");
        for program in program::build(&mut self.loom_models())? {
            let command = self.depth.tell(self.chosen(&program));
            program::run_within(self.depth.limit(), command, &program.suite, progress)?;
        }
        progress.section("schedules");
        for program in program::build(&mut self.schedules())? {
            let command = self.depth.tell(self.chosen(&program));
            program::run_within(self.depth.limit(), command, &program.suite, progress)?;
        }
        if EXAMPLE_CHECK.contains(self.filter) {
            self.run_example(progress)?;
        }
        if NARROW_CHECK.contains(self.filter) {
            self.check_narrow(toolchains, progress)?;
        }
        Ok(())
    }

    /// Runs those tests of `program` that were asked for.
    fn chosen(&self, program: &Program) -> Command {
        let mut command = program.command(if program.suite.contains(self.filter) { "" } else { self.filter });
        let simulates = program.suite == "mm" || program.suite.starts_with("mm (");
        if simulates && env::var_os(TEST_THREADS).is_none() {
            // Simulated CPUs sleep while they wait: one test for each core would leave cores idle.
            let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
            command.env(TEST_THREADS, (2 * cores).to_string());
        }
        command
    }

    /// The cargo that runs us, with its own target folder.
    fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(self.workspace.root());
        command
    }

    fn unit_tests(&self) -> Command {
        let mut command = self.cargo();
        command.args(BUILD_TESTS);
        command
    }

    /// `mm`'s tests once more, with the locks of another build.
    fn tests_of(&self, variant: Variant) -> Result<Vec<Program>, HostError> {
        let mut programs = self.tests_with(&variant.lock_features().join(","))?;
        programs.iter_mut().for_each(|program| program.suite += &format!(" ({})", variant.name()));
        Ok(programs)
    }

    fn tests_with(&self, features: &str) -> Result<Vec<Program>, HostError> {
        program::build(&mut self.tests_build(features))
    }

    fn tests_build(&self, features: &str) -> Command {
        let mut command = self.unit_tests();
        command.args(["--package", "mm", "--lib", "--features", features]);
        command
    }

    /// `mm`'s tests, in which a rule can be broken.
    pub fn sabotaged_tests(&self) -> Result<Vec<Program>, HostError> {
        // Not optimised: they run for less long than that takes.
        let mut command = self.tests_build(SABOTAGE);
        program::build(command.args(["--config", "profile.dev.package.mm.opt-level=0"]))
    }

    /// `mm`'s models, in which a rule can be broken.
    pub fn sabotaged_models(&self) -> Result<Vec<Program>, HostError> {
        program::build(self.loom_models().args(["--features", SABOTAGE]))
    }

    /// Whole operations under chosen schedules, in which a rule can be broken.
    pub fn sabotaged_schedules(&self) -> Result<Vec<Program>, HostError> {
        program::build(self.schedules().args(["--features", SABOTAGE]))
    }

    /// Builds `mm`'s models: a build of its own, since every atomic in it is loom's.
    fn loom_models(&self) -> Command {
        let mut command = self.cargo();
        command.args(BUILD_TESTS).arg("--release");
        command
            .args(["--package", "mm", "--lib", "--test", "loom_*", "--target-dir"])
            .arg(self.workspace.target("loom"));
        // The models lean on `mm`'s own checks, which a release build leaves out.
        command.env("RUSTFLAGS", "--cfg loom -Cdebug-assertions");
        command
    }

    /// Builds `mm`'s tests under chosen schedules: a build of its own too, since the simulated machine gives up its threads.
    fn schedules(&self) -> Command {
        let mut command = self.cargo();
        command.args(BUILD_TESTS).arg("--release");
        command
            .args(["--package", "mm", "--features", "sim", "--test", "shuttle_*", "--target-dir"])
            .arg(self.workspace.target("shuttle"));
        command.env("RUSTFLAGS", "--cfg shuttle -Cdebug-assertions");
        command
    }

    fn run_example(&self, progress: &mut Progress) -> Result<(), HostError> {
        progress.started(EXAMPLE_CHECK);
        let mut build = self.cargo();
        build.args(["build", "--quiet", "--package", "mm", "--example", EXAMPLE]);
        if !start(&mut build, BUILD_LIMIT, |_| (), || progress.tick())?.success() {
            return Err(HostError::Build);
        }
        let started = Instant::now();
        let mut example = self.cargo();
        example.args(["run", "--quiet", "--package", "mm", "--example", EXAMPLE]);
        let mut said = Vec::new();
        let finish = start(&mut example, EXAMPLE_LIMIT, |line| said.push(line.to_owned()), || progress.tick())?;
        progress.ended(Case {
            suite: "mm".to_owned(),
            name: EXAMPLE_CHECK.to_owned(),
            outcome: if finish.success() { Outcome::Passed } else { Outcome::Failed },
            duration: Some(started.elapsed()),
            detail: said,
        });
        Ok(())
    }

    fn check_narrow(&self, toolchains: &mut Toolchains, progress: &mut Progress) -> Result<(), HostError> {
        progress.started(NARROW_CHECK);
        let started = Instant::now();
        let toolchain = toolchains.require(Need::LibrarySource)?;
        let mut command = toolchains.cargo(&toolchain)?;
        command.args(["check", "--quiet", "--package", "mm", "-Zbuild-std=core", "--target", NARROW_TARGET]);
        command.arg("--target-dir").arg(self.workspace.target("kernel")).env("RUSTC_BOOTSTRAP", "1");
        let finish = start(&mut command, BUILD_LIMIT, |_| (), || progress.tick())?;
        progress.ended(Case {
            suite: "mm".to_owned(),
            name: NARROW_CHECK.to_owned(),
            outcome: if finish.success() { Outcome::Passed } else { Outcome::Failed },
            duration: Some(started.elapsed()),
            detail: vec![format!("cargo check for {NARROW_TARGET}; its messages are above")],
        });
        Ok(())
    }
}
