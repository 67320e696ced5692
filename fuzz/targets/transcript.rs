//! Any bytes on the serial line: they make the same lines wherever the reads fall, a line of the log or of KTAP reads the same when
//! it is written out again, and what a transcript keeps and counts stays within what it was fed.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use protocol::logline::Level;
use protocol::{Ktap, Line, LineSplitter, LogLine, Transcript};

/// So many last lines a transcript keeps at most.
const TAIL_LINES: usize = 40;

fuzz_target!(|bytes: &[u8]| {
    let (lines, unfinished) = split(bytes, bytes.len().max(1));
    // Reads of a size that the input decides.
    assert_eq!(split(bytes, 1 + bytes.len() % 7), (lines.clone(), unfinished.clone()));

    let mut transcript = Transcript::default();
    for (line, second) in lines.iter().zip(0..) {
        assert!(!line.contains('\n'));
        check(line);
        transcript.feed(line, Duration::from_secs(second));
    }
    let fed = lines.len() + usize::from(unfinished.is_some());
    if let Some(line) = unfinished {
        transcript.feed_unfinished(line);
    }
    let kept = [
        transcript.tests.len(),
        transcript.listed.len(),
        transcript.phases.len(),
        transcript.cpus.len(),
        transcript.oracles.len(),
        transcript.last_words.len(),
        transcript.torn.len(),
        transcript.errors.len(),
    ];
    assert!(kept.iter().sum::<usize>() <= fed, "{kept:?} of {fed} lines");
    assert!(transcript.tail.len() <= TAIL_LINES.min(fed));
    assert!(transcript.not_run() <= transcript.planned.unwrap_or(0));
    assert!(transcript.tests.iter().all(|test| test.duration.as_secs() <= fed as u64));
});

fn split(bytes: &[u8], read: usize) -> (Vec<String>, Option<String>) {
    let mut splitter = LineSplitter::default();
    let lines = bytes.chunks(read).flat_map(|bytes| splitter.push(bytes)).collect();
    (lines, splitter.finish())
}

/// What was understood of a line is all of it: written out, it means the same.
fn check(line: &str) {
    let written = match Line::parse(line) {
        Line::Log(line) => log_line(&line),
        Line::Ktap(line) => ktap_line(&line),
        // Records are read by `serde_json`, and the rest is kept as it is.
        Line::Record(_) | Line::Torn(_) | Line::Other(_) => return,
    };
    assert_eq!(Line::parse(&written), Line::parse(line), "{written:?} instead of {line:?}");
}

fn log_line(LogLine { micros, cpu, level, target, text }: &LogLine) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let level = match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    };
    format!("[{seconds:5}.{micros:06}] cpu{cpu} {level} {target}: {text}")
}

fn ktap_line(line: &Ktap) -> String {
    match line {
        Ktap::Version => "KTAP version 1".to_owned(),
        Ktap::Plan(count) => format!("1..{count}"),
        Ktap::Diagnostic(text) => format!("# {text}"),
        Ktap::Result { passed, number, name, skipped } => {
            let skipped = skipped.as_ref().map(|reason| format!(" # SKIP {reason}")).unwrap_or_default();
            format!("{} {number} - {name}{skipped}", if *passed { "ok" } else { "not ok" })
        }
    }
}
