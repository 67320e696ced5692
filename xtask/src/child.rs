//! Runs a host program and hears its output line by line, under a time limit.

use std::io::{self, BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::interrupt;

/// How often the clock and Ctrl-C are looked at.
const POLL: Duration = Duration::from_millis(100);

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By itself.
    Exited(ExitStatus),
    /// We ended it: the limit was reached.
    TimedOut,
    /// We ended it: Ctrl-C.
    Interrupted,
}

impl Finish {
    /// Whether it ended by itself, with status 0.
    pub fn success(self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

/// Runs it; each line of its standard output goes to `hear`, and now and then `tick` is called.
pub fn run(
    command: &mut Command,
    limit: Duration,
    mut hear: impl FnMut(&str),
    mut tick: impl FnMut(),
) -> io::Result<Finish> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let (sender, lines) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
            for line in lines {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
    }
    let deadline = Instant::now() + limit;
    let early = loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => hear(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break None,
        }
        tick();
        if interrupt::requested() {
            break Some(Finish::Interrupted);
        }
        if Instant::now() > deadline {
            break Some(Finish::TimedOut);
        }
    };
    if let Some(finish) = early {
        // Fails only when it is gone already.
        let _ = child.kill();
        child.wait()?;
        return Ok(finish);
    }
    Ok(Finish::Exited(child.wait()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_arrive_in_order_and_the_status_is_the_programs() {
        let mut heard = Vec::new();
        let finish = run(
            &mut shell("echo one; echo two; exit 3"),
            Duration::from_secs(20),
            |line| heard.push(line.to_owned()),
            || (),
        );
        assert_eq!(heard, ["one", "two"]);
        assert!(matches!(finish, Ok(Finish::Exited(status)) if status.code() == Some(3)));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let finish = run(&mut shell("exec sleep 100"), Duration::from_millis(300), |_| (), || ());
        assert_eq!(finish.ok(), Some(Finish::TimedOut));
    }
}
