//! Values of the command line, checked before anything is built.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use crate::machine::MAX_SHIFT;

/// CPUs the kernel is built for.
const MOST_CPUS: u32 = 64;
/// The kernel's image, its per-CPU areas and the frame descriptors need this much.
const LEAST_MEMORY_MIB: u64 = 64;
/// QEMU's processor addresses 40 bits; half of that leaves room for devices.
const MOST_MEMORY_MIB: u64 = 512 * 1024;
/// A day.
const LONGEST_TIMEOUT: u64 = 86_400;
/// Repetitions, schedules.
const MOST_TIMES: u32 = 100_000;

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// Not of the expected form.
    #[error("expected {0}")]
    Form(&'static str),
    /// Out of bounds.
    #[error("must be between {least} and {most}")]
    Bounds {
        /// The least allowed.
        least: String,
        /// The most allowed.
        most: String,
    },
    /// A file that is not there, or is none.
    #[error("cannot read: {0}")]
    File(String),
    /// More than this host has.
    #[error("this host has {0} MiB in all")]
    Host(u64),
}

fn bounded<T: PartialOrd + ToString>(value: T, least: T, most: T) -> Result<T, BadValue> {
    if value < least || value > most {
        return Err(BadValue::Bounds { least: least.to_string(), most: most.to_string() });
    }
    Ok(value)
}

/// `--kernel`, `--image`: said here in our words, before QEMU is looked for and says it in its own.
pub fn file(text: &str) -> Result<PathBuf, BadValue> {
    let path = PathBuf::from(text);
    match File::open(&path).and_then(|file| file.metadata()) {
        Ok(data) if data.is_file() && data.len() > 0 => Ok(path),
        Ok(data) if data.is_file() => Err(BadValue::File("the file is empty".into())),
        Ok(_) => Err(BadValue::File("not a file".into())),
        Err(error) => Err(BadValue::File(error.to_string())),
    }
}

/// `--smp`
pub fn cpus(text: &str) -> Result<u32, BadValue> {
    // As wide as a person may type, so that what is absurd is called out of bounds, not malformed.
    let count: u128 = text.parse().map_err(|_| BadValue::Form("a number of CPUs"))?;
    bounded(count, 1, u128::from(MOST_CPUS)).map(|count| count as u32)
}

/// `--mem`: `512M`, `2G`; in MiB.
pub fn memory(text: &str) -> Result<u64, BadValue> {
    const FORM: BadValue = BadValue::Form("a size such as 512M or 2G");
    let unit = text.chars().next_back().ok_or(FORM)?;
    let factor: u128 = match unit {
        'M' | 'm' => 1,
        'G' | 'g' => 1024,
        _ => return Err(FORM),
    };
    let number: u128 = text.get(..text.len() - 1).and_then(|digits| digits.parse().ok()).ok_or(FORM)?;
    let mib = number.saturating_mul(factor);
    if mib < u128::from(LEAST_MEMORY_MIB) || mib > u128::from(MOST_MEMORY_MIB) {
        return Err(BadValue::Bounds {
            least: format!("{LEAST_MEMORY_MIB}M"),
            most: format!("{}G", MOST_MEMORY_MIB / 1024),
        });
    }
    let mib = mib as u64;
    match host_memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()) {
        Some(host) if mib > host => Err(BadValue::Host(host)),
        _ => Ok(mib),
    }
}

/// The host's memory in MiB, by `/proc/meminfo`.
fn host_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

/// `--timeout`, in seconds.
pub fn timeout(text: &str) -> Result<Duration, BadValue> {
    let seconds: u128 = text.parse().map_err(|_| BadValue::Form("whole seconds"))?;
    bounded(seconds, 1, u128::from(LONGEST_TIMEOUT)).map(|seconds| Duration::from_secs(seconds as u64))
}

/// `--repeat`, `--schedules`
pub fn times(text: &str) -> Result<u32, BadValue> {
    let times: u128 = text.parse().map_err(|_| BadValue::Form("a number of times"))?;
    bounded(times, 1, u128::from(MOST_TIMES)).map(|times| times as u32)
}

/// `--rounds`
pub fn rounds(text: &str) -> Result<u64, BadValue> {
    times(text).map(u64::from)
}

/// `--deterministic`
pub fn shift(text: &str) -> Result<u8, BadValue> {
    let shift: u128 = text.parse().map_err(|_| BadValue::Form("a shift"))?;
    bounded(shift, 0, u128::from(MAX_SHIFT)).map(|shift| shift as u8)
}

/// A word for the kernel's command line, which is split at blanks.
pub fn word(text: &str) -> Result<String, BadValue> {
    let plain = |character: char| character.is_ascii_graphic() && character != '=';
    if text.is_empty() || !text.chars().all(plain) {
        return Err(BadValue::Form("one word without blanks or `=`"));
    }
    bounded(text.len(), 1, 256).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_bounded() {
        assert_eq!(cpus("1"), Ok(1));
        assert_eq!(cpus("64"), Ok(64));
        for absurd in ["0", "65", "4294967297", "99999999999999999999"] {
            assert!(matches!(cpus(absurd), Err(BadValue::Bounds { .. })), "{absurd}");
        }
        for malformed in ["", "-1", "eight", "8.0", "8 ", "0x8"] {
            assert!(matches!(cpus(malformed), Err(BadValue::Form(_))), "{malformed}");
        }
    }

    #[test]
    fn memory_has_a_unit_and_bounds() {
        assert_eq!(memory("512M"), Ok(512));
        assert_eq!(memory("1g"), Ok(1024));
        for absurd in ["0M", "63M", "1024G", "340282366920938463463374607431768211455G"] {
            assert!(matches!(memory(absurd), Err(BadValue::Bounds { .. })), "{absurd}");
        }
        for malformed in ["", "M", "512", "512K", "-512M", "1.5G", "512MB", "5¼G", "€"] {
            assert!(matches!(memory(malformed), Err(BadValue::Form(_))), "{malformed}");
        }
    }

    #[test]
    fn a_guest_larger_than_its_host_is_refused() {
        assert_eq!(host_memory("MemTotal:       24643456 kB\nMemFree: 1 kB\n"), Some(24065));
        assert_eq!(host_memory(""), None);
    }

    #[test]
    fn times_and_shifts_are_bounded() {
        assert_eq!(timeout("60"), Ok(Duration::from_secs(60)));
        for (text, read) in
            [("0", timeout("0").is_err()), ("86401", timeout("86401").is_err()), ("1s", timeout("1s").is_err())]
        {
            assert!(read, "{text}");
        }
        assert_eq!(shift("10"), Ok(10));
        assert!(shift("11").is_err() && shift("x").is_err());
        assert!(times("0").is_err() && times("-3").is_err());
    }

    #[test]
    fn words_for_the_kernel_hold_no_blanks() {
        assert_eq!(word("storm::disjoint"), Ok("storm::disjoint".to_owned()));
        assert!(word("two words").is_err() && word("").is_err() && word("a=b").is_err());
    }
}
