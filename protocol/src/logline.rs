//! Log lines: `[seconds.micros] cpuN LEVEL target: text`.

use std::str::FromStr;

/// How grave a log line is, gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Level {
    /// Something went wrong.
    Error,
    /// Something may be wrong.
    Warn,
    /// What a reader wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLevel> {
        match word {
            "ERROR" => Ok(Self::Error),
            "WARN" => Ok(Self::Warn),
            "INFO" => Ok(Self::Info),
            "DEBUG" => Ok(Self::Debug),
            "TRACE" => Ok(Self::Trace),
            _ => Err(UnknownLevel),
        }
    }
}

/// The word is no level of the kernel's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownLevel;

/// One log line of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Microseconds of the kernel's monotonic clock.
    pub micros: u64,
    /// The CPU that wrote it.
    pub cpu: u32,
    /// How grave it is.
    pub level: Level,
    /// The module that wrote it.
    pub target: String,
    /// What it says.
    pub text: String,
}

impl LogLine {
    /// Reads one line; `None` if it is not a whole log line.
    pub fn parse(line: &str) -> Option<Self> {
        let (time, rest) = line.strip_prefix('[')?.split_once("] ")?;
        let (seconds, micros) = time.trim_start().split_once('.')?;
        if micros.len() != 6 {
            return None;
        }
        let seconds: u64 = seconds.parse().ok()?;
        let micros = seconds.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)?;
        let (cpu, rest) = rest.strip_prefix("cpu")?.split_once(' ')?;
        let (level, rest) = rest.trim_start().split_once(' ')?;
        let (target, text) = split_target(rest.trim_start())?;
        Some(Self {
            micros,
            cpu: cpu.parse().ok()?,
            level: level.parse().ok()?,
            target: target.to_owned(),
            text: text.to_owned(),
        })
    }
}

/// Splits `target: text`; the target may be a path with `::` in it, and the text may be empty.
fn split_target(rest: &str) -> Option<(&str, &str)> {
    rest.split_once(": ").or_else(|| Some((rest.strip_suffix(':')?, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_right_aligned_time_and_a_path_as_target() {
        let line = LogLine::parse("[    1.000042] cpu7 WARN kernel::trap: spurious: fault").unwrap();
        assert_eq!(line.micros, 1_000_042);
        assert_eq!((line.cpu, line.level), (7, Level::Warn));
        // The first colon of `kernel::trap:` is part of a path, not the end of the target.
        assert_eq!((line.target.as_str(), line.text.as_str()), ("kernel::trap", "spurious: fault"));
    }

    #[test]
    fn damaged_lines_are_refused() {
        for line in [
            "[",
            "[ 1.0",
            "[ 1.000042] cpu",
            "[ 1.000042] cpuX INFO a: b",
            "[ 1.000042] cpu1 LOUD a: b",
            "[ 1.42] cpu1 INFO a: b",
            "[ 1.000042] cpu1 INFO a",
            "[99999999999999999999.000000] cpu1 INFO a: b",
        ] {
            assert_eq!(LogLine::parse(line), None, "{line:?}");
        }
    }
}
