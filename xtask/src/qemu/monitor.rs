//! QEMU's monitor (QMP): learns of resets, and looks into a machine that says nothing any more.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use protocol::LineSplitter;

/// How long the monitor may take to answer one question.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Frames followed on one CPU's stack.
const MAX_FRAMES: usize = 32;

/// What the monitor knows of one CPU of a machine that was stopped from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// The CPU.
    pub cpu: u32,
    /// QEMU's register dump.
    pub registers: String,
    /// Where it was, then its return addresses, innermost first.
    pub frames: Vec<u64>,
}

/// The client's end. Connects when QEMU is ready; a QEMU that never listens just leaves every question unanswered.
pub struct Monitor {
    path: PathBuf,
    stream: Option<UnixStream>,
    lines: LineSplitter,
    reset: bool,
}

impl Monitor {
    /// A monitor at a socket that may not be there yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path, stream: None, lines: LineSplitter::default(), reset: false }
    }

    /// Whether the machine was reset (and stands still since). Never waits.
    pub fn machine_was_reset(&mut self) -> bool {
        if self.stream.is_none() {
            self.connect();
        }
        while !self.reset && self.receive().is_some() {}
        self.reset
    }

    /// Stops the machine and reads every CPU's registers and stack.
    pub fn cpu_states(&mut self) -> Vec<CpuState> {
        if self.stream.is_none() {
            self.connect();
        }
        if !self.reset {
            self.execute(json!({"execute": "stop"}));
        }
        let Some(dump) = self.human("info registers -a", None) else {
            return Vec::new();
        };
        let mut states = split_dump(&dump);
        for state in &mut states {
            self.follow_frames(state);
        }
        states
    }

    fn connect(&mut self) {
        let Ok(mut stream) = UnixStream::connect(&self.path) else {
            return;
        };
        // The machine may have been reset before we came: ask, besides listening for events.
        let hello = "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n";
        if stream.write_all(hello.as_bytes()).is_ok() && stream.set_nonblocking(true).is_ok() {
            self.stream = Some(stream);
        }
    }

    /// Takes what has arrived; the answers among it, or `None` if nothing had.
    fn receive(&mut self) -> Option<Vec<Value>> {
        let stream = self.stream.as_mut()?;
        let mut buffer = [0; 16384];
        let count = match stream.read(&mut buffer) {
            Ok(0) => {
                self.stream = None;
                return None;
            }
            Ok(count) => count,
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock && error.kind() != ErrorKind::Interrupted {
                    self.stream = None;
                }
                return None;
            }
        };
        let lines = self.lines.push(&buffer[..count]);
        let messages = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut answers = Vec::new();
        for message in messages {
            let stopped_by_guest = message["event"] == "SHUTDOWN" && message["data"]["guest"] == true;
            self.reset |= stopped_by_guest || message["return"]["status"] == "shutdown";
            if message.get("return").is_some() || message.get("error").is_some() {
                answers.push(message);
            }
        }
        Some(answers)
    }

    /// Runs one command and waits for its answer.
    fn execute(&mut self, mut command: Value) -> Option<Value> {
        const ID: &str = "latchwork";
        command["id"] = ID.into();
        let stream = self.stream.as_mut()?;
        stream.write_all(format!("{command}\n").as_bytes()).ok()?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        while Instant::now() < deadline {
            match self.receive() {
                Some(answers) => {
                    if let Some(answer) = answers.into_iter().find(|answer| answer["id"] == ID) {
                        return answer.get("return").cloned();
                    }
                }
                None if self.stream.is_none() => return None,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    /// Runs one command of the human monitor, on one CPU if it matters.
    fn human(&mut self, line: &str, cpu: Option<u32>) -> Option<String> {
        let mut arguments = json!({"command-line": line});
        if let Some(cpu) = cpu {
            arguments["cpu-index"] = cpu.into();
        }
        let answer = self.execute(json!({"execute": "human-monitor-command", "arguments": arguments}))?;
        answer.as_str().map(str::to_owned)
    }

    /// Walks the chain of frame pointers as long as it makes sense.
    fn follow_frames(&mut self, state: &mut CpuState) {
        let Some(start) = start_of_frames(&state.registers) else {
            return;
        };
        let mut frame = start.frame;
        state.frames.push(start.instruction);
        while frame != 0 && frame % start.word.bytes() == 0 && state.frames.len() < MAX_FRAMES {
            let Some(dump) = self.human(&format!("x /2{}x {frame:#x}", start.word.letter()), Some(state.cpu)) else {
                return;
            };
            let Some((next, back)) = two_words(&dump) else {
                return;
            };
            if back == 0 {
                return;
            }
            state.frames.push(back);
            if next <= frame {
                return;
            }
            frame = next;
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // QEMU leaves its socket behind when it is killed; one that is gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Cuts `info registers -a` into its CPUs.
fn split_dump(dump: &str) -> Vec<CpuState> {
    let mut states: Vec<CpuState> = Vec::new();
    for line in dump.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if let Some(cpu) = line.strip_prefix("CPU#").and_then(|number| number.trim().parse().ok()) {
            states.push(CpuState { cpu, ..CpuState::default() });
        } else if let Some(state) = states.last_mut() {
            state.registers.push_str(line);
            state.registers.push('\n');
        }
    }
    states
}

/// What a CPU's stack is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// 32 bits.
    Four,
    /// 64 bits.
    Eight,
}

impl Word {
    fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The monitor's letter for it.
    fn letter(self) -> char {
        match self {
            Self::Four => 'w',
            Self::Eight => 'g',
        }
    }
}

/// Where a chain of frame pointers begins.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    instruction: u64,
    frame: u64,
    word: Word,
}

/// As a dump has it: QEMU names registers by the CPU's width.
fn start_of_frames(dump: &str) -> Option<Start> {
    let start = |ip, bp, word| Some(Start { instruction: register(dump, ip)?, frame: register(dump, bp)?, word });
    start("RIP", "RBP", Word::Eight).or_else(|| start("EIP", "EBP", Word::Four))
}

/// The value of a register in QEMU's dump.
fn register(dump: &str, name: &str) -> Option<u64> {
    let (_, rest) = dump.split_once(&format!("{name}="))?;
    u64::from_str_radix(rest.split_ascii_whitespace().next()?, 16).ok()
}

/// The two words of `x /2gx` or `x /2wx`, whose answer is `address: 0x… 0x…`.
fn two_words(dump: &str) -> Option<(u64, u64)> {
    let (_, words) = dump.split_once(':')?;
    let mut words = words
        .split_ascii_whitespace()
        .map(|word| word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    Some((words.next()??, words.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\nCPU#0\r\nRAX=0000000000000001 RBX=0000000000000000\r\nRIP=ffffffff80201234 RFL=00000002\r\n\
        \r\nCPU#1\r\nRAX=0000000000000002\r\nRSI=0 RDI=0 RBP=ffffc90000001f70 RSP=0\r\nRIP=ffffffff80205678 RFL=00000046\r\n";

    #[test]
    fn a_register_dump_is_cut_into_its_cpus() {
        let states = split_dump(DUMP);
        assert_eq!(states.iter().map(|state| state.cpu).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(register(&states[1].registers, "RIP"), Some(0xffff_ffff_8020_5678));
        assert_eq!(register(&states[1].registers, "RBP"), Some(0xffff_c900_0000_1f70));
        assert_eq!(register(&states[0].registers, "RBP"), None);
    }

    #[test]
    fn frames_are_followed_in_words_of_the_cpus_width() {
        let states = split_dump(DUMP);
        let (instruction, frame) = (0xffff_ffff_8020_5678, 0xffff_c900_0000_1f70);
        assert_eq!(start_of_frames(&states[1].registers), Some(Start { instruction, frame, word: Word::Eight }));
        let dump = "EAX=00000001 EBX=00000000\nESI=00000000 EDI=00000000 EBP=f900ff40 ESP=f900ff00\n\
            EIP=fd012345 EFL=00000046\n";
        let start = Start { instruction: 0xfd01_2345, frame: 0xf900_ff40, word: Word::Four };
        assert_eq!(start_of_frames(dump), Some(start));
        assert_eq!(start_of_frames("EIP=fd012345"), None);
        assert_eq!(two_words("f900ff40: 0xf900ff70 0xfd011111\r\n"), Some((0xf900_ff70, 0xfd01_1111)));
    }

    #[test]
    fn memory_that_cannot_be_read_ends_the_walk() {
        assert_eq!(
            two_words("ffffc90000001f70: 0x0000000000000010 0xffffffff80200000\r\n"),
            Some((16, 0xffff_ffff_8020_0000))
        );
        assert_eq!(two_words("ffffc90000001f70: Cannot access memory\r\n"), None);
        assert_eq!(two_words(""), None);
    }
}
