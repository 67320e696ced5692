//! A test program: built by cargo, run, its results read and shown.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use super::libtest::LibtestOutput;
use super::progress::Progress;
use super::tally::{Case, Outcome};
use crate::child::{self, Finish};
use crate::setup::Missing;

/// One build of tests may take this long.
pub const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// One test program may take this long.
pub const PROGRAM_LIMIT: Duration = Duration::from_secs(900);
/// Makes cargo build tests, and say in messages that [`build`] reads where they are.
pub const BUILD_TESTS: [&str; 3] = ["test", "--no-run", "--message-format=json-render-diagnostics"];

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
    /// No compiler for a check, or another program it needs.
    #[error(transparent)]
    Missing(#[from] Missing),
}

/// One test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What its tests are listed under.
    pub suite: String,
    /// Where it is.
    pub executable: PathBuf,
    /// Tests run in their package's folder.
    folder: PathBuf,
}

impl Program {
    /// Runs those of its tests whose name contains the filter.
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

/// Builds test programs by a command that begins with [`BUILD_TESTS`].
pub fn build(command: &mut Command) -> Result<Vec<Program>, HostError> {
    let mut programs = Vec::new();
    let finish = start(command, BUILD_LIMIT, |line| programs.extend(program(line)), || ())?;
    if finish.success() { Ok(programs) } else { Err(HostError::Build) }
}

/// Runs a test program; its results count as those of `suite`.
pub fn run(command: Command, suite: &str, progress: &mut Progress) -> Result<(), HostError> {
    run_within(PROGRAM_LIMIT, command, suite, progress)
}

/// As [`run`], if it may take another time than most.
pub fn run_within(
    limit: Duration,
    mut command: Command,
    suite: &str,
    progress: &mut Progress,
) -> Result<(), HostError> {
    let mut output = LibtestOutput::default();
    let mut failed = Vec::new();
    let mut unknown = Vec::new();
    progress.started(suite);
    let shown = RefCell::new(progress);
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
    let finish = start(&mut command, limit, hear, || shown.borrow_mut().tick())?;
    let progress = shown.into_inner();
    let any_failed = !failed.is_empty();
    for mut case in failed {
        case.detail = output.output(&case.name);
        progress.ended(case);
    }
    let died = match finish {
        Finish::TimedOut => Some(format!("did not end within {} s", limit.as_secs())),
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

/// Runs any program to its end, under a limit; Ctrl-C is an error.
pub fn start(
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
