//! Saved runs: each run's log, command line and verdict under `target/latchwork/runs`, the newest hundred kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::workspace::Workspace;

/// So many runs are kept.
const KEPT: usize = 100;

/// The folder of one run: `NNNN-name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRun {
    folder: PathBuf,
}

impl SavedRun {
    /// Makes the folder of the next run and forgets the oldest ones.
    pub fn create(workspace: &Workspace, name: &str) -> io::Result<Self> {
        let runs = workspace.out("runs");
        fs::create_dir_all(&runs)?;
        let existing = Self::all(workspace)?;
        let last = existing.last().map_or(0, Self::number);
        for old in existing.iter().rev().skip(KEPT - 1) {
            match fs::remove_dir_all(&old.folder) {
                // Another run was quicker.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut number = last + 1;
        loop {
            let folder = runs.join(format!("{number:04}-{name}"));
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(Self { folder }),
                // Another xtask was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// All saved runs, oldest first.
    pub fn all(workspace: &Workspace) -> io::Result<Vec<Self>> {
        let runs = match fs::read_dir(workspace.out("runs")) {
            Ok(runs) => runs,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut all = Vec::new();
        for entry in runs {
            let run = Self { folder: entry?.path() };
            if run.number() != 0 {
                all.push(run);
            }
        }
        all.sort_by_key(Self::number);
        Ok(all)
    }

    /// `NNNN-name`
    pub fn id(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What the serial port said.
    pub fn serial(&self) -> PathBuf {
        self.file("serial.log")
    }

    /// Whether a person means this run by that word: its number, or its whole name.
    pub fn is_called(&self, word: &str) -> bool {
        self.id() == word || word.parse() == Ok(self.number())
    }

    fn number(&self) -> u32 {
        let id = self.id();
        id.split('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}

impl AsRef<Path> for SavedRun {
    fn as_ref(&self) -> &Path {
        &self.folder
    }
}
