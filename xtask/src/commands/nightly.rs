//! `cargo xtask nightly`: what takes too long for each change.
//!
//! Each part is a command of our own, run as such: what fails can be repeated by typing it. A part that fails does not keep
//! the others from running. What each came to is kept, so that a run that was cut short can be resumed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::child::{self, Finish};
use crate::cli::{self, NightlyPart};
use crate::report::table::Table;
use crate::workspace::Workspace;

/// One part may take this long.
const PART_LIMIT: Duration = Duration::from_secs(6 * 3600);

impl NightlyPart {
    /// Its command, after `cargo xtask`.
    fn command(self) -> &'static str {
        match self {
            Self::Clippy => "clippy",
            Self::Address => "test --sanitize address",
            Self::Thread => "test --sanitize thread",
            Self::Coverage => "coverage",
            Self::KernelCoverage => "coverage --kernel",
            Self::Sabotage => "sabotage",
            Self::Fuzz => "fuzz --time 60",
            Self::Host => "test --only host --all-configs",
            Self::Loom => "test --only host --loom-bound 3 loom",
            Self::Shuttle => "test --only host --seeds 20 shuttle",
            Self::Properties => "test --only host --seeds 20 against_a_model",
            Self::X86_64 => "test --only kernel --all-configs --arch x86_64",
            Self::I686Pae => "test --only kernel --all-configs --arch i686-pae",
            Self::FiveLevels => "test --only kernel --levels 5",
            Self::Assertions => "test --only kernel --debug",
            Self::Repeats => "test --repeat 10 race",
            Self::Schedules => "test --schedules 50 race",
        }
    }

    fn value(self) -> clap::builder::PossibleValue {
        // None is hidden, so each has one.
        self.to_possible_value().unwrap_or_else(|| clap::builder::PossibleValue::new("hidden"))
    }

    fn name(self) -> String {
        self.value().get_name().to_owned()
    }

    fn about(self) -> String {
        self.value().get_help().map(ToString::to_string).unwrap_or_default()
    }
}

/// What a part came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    passed: bool,
    seconds: u64,
    /// The last line it wrote.
    closing: String,
}

/// What is kept of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The source that ran; nothing where it was being changed.
    source: Option<String>,
    parts: BTreeMap<String, Ended>,
}

impl Kept {
    /// What still counts for `source`.
    fn of(self, source: Option<&String>) -> Self {
        let same = self.source.is_some() && self.source.as_ref() == source;
        let parts = if same { self.parts } else { BTreeMap::new() };
        Self { source: source.cloned(), parts }
    }

    fn read(path: &Path) -> Self {
        fs::read_to_string(path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn write(&self, path: &Path) -> Result<()> {
        super::write(path, &(serde_json::to_string_pretty(self)? + "\n"))
    }
}

/// Runs the parts; whether all passed.
pub fn nightly(workspace: &Workspace, options: &cli::Nightly) -> Result<bool> {
    let parts = chosen(&options.only);
    if options.list {
        parts.iter().for_each(|part| println!("{:<12} {} (cargo xtask {})", part.name(), part.about(), part.command()));
        return Ok(true);
    }
    let folder = workspace.out("nightly");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join("results.json");
    let mut kept = Kept::read(&file).of(source(workspace.root()).as_ref());
    let run = Run { xtask: std::env::current_exe().context("where is xtask?")?, folder };
    let started = Instant::now();
    for (number, &part) in parts.iter().enumerate() {
        let name = part.name();
        if options.resume && kept.parts.get(&name).is_some_and(|ended| ended.passed) {
            println!("==== {name}: has passed");
            continue;
        }
        let minutes = started.elapsed().as_secs() / 60;
        let of = parts.len();
        println!("==== part {} of {of}, {name}, after {minutes} min: cargo xtask {}", number + 1, part.command());
        // An earlier result is none until this run of the part has ended.
        kept.parts.remove(&name);
        let ended = run.part(part);
        if let Ok(ended) = &ended {
            kept.parts.insert(name, ended.clone());
        }
        kept.write(&file)?;
        ended?;
    }
    let summary = summary(&parts, &kept);
    println!("\n{summary}");
    super::write(&run.folder.join("summary.txt"), &(summary + "\n"))?;
    Ok(parts.iter().all(|part| kept.parts.get(&part.name()).is_some_and(|ended| ended.passed)))
}

/// The parts to run, each once and in their own order.
fn chosen(only: &[NightlyPart]) -> Vec<NightlyPart> {
    let all = NightlyPart::value_variants().iter().copied();
    all.filter(|part| only.is_empty() || only.contains(part)).collect()
}

/// The commit that is checked out, if nothing was changed since.
fn source(root: &Path) -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).current_dir(root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    git(&["status", "--porcelain"]).filter(String::is_empty)?;
    git(&["rev-parse", "HEAD"])
}

struct Run {
    /// We ourselves.
    xtask: PathBuf,
    /// Where each part's output is kept.
    folder: PathBuf,
}

impl Run {
    /// Runs a part; its output is shown, and kept.
    fn part(&self, part: NightlyPart) -> Result<Ended> {
        let path = self.folder.join(format!("{}.log", part.name()));
        let mut log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut closing = String::new();
        let mut kept = Ok(());
        let hear = |line: &str| {
            println!("{line}");
            if kept.is_ok() {
                kept = writeln!(log, "{line}");
            }
            if !line.trim().is_empty() {
                line.trim().clone_into(&mut closing);
            }
        };
        let started = Instant::now();
        let mut command = Command::new(&self.xtask);
        command.args(part.command().split(' '));
        let finish = child::run(&mut command, PART_LIMIT, hear, || ()).context("cannot run xtask")?;
        kept.with_context(|| format!("cannot write {}", path.display()))?;
        match finish {
            Finish::Interrupted => bail!("interrupted; cargo xtask nightly --resume goes on with {}", part.name()),
            Finish::TimedOut => closing = format!("did not end within {} h", PART_LIMIT.as_secs() / 3600),
            Finish::Exited(_) => {}
        }
        Ok(Ended { passed: finish.success(), seconds: started.elapsed().as_secs(), closing })
    }
}

/// A row for each part that has run, how many passed, how long they took, and of which source all that is.
fn summary(parts: &[NightlyPart], kept: &Kept) -> String {
    let mut table = Table::new(&["part", "result", "minutes", "closing line"]);
    table.left_aligned();
    let minutes = |seconds: u64| format!("{}:{:02}", seconds / 60, seconds % 60);
    let (mut passed, mut failed, mut seconds) = (0, 0, 0);
    for part in parts {
        let Some(ended) = kept.parts.get(&part.name()) else { continue };
        let word = if ended.passed { "passed" } else { "FAILED" };
        *(if ended.passed { &mut passed } else { &mut failed }) += 1;
        seconds += ended.seconds;
        table.row(vec![part.name(), word.to_owned(), minutes(ended.seconds), ended.closing.clone()]);
    }
    let source = kept.source.as_deref().unwrap_or("changed source");
    format!("{table}{passed} parts passed, {failed} failed, {} minutes, {source}", minutes(seconds))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn ended(passed: bool) -> Ended {
        Ended { passed, seconds: 754, closing: "5 passed, 1 failed".to_owned() }
    }

    #[test]
    fn every_part_is_a_command_we_know_and_says_what_it_is() {
        for part in chosen(&[]) {
            let words = ["xtask"].into_iter().chain(part.command().split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{}", part.command());
            assert!(!part.about().is_empty(), "{}", part.name());
        }
    }

    #[test]
    fn parts_run_once_and_in_their_order() {
        use NightlyPart::{Clippy, Schedules, Thread};
        assert_eq!(chosen(&[Schedules, Clippy, Thread, Clippy]), [Clippy, Thread, Schedules]);
        assert_eq!(chosen(&[]).len(), NightlyPart::value_variants().len());
    }

    #[test]
    fn a_result_counts_for_the_source_it_was_got_from() {
        let of = |source: Option<&str>| Kept {
            source: source.map(str::to_owned),
            parts: [("clippy".to_owned(), ended(true))].into(),
        };
        let (this, other) = ("1a".to_owned(), "2b".to_owned());
        assert_eq!(of(Some("1a")).of(Some(&this)).parts.len(), 1);
        assert_eq!(of(Some("1a")).of(Some(&other)), Kept { source: Some(other), parts: BTreeMap::new() });
        // Changed source is like nothing else, not even itself.
        assert_eq!(of(None).of(None).parts.len(), 0);
        let text = serde_json::to_string(&of(Some("1a"))).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), of(Some("1a")));
    }

    #[test]
    fn the_summary_has_a_row_for_each_part_that_ran() {
        use NightlyPart::{Address, Clippy, Thread};
        let parts = [("clippy".to_owned(), ended(true)), ("thread".to_owned(), ended(false))].into();
        let summary = summary(&[Clippy, Address, Thread], &Kept { source: Some("1a".to_owned()), parts });
        assert!(summary.contains("clippy  passed  12:34    5 passed, 1 failed"), "{summary}");
        assert!(summary.contains("thread  FAILED") && !summary.contains("address"), "{summary}");
        assert_eq!(summary.lines().last(), Some("1 parts passed, 1 failed, 25:08 minutes, 1a"));
    }
}
