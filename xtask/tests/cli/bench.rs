//! An `xtask` whose QEMU is a shell script: says what it is told to, ends as it is told to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A folder with a fake QEMU, a file that stands for a kernel, and room for saved runs.
pub struct Bench {
    folder: TempDir,
}

/// What came of one call of xtask.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its error output.
    pub stderr: String,
}

impl Outcome {
    /// The last line of its standard output.
    pub fn last_line(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }

    /// Fails unless its output holds all these.
    pub fn shows(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stdout.contains(part) || self.stderr.contains(part), "{part:?} in {self:#?}");
        }
    }
}

impl Bench {
    /// A fake QEMU that writes `serial` to the serial port and then does what the shell line `then` says.
    pub fn new(serial: &str, then: &str) -> Self {
        let bench = Self { folder: TempDir::new().expect("a temporary folder") };
        let script = format!(
            "#!/bin/sh\nall=\"$0 $*\"\necho $$ >{pid}\nwhile [ $# -gt 0 ]; do\n\
             case $1 in -serial) serial=${{2#file:}};; esac\nshift\ndone\n\
             printf '%s' '{serial}' >\"$serial\"\n{then}\n",
            pid = bench.path("pid").display(),
        );
        for program in ["qemu", "qemu-i386"] {
            let path = bench.path(program);
            fs::write(&path, &script).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
        }
        fs::write(bench.path("kernel.elf"), "not really").expect("a kernel");
        bench
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `xtask` with these words, not started yet.
    pub fn xtask(&self, words: &[&str]) -> Command {
        self.xtask_with(&self.path("qemu"), words)
    }

    /// The same with another program for QEMU.
    pub fn xtask_with(&self, qemu: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(words).env("LATCHWORK_QEMU", qemu).env("LATCHWORK_OUT", self.folder.path());
        command.env("LATCHWORK_QEMU_I386", self.path("qemu-i386"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs `xtask test` on the fake kernel alone.
    pub fn test(&self, words: &[&str]) -> Outcome {
        let kernel = self.path("kernel.elf");
        let mut all = vec!["test", "--only", "kernel", "--kernel", kernel.to_str().expect("a plain path")];
        all.extend(words);
        outcome(&mut self.xtask(&all))
    }

    /// Runs `xtask run` on the fake kernel.
    pub fn run(&self, words: &[&str]) -> Outcome {
        let kernel = self.path("kernel.elf");
        let mut all = vec!["run", "--kernel", kernel.to_str().expect("a plain path")];
        all.extend(words);
        outcome(&mut self.xtask(&all))
    }

    /// The fake QEMU's process, once it runs.
    pub fn qemu_process(&self) -> Option<u32> {
        fs::read_to_string(self.path("pid")).ok()?.trim().parse().ok()
    }

    /// Whether the fake QEMU was ever started.
    pub fn qemu_started(&self) -> bool {
        self.path("pid").exists()
    }
}

/// Runs it to its end.
pub fn outcome(command: &mut Command) -> Outcome {
    let Output { status, stdout, stderr } = command.output().expect("xtask starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Whether a process is there.
pub fn alive(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}
