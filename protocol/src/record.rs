//! Records for machines: `@kind {json}`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Any other keys of a record, in the order the kernel gave them.
pub type Figures = Map<String, Value>;

/// `@boot`: all CPUs are up.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Boot {
    /// CPUs online.
    pub cpus: u32,
    /// How the kernel was entered: `pvh` or `uefi`.
    pub boot: String,
    /// Usable memory in MiB.
    pub memory_mib: u64,
    /// Lock placement: `split` or `single`.
    pub build: String,
}

/// `@phase`: the figures of one phase of a workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The workload.
    pub workload: String,
    /// The phase.
    pub phase: String,
    /// What was counted.
    #[serde(flatten)]
    pub figures: Figures,
}

/// `@cpu`: what one CPU did in a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// The CPU.
    pub cpu: u32,
    /// The phase; absent when the figures are of the whole run.
    #[serde(default)]
    pub phase: String,
    /// What was counted.
    #[serde(flatten)]
    pub figures: Figures,
}

/// `@oracle`: one checked property.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Oracle {
    /// The property.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was compared.
    #[serde(default)]
    pub detail: String,
}

/// `@bt`: a backtrace to symbolise.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Backtrace {
    /// The CPU it was taken on.
    pub cpu: u32,
    /// Why it was taken.
    pub reason: String,
    /// Where the CPU was.
    #[serde(deserialize_with = "address")]
    pub rip: u64,
    /// Return addresses, innermost first.
    #[serde(default, deserialize_with = "addresses")]
    pub frames: Vec<u64>,
}

/// `@hang`: the in-kernel watchdog's verdict.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Hang {
    /// The test that took too long.
    #[serde(default)]
    pub test: String,
    /// The stuck CPU.
    pub cpu: u32,
    /// The watchdog's own words.
    #[serde(default)]
    pub text: String,
    /// The lock and the ticket it waits for, and whatever else it found.
    #[serde(flatten)]
    pub figures: Figures,
}

/// `@end`: the run ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct End {
    /// The mode it ran in.
    pub mode: String,
    /// Tests (or oracles) that passed.
    #[serde(default)]
    pub passed: u32,
    /// Tests (or oracles) that failed.
    #[serde(default)]
    pub failed: u32,
    /// Tests that could not run here.
    #[serde(default)]
    pub skipped: u32,
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// `@boot`
    Boot(Boot),
    /// `@test`: a test's name and what it is about (`mode=list`).
    Test {
        /// The test's name.
        name: String,
        /// One line on what it shows.
        about: String,
    },
    /// `@start`: a test begins.
    Start {
        /// The test's name.
        test: String,
    },
    /// `@phase`
    Phase(Phase),
    /// `@cpu`
    Cpu(Cpu),
    /// `@oracle`
    Oracle(Oracle),
    /// `@bt`
    Backtrace(Backtrace),
    /// `@hang`
    Hang(Hang),
    /// `@end`
    End(End),
    /// A kind this version does not know; whole, and ignored.
    Unknown {
        /// The word after `@`.
        kind: String,
    },
}

impl Record {
    /// Reads what follows the `@`; `None` if it is not a word and one whole JSON object of the right shape.
    pub fn parse(body: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Test {
            name: String,
            #[serde(default)]
            about: String,
        }
        #[derive(Deserialize)]
        struct Start {
            test: String,
        }
        fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Option<T> {
            serde_json::from_str(json).ok()
        }

        let (kind, json) = body.split_once(' ')?;
        Some(match kind {
            "boot" => Self::Boot(read(json)?),
            "test" => read(json).map(|Test { name, about }| Self::Test { name, about })?,
            "start" => read(json).map(|Start { test }| Self::Start { test })?,
            "phase" => Self::Phase(read(json)?),
            "cpu" => Self::Cpu(read(json)?),
            "oracle" => Self::Oracle(read(json)?),
            "bt" => Self::Backtrace(read(json)?),
            "hang" => Self::Hang(read(json)?),
            "end" => Self::End(read(json)?),
            _ => {
                read::<Map<String, Value>>(json)?;
                Self::Unknown { kind: kind.to_owned() }
            }
        })
    }
}

/// Reads `0x…`; JSON numbers are too narrow for an address in some readers, so the kernel sends text.
pub fn parse_address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_address(&text).ok_or_else(|| serde::de::Error::custom("not an address"))
}

fn addresses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let read = texts.iter().map(|text| parse_address(text));
    read.collect::<Option<_>>().ok_or_else(|| serde::de::Error::custom("not an address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_of_the_contract_are_read() {
        let boot = Record::parse(r#"boot {"cpus":8,"boot":"pvh","memory_mib":512,"build":"split"}"#);
        assert!(matches!(boot, Some(Record::Boot(Boot { cpus: 8, memory_mib: 512, .. }))));
        let end = Record::parse(r#"end {"mode":"test","passed":12,"failed":0,"skipped":0}"#);
        assert!(matches!(end, Some(Record::End(End { passed: 12, failed: 0, skipped: 0, .. }))));
    }

    #[test]
    fn a_backtrace_holds_full_width_addresses() {
        let record = Record::parse(
            r#"bt {"cpu":3,"reason":"panic","rip":"0xffffffff80201234","frames":["0xffffffff80200000"]}"#,
        );
        let Some(Record::Backtrace(backtrace)) = record else { panic!("{record:?}") };
        assert_eq!(backtrace.rip, 0xffff_ffff_8020_1234);
        assert_eq!(backtrace.frames, [0xffff_ffff_8020_0000]);
    }

    #[test]
    fn figures_keep_unknown_keys() {
        let record = Record::parse(r#"phase {"workload":"storm","phase":"disjoint","faults":7,"odd":1}"#);
        let Some(Record::Phase(phase)) = record else { panic!("{record:?}") };
        assert_eq!(phase.figures.len(), 2);
    }

    #[test]
    fn records_that_are_not_whole_are_refused() {
        for body in [
            "",
            "end",
            "end ",
            r#"end {"mode""#,
            r#"end {"passed":1}"#,
            r#"new {"a":"#,
            r#"bt {"cpu":1,"reason":"x","rip":12}"#,
        ] {
            assert_eq!(Record::parse(body), None, "{body:?}");
        }
    }

    #[test]
    fn a_kind_from_the_future_is_no_error() {
        assert_eq!(Record::parse(r#"new {"a":1}"#), Some(Record::Unknown { kind: "new".to_owned() }));
    }
}
