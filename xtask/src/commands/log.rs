//! `cargo xtask log`: reads the log of a saved run.

use std::fs;

use anyhow::{Context, Result, bail};
use protocol::LogLine;
use protocol::logline::Level;
use regex_lite::Regex;
use serde_json::Value;

use crate::cli;
use crate::saved::SavedRun;
use crate::workspace::Workspace;

/// Prints the chosen lines.
pub fn log(workspace: &Workspace, options: &cli::Log) -> Result<bool> {
    let choice = Choice::new(options)?;
    let all = SavedRun::all(workspace).context("cannot read the saved runs")?;
    if options.list {
        all.iter().for_each(|run| println!("{}  {}", run.id(), verdict(run)));
        return Ok(true);
    }
    let run = match &options.run {
        Some(word) => all.iter().find(|run| run.is_called(word)),
        None => all.last(),
    };
    let Some(run) = run else {
        match &options.run {
            Some(word) => {
                bail!("no saved run is called {word:?}; cargo xtask log --list names them")
            }
            None => bail!("no run is saved yet"),
        }
    };
    let path = run.serial();
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut skipped = 0;
    for text in String::from_utf8_lossy(&bytes).lines().filter(|line| line.starts_with('[')) {
        match LogLine::parse(text) {
            Some(line) if choice.takes(&line) => println!("{text}"),
            Some(_) => {}
            None => skipped += 1,
        }
    }
    eprintln!("xtask: run {} ({})", run.id(), verdict(run));
    if skipped > 0 {
        eprintln!("xtask: {skipped} damaged lines are left out");
    }
    Ok(true)
}

fn verdict(run: &SavedRun) -> String {
    let json = fs::read_to_string(run.file("run.json")).ok();
    let record: Option<Value> = json.and_then(|json| serde_json::from_str(&json).ok());
    record
        .and_then(|record| Some(record.get("verdict")?.as_str()?.to_owned()))
        .unwrap_or_else(|| "unfinished".to_owned())
}

/// Which lines are wanted.
struct Choice {
    cpu: Option<u32>,
    level: Level,
    target: Option<String>,
    pattern: Option<Regex>,
}

impl Choice {
    fn new(options: &cli::Log) -> Result<Self> {
        let pattern = options.grep.as_deref().map(Regex::new).transpose().context("--grep is no regular expression")?;
        let level = options.level.unwrap_or(Level::Trace);
        Ok(Self { cpu: options.cpu, level, target: options.target.clone(), pattern })
    }

    fn takes(&self, line: &LogLine) -> bool {
        let below = |target: &str| {
            line.target.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        self.cpu.is_none_or(|cpu| cpu == line.cpu)
            && line.level <= self.level
            && self.target.as_deref().is_none_or(below)
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(&line.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Choice = Choice { cpu: None, level: Level::Trace, target: None, pattern: None };

    fn line() -> LogLine {
        LogLine::parse("[    1.000000] cpu3 WARN mm::fault: no frame").unwrap()
    }

    #[test]
    fn each_option_narrows() {
        assert!(ANY.takes(&line()));
        assert!(!Choice { cpu: Some(2), ..ANY }.takes(&line()));
        assert!(!Choice { level: Level::Error, ..ANY }.takes(&line()));
        assert!(Choice { level: Level::Warn, ..ANY }.takes(&line()));
        assert!(Choice { target: Some("mm".to_owned()), ..ANY }.takes(&line()));
        assert!(!Choice { target: Some("m".to_owned()), ..ANY }.takes(&line()));
        assert!(Choice { pattern: Regex::new("no .rame").ok(), ..ANY }.takes(&line()));
        assert!(!Choice { pattern: Regex::new("^frame").ok(), ..ANY }.takes(&line()));
    }
}
