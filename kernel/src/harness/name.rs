//! Names of tests and workloads: a path in the sources, without the parts that tell a reader nothing.

use core::fmt::{self, Write};

use crate::line::Line;

/// Longest name in bytes.
const MAX: usize = 128;

/// A name. `kernel::tests::fault::anonymous_read` shows as `fault::anonymous_read`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(&'static str);

impl Name {
    /// The name of what stands at this path.
    pub const fn new(path: &'static str) -> Self {
        Self(path)
    }

    /// Whether the name as shown contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        self.shown(|name| name.contains(text))
    }

    /// Whether the name as shown is `text`.
    pub fn is(&self, text: &str) -> bool {
        self.shown(|name| name == text)
    }

    fn shown(&self, ask: impl FnOnce(&str) -> bool) -> bool {
        let mut line = Line::<MAX>::new();
        // `Line` never fails: it cuts.
        let _ = write!(line, "{self}");
        core::str::from_utf8(line.as_bytes()).is_ok_and(ask)
    }

    /// A number that depends on nothing but the name (FNV-1a).
    pub fn hash(&self) -> u64 {
        self.0.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let telling = self.0.split("::").filter(|part| !matches!(*part, "kernel" | "tests"));
        for (index, part) in telling.enumerate() {
            if index > 0 {
                out.write_str("::")?;
            }
            out.write_str(part)?;
        }
        Ok(())
    }
}

mod tests {
    use super::Name;
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
    use alloc::string::ToString;

    ktest! {
        /// A name shows the path without crate and test modules, and is searched as it shows.
        fn a_name_is_the_telling_part_of_a_path(_t: &TestContext) {
            let name = Name::new("kernel::tests::fault::tests::anonymous_read");
            ktest_assert_eq!(name.to_string(), "fault::anonymous_read");
            ktest_assert!(name.contains("fault::anon") && !name.contains("tests"));
            ktest_assert!(name.is("fault::anonymous_read") && !name.is("fault::anonymous"));
            ktest_assert_eq!(Name::new("storm").to_string(), "storm");
        }
    }
}
