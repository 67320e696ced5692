//! What a person wants to see of a run that went wrong.

use std::path::Path;

use protocol::LastWord;
use protocol::record::Hang;

use crate::runner::Run;
use crate::symbolise::Symbols;
use crate::verdict::Verdict;

/// So many of the last lines are shown.
const LAST_LINES: usize = 25;
/// How the lines of QEMU's register dump begin that are shown: general and control registers. `registers.log` has all.
const TELLING: [&str; 9] = ["RAX", "RSI", "R8", "R12", "RIP", "EAX", "ESI", "EIP", "CR"];

/// The report, line by line.
pub fn report(run: &Run, symbols: &Symbols) -> Vec<String> {
    let transcript = &run.ended.transcript;
    let mut lines = vec![format!("verdict: {} ({})", run.verdict.word(), run.verdict)];
    if let Some(test) = &transcript.running {
        lines.push(format!("while running: {test}"));
    }
    lines.extend(transcript.errors.iter().map(|error| format!("kernel: {error}")));
    if let Verdict::QemuFailed(_) = run.verdict {
        lines.extend(run.ended.stderr.lines().map(|line| format!("qemu: {line}")));
    }
    if let Some(hang) = &transcript.hang {
        lines.push(describe_hang(hang));
    }
    for oracle in transcript.oracles.iter().filter(|oracle| !oracle.ok) {
        lines.push(format!("oracle failed: {}: {}", oracle.name, oracle.detail));
    }
    for word in &transcript.last_words {
        match word {
            LastWord::Text(text) => lines.push(text.clone()),
            LastWord::Backtrace(backtrace) => {
                lines.push(format!("cpu {} came here ({}):", backtrace.cpu, backtrace.reason));
                let frames: Vec<u64> = std::iter::once(backtrace.rip).chain(backtrace.frames.iter().copied()).collect();
                lines.extend(symbols.backtrace(&frames).into_iter().map(|line| format!("  {line}")));
            }
        }
    }
    for cpu in &run.ended.cpus {
        lines.push(format!("cpu {}, read from outside:", cpu.cpu));
        lines.extend(symbols.backtrace(&cpu.frames).into_iter().map(|line| format!("  {line}")));
        let telling = cpu.registers.lines().filter(|line| TELLING.iter().any(|start| line.starts_with(start)));
        lines.extend(telling.map(|line| format!("    {line}")));
    }
    let tail = &transcript.tail;
    if !tail.is_empty() {
        let shown = tail.len().min(LAST_LINES);
        lines.push(format!("last {shown} lines:"));
        lines.extend(tail.iter().skip(tail.len() - shown).map(|line| format!("  | {}", printable(line))));
    }
    let serial = run.saved.serial();
    lines.push(format!("log: {}", relative(&serial)));
    lines
}

fn describe_hang(hang: &Hang) -> String {
    let figures = hang.figures.iter().map(|(key, value)| match value.as_str() {
        Some(text) => format!("{key} {text}"),
        None => format!("{key} {value}"),
    });
    let figures: Vec<String> = figures.collect();
    let test = if hang.test.is_empty() { "the run" } else { &hang.test };
    format!("watchdog: {test} is stuck on cpu {} ({}): {}", hang.cpu, figures.join(", "), hang.text)
}

/// A terminal's control sequences, such as firmware writes, must not reach ours.
fn printable(line: &str) -> String {
    line.chars().filter(|character| !character.is_control() || *character == '\t').collect()
}

fn relative(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let inside = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf));
    inside.unwrap_or_else(|| path.to_path_buf()).display().to_string()
}
