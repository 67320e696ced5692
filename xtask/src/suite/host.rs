//! Tests that run on the host: the unit and integration tests of `mm` and `xtask`, `mm`'s documentation tests, its loom
//! models and its runs under chosen schedules, whether its example runs, and whether it compiles for a 32-bit target.

use std::collections::BTreeSet;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::libtest::{self, LibtestOutput};
use super::progress::Progress;
use super::tally::{Case, Outcome};
use crate::build::Variant;
use crate::child::{self, Finish};
use crate::setup::Missing;
use crate::setup::toolchain::{Need, Toolchains};
use crate::workspace::Workspace;

/// One build of tests may take this long.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// One test program may take this long.
const PROGRAM_LIMIT: Duration = Duration::from_secs(900);
/// Where `mm` must compile too: 32-bit, with 64-bit atomics, and shipped by nobody for `core` alone.
const NARROW_TARGET: &str = "i686-unknown-linux-gnu";
/// The name of that check.
const NARROW_CHECK: &str = "compiles_for_a_32_bit_target";
/// The program that embeds `mm`, and the check that it runs and is content with what it sees.
const EXAMPLE: &str = "minimal";
const EXAMPLE_CHECK: &str = "the_minimal_example_runs";
/// It takes a fraction of a second.
const EXAMPLE_LIMIT: Duration = Duration::from_secs(60);
/// Loom's bounds: enough preemptions for the races we know, and an end for models that would not end.
const LOOM_BOUNDS: [(&str, &str); 2] = [("LOOM_MAX_PREEMPTIONS", "3"), ("LOOM_MAX_BRANCHES", "5000")];

/// The feature of `mm` that lets rules be broken.
const SABOTAGE: &str = "sabotage";

/// Host tests could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program did not start.
    #[error("cannot run {program}: {error}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// The tests do not compile; cargo's messages are on the terminal.
    #[error("building the host tests failed")]
    Build,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// No compiler for the 32-bit check.
    #[error(transparent)]
    Missing(#[from] Missing),
}

/// One test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What its tests are listed under.
    pub suite: String,
    executable: PathBuf,
    /// Tests run in their package's folder.
    folder: PathBuf,
}

/// The host's tests of this workspace.
pub struct HostTests<'a> {
    workspace: &'a Workspace,
    filter: &'a str,
    /// Builds of `mm`, besides the usual one, whose tests run too.
    variants: &'a [Variant],
}

impl<'a> HostTests<'a> {
    /// Those whose name contains the filter.
    pub fn new(workspace: &'a Workspace, filter: &'a str, variants: &'a [Variant]) -> Self {
        Self { workspace, filter, variants }
    }

    /// Names them all.
    pub fn list(&self) -> Result<Vec<(String, String)>, HostError> {
        let mut names = Vec::new();
        let mut programs = self.build(&mut self.unit_tests())?;
        for variant in self.variants {
            programs.extend(self.tests_of(*variant)?);
        }
        if let Some(mut command) = self.loom_models() {
            programs.extend(self.build(&mut command)?);
        }
        programs.extend(self.build(&mut self.schedules())?);
        for program in programs {
            let mut command = program.command(self.filter);
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
        for program in self.build(&mut self.unit_tests())? {
            self.run_program(program.command(self.filter), &program.suite, progress)?;
        }
        for variant in self.variants {
            progress.section(&format!("host tests, {} locks", variant.name()));
            for program in self.tests_of(*variant)? {
                self.run_program(program.command(self.filter), &program.suite, progress)?;
            }
        }
        let mut documentation = self.cargo();
        documentation.args(["test", "--doc", "--quiet", "--package", "mm", "--", self.filter, "--format=pretty"]);
        self.run_program(documentation, "mm (doc)", progress)?;
        if let Some(mut command) = self.loom_models() {
            progress.section("loom models");
            for program in self.build(&mut command)? {
                let mut command = program.command(self.filter);
                command.envs(LOOM_BOUNDS);
                self.run_program(command, &program.suite, progress)?;
            }
        }
        progress.section("schedules");
        for program in self.build(&mut self.schedules())? {
            self.run_program(program.command(self.filter), &program.suite, progress)?;
        }
        if EXAMPLE_CHECK.contains(self.filter) {
            self.run_example(progress)?;
        }
        if NARROW_CHECK.contains(self.filter) {
            self.check_narrow(toolchains, progress)?;
        }
        Ok(())
    }

    /// The cargo that runs us, with its own target folder.
    fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(self.workspace.root());
        command
    }

    fn unit_tests(&self) -> Command {
        let mut command = self.cargo();
        command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
        command
    }

    /// `mm`'s tests once more, with the locks of another build.
    fn tests_of(&self, variant: Variant) -> Result<Vec<Program>, HostError> {
        let mut programs = self.tests_with(&variant.lock_features().join(","))?;
        programs.iter_mut().for_each(|program| program.suite += &format!(" ({})", variant.name()));
        Ok(programs)
    }

    fn tests_with(&self, features: &str) -> Result<Vec<Program>, HostError> {
        let mut command = self.unit_tests();
        command.args(["--package", "mm", "--lib", "--features", features]);
        self.build(&mut command)
    }

    /// `mm`'s tests, in which a rule can be broken.
    pub fn sabotaged_tests(&self) -> Result<Vec<Program>, HostError> {
        self.tests_with(SABOTAGE)
    }

    /// `mm`'s models, in which a rule can be broken.
    pub fn sabotaged_models(&self) -> Result<Vec<Program>, HostError> {
        match self.loom_models() {
            Some(mut command) => self.build(command.args(["--features", SABOTAGE])),
            None => Ok(Vec::new()),
        }
    }

    /// Builds `mm`'s models, if it has any: a build of its own, since every atomic in it is loom's.
    fn loom_models(&self) -> Option<Command> {
        let is_model = |name: &Path| name.to_string_lossy().starts_with("loom_");
        let tests = self.workspace.root().join("mm/tests").read_dir().ok()?;
        tests.flatten().find(|entry| is_model(entry.file_name().as_ref()))?;
        let mut command = self.cargo();
        command.args(["test", "--no-run", "--message-format=json-render-diagnostics", "--release"]);
        command
            .args(["--package", "mm", "--lib", "--test", "loom_*", "--target-dir"])
            .arg(self.workspace.target("loom"));
        // The models lean on `mm`'s own checks, which a release build leaves out.
        command.env("RUSTFLAGS", "--cfg loom -Cdebug-assertions");
        Some(command)
    }

    /// Builds `mm`'s tests under chosen schedules: a build of its own too, since the simulated machine gives up its threads.
    fn schedules(&self) -> Command {
        let mut command = self.cargo();
        command.args(["test", "--no-run", "--message-format=json-render-diagnostics", "--release"]);
        command
            .args(["--package", "mm", "--features", "sim", "--test", "shuttle_*", "--target-dir"])
            .arg(self.workspace.target("shuttle"));
        command.env("RUSTFLAGS", "--cfg shuttle -Cdebug-assertions");
        command
    }

    fn build(&self, command: &mut Command) -> Result<Vec<Program>, HostError> {
        let mut programs = Vec::new();
        let finish = start(command, BUILD_LIMIT, |line| programs.extend(program(line)), || ())?;
        if finish.success() { Ok(programs) } else { Err(HostError::Build) }
    }

    fn run_program(&self, mut command: Command, suite: &str, progress: &mut Progress) -> Result<(), HostError> {
        let mut output = LibtestOutput::default();
        let mut failed = Vec::new();
        let mut unknown = Vec::new();
        progress.started(suite);
        let shown = std::cell::RefCell::new(progress);
        let hear = |line: &str| match output.feed(line) {
            Some(test) => {
                let case = Case {
                    suite: suite.to_owned(),
                    name: test.name,
                    outcome: test.outcome,
                    duration: test.duration,
                    detail: Vec::new(),
                };
                // What a failed test said comes at the end.
                if case.outcome == Outcome::Failed {
                    failed.push(case);
                } else {
                    let mut progress = shown.borrow_mut();
                    progress.ended(case);
                    progress.started(suite);
                }
            }
            None => unknown.push(line.to_owned()),
        };
        let finish = start(&mut command, PROGRAM_LIMIT, hear, || shown.borrow_mut().tick())?;
        let progress = shown.into_inner();
        let any_failed = !failed.is_empty();
        for mut case in failed {
            case.detail = output.output(&case.name);
            progress.ended(case);
        }
        let died = match finish {
            Finish::TimedOut => Some(format!("did not end within {} s", PROGRAM_LIMIT.as_secs())),
            Finish::Exited(status) if !output.finished || (!status.success() && !any_failed) => {
                Some(format!("died: {status}"))
            }
            Finish::Exited(_) | Finish::Interrupted => None,
        };
        if let Some(how) = died {
            let last = unknown.iter().rev().take(20).rev().cloned();
            progress.ended(Case {
                suite: suite.to_owned(),
                name: "(the test program)".to_owned(),
                outcome: Outcome::Failed,
                duration: None,
                detail: std::iter::once(how).chain(last).collect(),
            });
        }
        Ok(())
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

impl Program {
    /// Runs the tests whose name contains the filter.
    pub fn command(&self, filter: &str) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.folder);
        if !filter.is_empty() {
            command.arg(filter);
        }
        // Each test's duration is asked for by an option that is not stable; the variable allows it at run time only.
        command.args(["-Zunstable-options", "--report-time"]).env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

fn start(
    command: &mut Command,
    limit: Duration,
    hear: impl FnMut(&str),
    tick: impl FnMut(),
) -> Result<Finish, HostError> {
    match child::run(command, limit, hear, tick) {
        Ok(Finish::Interrupted) => Err(HostError::Interrupted),
        Ok(finish) => Ok(finish),
        Err(error) => Err(HostError::Start { program: command.get_program().to_string_lossy().into_owned(), error }),
    }
}

/// Reads one of cargo's messages: a test program that was built.
fn program(message: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        executable: Option<PathBuf>,
        manifest_path: PathBuf,
        target: Target,
        profile: CargoProfile,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: BTreeSet<String>,
    }
    #[derive(Deserialize)]
    struct CargoProfile {
        test: bool,
    }
    let message: Message = serde_json::from_str(message).ok()?;
    if message.reason != "compiler-artifact" || !message.profile.test {
        return None;
    }
    let folder = message.manifest_path.parent()?.to_path_buf();
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let suite =
        if message.target.kind.contains("test") { format!("{package}/{}", message.target.name) } else { package };
    Some(Program { suite, executable: message.executable?, folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_named_by_its_package_and_file() {
        let message = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/mm/Cargo.toml","executable":"/t/x",
                "target":{{"name":"loom_ptl","kind":["{kind}"]}},"profile":{{"test":{test}}}}}"#
            )
        };
        assert_eq!(program(&message("test", true)).unwrap().suite, "mm/loom_ptl");
        assert_eq!(program(&message("lib", true)).unwrap().suite, "mm");
        assert_eq!(program(&message("bin", false)), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(program("no json"), None);
    }
}
