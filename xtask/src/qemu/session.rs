//! One QEMU from start to end, under the host's own clock.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use protocol::{Event, LineSplitter, Transcript};

use super::command::Invocation;
use super::monitor::{CpuState, Monitor};
use crate::interrupt;
use crate::verdict::{Ending, Limit};

/// How often the serial file and the child are looked at.
const POLL: Duration = Duration::from_millis(10);

/// QEMU did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no such program.
    #[error("QEMU is missing: {} does not exist", .0.display())]
    Missing(PathBuf),
    /// The program did not start.
    #[error("cannot start {}: {error}", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The run's folder cannot be used.
    #[error("cannot use {}: {error}", .path.display())]
    Folder {
        /// The file in it.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The host's time limits; `None` is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Until the first line of the kernel's own.
    pub boot: Option<Duration>,
    /// Between two lines.
    pub silence: Option<Duration>,
    /// For one test.
    pub test: Option<Duration>,
    /// For the run.
    pub total: Option<Duration>,
}

/// Hears what a run says while it says it.
pub trait Observer {
    /// One line, and what it meant.
    fn line(&mut self, text: &str, event: &Event<'_>);
    /// Called every few milliseconds.
    fn tick(&mut self) {}
}

/// Hears nothing.
impl Observer for () {
    fn line(&mut self, _: &str, _: &Event<'_>) {}
}

/// A run that is over.
pub struct Ended {
    /// How QEMU ended.
    pub ending: Ending,
    /// What the kernel said.
    pub transcript: Transcript,
    /// What QEMU said.
    pub stderr: String,
    /// Registers and stacks of a machine that hung or was reset.
    pub cpus: Vec<CpuState>,
    /// How long it took.
    pub duration: Duration,
}

/// A QEMU that runs. Dropping it kills it.
pub struct Session {
    child: Killed,
    monitor: Monitor,
    serial: SerialFile,
    stderr: PathBuf,
    transcript: Transcript,
    started: Instant,
}

impl Session {
    /// A place for the monitor's socket: short, since the kernel takes no more than 108 bytes, and ours alone.
    pub fn monitor_path() -> PathBuf {
        // Only tells our own sessions apart: Relaxed.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        std::env::temp_dir().join(format!("latchwork-{}-{number}.qmp", std::process::id()))
    }

    /// Starts QEMU; its own messages go to `stderr`.
    pub fn start(qemu: &Path, invocation: &Invocation<'_>, stderr: &Path) -> Result<Self, SpawnError> {
        let folder = |path: &Path| {
            let path = path.to_path_buf();
            move |error| SpawnError::Folder { path, error }
        };
        File::create(invocation.serial).map_err(folder(invocation.serial))?;
        let serial = File::open(invocation.serial).map_err(folder(invocation.serial))?;
        let messages = File::create(stderr).map_err(folder(stderr))?;
        let mut command = Command::new(qemu);
        command
            .args(invocation.arguments())
            .stdin(Stdio::null())
            .stdout(messages.try_clone().map_err(folder(stderr))?)
            .stderr(messages)
            // Ctrl-C is ours to act on; QEMU alone would end with the status of a triple fault.
            .process_group(0);
        die_with_us(&mut command);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SpawnError::Missing(qemu.to_path_buf()),
            _ => SpawnError::Spawn { program: qemu.to_path_buf(), error },
        })?;
        Ok(Self {
            child: Killed(child),
            monitor: Monitor::at(invocation.monitor.to_path_buf()),
            serial: SerialFile { file: serial, lines: LineSplitter::default() },
            stderr: stderr.to_path_buf(),
            transcript: Transcript::default(),
            started: Instant::now(),
        })
    }

    /// Listens until QEMU ends or a limit is reached.
    pub fn watch(mut self, limits: &Limits, observer: &mut dyn Observer) -> io::Result<Ended> {
        let mut clock = HostClock::new(self.started);
        let ending = loop {
            // In this order: what an ended QEMU wrote is complete.
            let status = self.child.0.try_wait()?;
            self.read_serial(&mut clock, observer)?;
            if let Some(status) = status {
                break if interrupt::requested() { Ending::Interrupted } else { ending_of(status) };
            }
            if interrupt::requested() {
                break Ending::Interrupted;
            }
            if self.monitor.machine_was_reset() {
                break Ending::Reset;
            }
            if let Some(limit) = clock.exceeded(limits, self.transcript.running.is_some()) {
                break Ending::TimedOut(limit);
            }
            observer.tick();
            std::thread::sleep(POLL);
        };
        let cpus = match ending {
            Ending::Reset | Ending::TimedOut(_) => self.monitor.cpu_states(),
            _ => Vec::new(),
        };
        self.child.kill();
        self.read_serial(&mut clock, observer)?;
        if let Some(rest) = self.serial.lines.finish() {
            self.transcript.feed_unfinished(rest);
        }
        let stderr = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        Ok(Ended { ending, transcript: self.transcript, stderr, cpus, duration: self.started.elapsed() })
    }

    fn read_serial(&mut self, clock: &mut HostClock, observer: &mut dyn Observer) -> io::Result<()> {
        for line in self.serial.read()? {
            let event = self.transcript.feed(&line, self.started.elapsed());
            clock.heard(&event);
            observer.line(&line, &event);
        }
        Ok(())
    }
}

/// The file the serial port writes to, read as it grows.
struct SerialFile {
    file: File,
    lines: LineSplitter,
}

impl SerialFile {
    fn read(&mut self) -> io::Result<Vec<String>> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        Ok(self.lines.push(&bytes))
    }
}

/// When the host heard what.
struct HostClock {
    started: Instant,
    last_line: Instant,
    last_test: Instant,
    booted: bool,
}

impl HostClock {
    fn new(started: Instant) -> Self {
        Self { started, last_line: started, last_test: started, booted: false }
    }

    fn heard(&mut self, event: &Event<'_>) {
        self.last_line = Instant::now();
        match event {
            Event::Booted(_) => self.booted = true,
            Event::Started(_) | Event::Ended(_) => self.last_test = self.last_line,
            _ => {}
        }
    }

    fn exceeded(&self, limits: &Limits, test_running: bool) -> Option<Limit> {
        let over = |since: Instant, limit: Option<Duration>| limit.filter(|&limit| since.elapsed() > limit);
        if !self.booted {
            return over(self.started, limits.boot).map(Limit::Boot);
        }
        let test = if test_running { over(self.last_test, limits.test) } else { None };
        over(self.last_line, limits.silence)
            .map(Limit::Silence)
            .or(test.map(Limit::Test))
            .or_else(|| over(self.started, limits.total).map(Limit::Total))
    }
}

/// A child that does not outlive its owner.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

fn ending_of(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, signal) => Ending::Signalled(signal.unwrap_or(0)),
    }
}

/// Has the host's kernel end the child when we end without a chance to do it ourselves.
#[cfg(target_os = "linux")]
fn die_with_us(command: &mut Command) {
    let hook = || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec the hook makes one system call; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(hook) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_us(_: &mut Command) {}
