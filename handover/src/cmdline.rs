//! The kernel's command line: words of `key=value`, separated by blanks (`docs/harness.md`).
//!
//! Rule: nothing is guessed. An unknown key, a malformed value or a missing one is an error that names the word.

use core::fmt;

use log::LevelFilter;

/// Longest time one test may be given, in seconds.
const MAX_TIMEOUT: u64 = 24 * 60 * 60;

/// What this run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode<Kind> {
    /// Runs the in-kernel tests.
    Test,
    /// Runs a workload.
    Run,
    /// Lists the in-kernel tests.
    List,
    /// Fails in a chosen way, so that `xtask` can be tested.
    Misbehave(Kind),
}

/// A parsed command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a, Kind> {
    /// What to do.
    pub mode: Mode<Kind>,
    /// Only tests whose name contains this.
    pub filter: Option<&'a str>,
    /// The workload of [`Mode::Run`].
    pub workload: &'a str,
    /// Every random choice in the kernel comes from it.
    pub seed: u64,
    /// Seconds one test may take.
    pub timeout: u64,
    /// How often a workload repeats its work; `None` leaves it to the workload.
    pub rounds: Option<u64>,
    /// Most detailed level to be logged.
    pub log: LevelFilter,
    /// The rule to be broken, in a kernel that is built for it.
    pub sabotage: Option<&'a str>,
}

/// What is wrong with a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmdlineError<'a> {
    /// A word is not of the form `key=value`.
    NotAPair(&'a str),
    /// A key stands for nothing.
    UnknownKey(&'a str),
    /// A key is given twice.
    Repeated(&'a str),
    /// A value is not what its key takes.
    BadValue {
        /// The key.
        key: &'a str,
        /// Its value.
        value: &'a str,
        /// What it may be.
        expected: &'static str,
    },
    /// `mode=misbehave` without `kind=`, which takes this.
    NoKind(&'static str),
    /// `kind=` without `mode=misbehave`.
    StrayKind,
}

impl fmt::Display for CmdlineError<'_> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NotAPair(word) => write!(out, "'{word}' is not of the form key=value"),
            Self::UnknownKey(key) => write!(out, "unknown key '{key}'"),
            Self::Repeated(key) => write!(out, "key '{key}' is given twice"),
            Self::BadValue { key, value, expected } => write!(out, "{key}={value}: expected {expected}"),
            Self::NoKind(kinds) => write!(out, "mode=misbehave needs kind=, one of {kinds}"),
            Self::StrayKind => write!(out, "kind= has a meaning only with mode=misbehave"),
        }
    }
}

/// The ways to misbehave that a kernel knows.
#[derive(Clone, Copy)]
pub struct Kinds<Kind> {
    /// What the words are, for a person.
    pub names: &'static str,
    /// The kind that a word stands for.
    pub find: fn(&str) -> Option<Kind>,
}

/// The keys, in the order of [`Words`].
const KEYS: [&str; 9] = ["mode", "filter", "workload", "seed", "timeout", "rounds", "log", "kind", "sabotage"];

/// The value of each key of [`KEYS`], where given.
struct Words<'a>([Option<&'a str>; KEYS.len()]);

/// Parses a command line.
///
/// # Errors
/// The first word that is wrong, and why.
pub fn parse<'a, Kind>(line: &'a str, kinds: &Kinds<Kind>) -> Result<Options<'a, Kind>, CmdlineError<'a>> {
    let words = split(line)?;
    let [mode, filter, workload, seed, timeout, rounds, log, kind, sabotage] = words.0;
    let mode = match (mode.unwrap_or("run"), kind) {
        ("misbehave", Some(value)) => {
            let bad = CmdlineError::BadValue { key: "kind", value, expected: kinds.names };
            Mode::Misbehave((kinds.find)(value).ok_or(bad)?)
        }
        ("misbehave", None) => return Err(CmdlineError::NoKind(kinds.names)),
        (_, Some(_)) => return Err(CmdlineError::StrayKind),
        ("run", None) => Mode::Run,
        ("test", None) => Mode::Test,
        ("list", None) => Mode::List,
        (value, None) => {
            return Err(CmdlineError::BadValue { key: "mode", value, expected: "test, run, list or misbehave" });
        }
    };
    Ok(Options {
        mode,
        filter,
        workload: workload.unwrap_or("storm"),
        seed: number("seed", seed, 0..=u64::MAX, "a decimal number of 64 bits")?.unwrap_or(1),
        timeout: number("timeout", timeout, 1..=MAX_TIMEOUT, "seconds from 1 to 86400")?.unwrap_or(60),
        rounds: number("rounds", rounds, 1..=u64::MAX, "a decimal number from 1")?,
        log: level(log.unwrap_or("info"))?,
        sabotage,
    })
}

fn split(line: &str) -> Result<Words<'_>, CmdlineError<'_>> {
    let mut words = Words([None; KEYS.len()]);
    for word in line.split_ascii_whitespace() {
        let (key, value) = word.split_once('=').ok_or(CmdlineError::NotAPair(word))?;
        let slot = KEYS
            .iter()
            .position(|known| *known == key)
            .and_then(|index| words.0.get_mut(index))
            .ok_or(CmdlineError::UnknownKey(key))?;
        if value.is_empty() {
            return Err(CmdlineError::BadValue { key, value, expected: "a value" });
        }
        if slot.replace(value).is_some() {
            return Err(CmdlineError::Repeated(key));
        }
    }
    Ok(words)
}

fn number<'a>(
    key: &'static str,
    value: Option<&'a str>,
    range: core::ops::RangeInclusive<u64>,
    expected: &'static str,
) -> Result<Option<u64>, CmdlineError<'a>> {
    let Some(value) = value else { return Ok(None) };
    // `parse` takes a leading plus sign; a decimal number has none.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(number) if digits && range.contains(&number) => Ok(Some(number)),
        _ => Err(CmdlineError::BadValue { key, value, expected }),
    }
}

fn level(value: &str) -> Result<LevelFilter, CmdlineError<'_>> {
    match value {
        "error" => Ok(LevelFilter::Error),
        "warn" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        "trace" => Ok(LevelFilter::Trace),
        _ => Err(CmdlineError::BadValue { key: "log", value, expected: "error, warn, info, debug or trace" }),
    }
}

#[cfg(test)]
mod tests {
    use super::{CmdlineError, Kinds, LevelFilter, Mode, Options};

    const KINDS: Kinds<u32> = Kinds {
        names: "one, two",
        find: |word| ["one", "two"].iter().position(|known| *known == word).map(|number| number as u32 + 1),
    };

    fn parse(line: &str) -> Result<Options<'_, u32>, CmdlineError<'_>> {
        super::parse(line, &KINDS)
    }

    /// An empty command line runs the storm with the documented defaults.
    #[test]
    fn an_empty_line_gives_the_defaults() {
        let options = parse("").unwrap();
        assert_eq!(options.mode, Mode::Run);
        assert_eq!(options.workload, "storm");
        assert_eq!(options.seed, 1);
        assert_eq!(options.timeout, 60);
        assert_eq!(options.rounds, None);
        assert_eq!(options.filter, None);
        assert_eq!(options.log, LevelFilter::Info);
    }

    /// Every key is understood, in any order and with any blanks between the words.
    #[test]
    fn every_key_is_understood() {
        let options =
            parse("  log=trace seed=18446744073709551615\ttimeout=5 rounds=3 filter=race mode=test ").unwrap();
        assert_eq!(options.mode, Mode::Test);
        assert_eq!(options.filter, Some("race"));
        assert_eq!(options.seed, u64::MAX);
        assert_eq!(options.timeout, 5);
        assert_eq!(options.rounds, Some(3));
        assert_eq!(options.log, LevelFilter::Trace);
        assert_eq!(parse("sabotage=dtor").unwrap().sabotage, Some("dtor"));
        assert_eq!(parse("kind=two mode=misbehave").unwrap().mode, Mode::Misbehave(2));
    }

    /// A word that is wrong is named, and nothing is guessed.
    #[test]
    fn a_wrong_word_is_named() {
        assert_eq!(parse("mode=test loud"), Err(CmdlineError::NotAPair("loud")));
        assert_eq!(parse("colour=red"), Err(CmdlineError::UnknownKey("colour")));
        assert_eq!(parse("seed=1 seed=2"), Err(CmdlineError::Repeated("seed")));
        assert_eq!(parse("mode=misbehave"), Err(CmdlineError::NoKind("one, two")));
        assert_eq!(parse("kind=one"), Err(CmdlineError::StrayKind));
        let malformed = [
            "mode=tset",
            "filter=",
            "seed=",
            "seed=+1",
            "seed=-1",
            "seed=0x10",
            "seed=18446744073709551616",
            "timeout=0",
            "timeout=86401",
            "rounds=0",
            "log=loud",
            "mode=misbehave kind=shout",
        ];
        for line in malformed {
            assert!(matches!(parse(line), Err(CmdlineError::BadValue { .. })), "'{line}' was accepted");
        }
    }
}
