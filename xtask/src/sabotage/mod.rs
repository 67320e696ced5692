//! Sabotage: each rule of `mm` that can be broken in one place (`mm::sabotage`), and the tests that notice. A rule nobody would
//! miss is not shown by any test, however many pass.

mod kernel;
mod programs;
mod table;

use std::fmt;
use std::time::Duration;

use anyhow::Result;

use crate::build::Arch;
pub use kernel::Kernel;
pub use programs::Programs;
pub use table::all;

/// A rule that can be broken.
pub struct Sabotage {
    /// Its name at the place where it is kept.
    pub name: &'static str,
    /// What goes wrong there, and which invariants and races of the specification that concerns.
    pub breaks: &'static str,
    /// The tests that must notice, each of them.
    pub noticed_by: &'static [Test],
}

/// A test that must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Where it runs.
    pub suite: Suite,
    /// Its name there.
    pub name: &'static str,
}

/// Where a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Among `mm`'s own tests, on the simulated machine.
    Host,
    /// Under the model checker, in this file of `mm/tests`.
    Loom(&'static str),
    /// Among whole operations under chosen schedules.
    Schedules,
    /// In the kernel for this processor.
    Kernel(Arch),
}

impl Sabotage {
    /// Whether it breaks what the specification says under `number`, an invariant's or a race's.
    pub fn concerns(&self, number: &str) -> bool {
        self.breaks.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == number)
    }
}

impl Test {
    /// As documents cite it: a kernel's test without its processor.
    pub fn citation(&self) -> String {
        match self.suite {
            Suite::Host => format!("mm {}", self.name),
            Suite::Loom(file) => format!("mm/{file} {}", self.name),
            Suite::Schedules => format!("mm/shuttle_operations {}", self.name),
            Suite::Kernel(_) => format!("kernel {}", self.name),
        }
    }
}

/// Where tests run with a rule broken.
pub trait Stage {
    /// Runs `tests` with nothing broken.
    ///
    /// # Errors
    /// When one of them does not pass then: it would show nothing.
    fn control(&self, tests: &[Test]) -> Result<()>;

    /// Runs `test` with the rule of `sabotage` broken.
    ///
    /// # Errors
    /// When it cannot be run.
    fn attempt(&self, sabotage: &'static str, test: &Test) -> Result<Seen>;
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.suite {
            Suite::Kernel(arch) => write!(f, "kernel ({}) {}", arch.word(), self.name),
            Suite::Host | Suite::Loom(_) | Suite::Schedules => f.write_str(&self.citation()),
        }
    }
}

/// How a test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// As if nothing were broken.
    Passed,
    /// It failed, or its program died, with these words.
    Failed(String),
    /// It did not end within this time.
    Hung(Duration),
    /// What it ran in was ended from outside, or died of something else, in these words.
    Lost(String),
}

impl Seen {
    /// Whether the test has noticed. One that only takes very long, or whose end has another reason, has not.
    pub fn is_caught(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("it passed"),
            Self::Failed(words) | Self::Lost(words) => f.write_str(words),
            Self::Hung(limit) => write!(f, "it did not end within {} s", limit.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::workspace::Workspace;

    /// Where rules are kept.
    const FOLDERS: [&str; 3] = ["mm/src", "arch/x86/src", "kernel/src"];

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    /// The names in a source text, as often as they are there.
    fn names(text: &str) -> Vec<String> {
        let after = text.split("sabotaged!(\"").skip(1);
        after.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn every_sabotage_has_one_place_and_every_place_a_sabotage() {
        let root = Workspace::locate().root().to_path_buf();
        let files = FOLDERS.iter().flat_map(|folder| sources(&root.join(folder)));
        let own = root.join("mm/src/sabotage.rs");
        let mut placed: Vec<String> =
            files.filter(|path| *path != own).flat_map(|path| names(&fs::read_to_string(path).unwrap())).collect();
        placed.sort_unstable();
        let mut known: Vec<String> = all().map(|sabotage| sabotage.name.to_owned()).collect();
        known.sort_unstable();
        assert_eq!(placed, known);
    }

    #[test]
    fn no_two_names_have_one_number() {
        // As `mm::sabotage::number_of`.
        let number = |name: &str| {
            name.bytes().fold(0x811c_9dc5_u32, |number, byte| (number ^ u32::from(byte)).wrapping_mul(0x0100_0193))
        };
        let numbers: BTreeSet<u32> = all().map(|sabotage| number(sabotage.name)).collect();
        assert_eq!(numbers.len(), all().count());
        assert!(!numbers.contains(&0), "0 is none");
    }

    #[test]
    fn every_sabotage_is_noticed_by_somebody() {
        for Sabotage { name, breaks, noticed_by } in all() {
            assert!(!noticed_by.is_empty() && !breaks.is_empty(), "{name}");
            let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(name.bytes().all(word), "{name}: no word for a command line");
        }
    }

    #[test]
    fn to_take_for_ever_is_not_to_notice() {
        assert!(Seen::Failed(String::new()).is_caught());
        assert!(!Seen::Passed.is_caught() && !Seen::Hung(Duration::from_secs(1)).is_caught());
    }
}
