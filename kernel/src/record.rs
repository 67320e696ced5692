//! Records for machines: lines of the form `@kind {json}` (`docs/harness.md`).
//!
//! Rule: a record leaves whole or not at all; one that does not fit becomes an error in the log.

use core::fmt::{self, Write};

use crate::line::Line;
use crate::serial;

/// Longest record in bytes. A backtrace of 64 frames takes about 1400.
const RECORD: usize = 2048;

/// A record being built. `Record::new("boot").number("cpus", 8).emit()` writes `@boot {"cpus":8}`.
///
/// It is passed on by reference: a copy for each field would fill a kernel stack.
#[must_use = "a record is written by `emit`"]
pub struct Record {
    kind: &'static str,
    line: Line<RECORD>,
    empty: bool,
}

impl Record {
    /// Starts a record of this kind.
    pub fn new(kind: &'static str) -> Self {
        let mut line = Line::new();
        put(&mut line, format_args!("@{kind} {{"));
        Self { kind, line, empty: true }
    }

    /// Adds a number.
    pub fn number(&mut self, key: &str, value: impl Into<u64>) -> &mut Self {
        let value = value.into();
        self.field(key, format_args!("{value}"))
    }

    /// Adds a truth value.
    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.field(key, format_args!("{value}"))
    }

    /// Adds a text.
    pub fn text(&mut self, key: &str, value: impl fmt::Display) -> &mut Self {
        self.field(key, format_args!("\"{}\"", Escaped(value)))
    }

    /// Adds an address, as a text of the form `0x…`.
    pub fn address(&mut self, key: &str, value: u64) -> &mut Self {
        self.field(key, format_args!("\"{value:#x}\""))
    }

    /// Adds a list of addresses.
    pub fn addresses(&mut self, key: &str, values: impl Iterator<Item = u64>) -> &mut Self {
        self.field(key, format_args!("["));
        for (index, value) in values.enumerate() {
            let comma = if index == 0 { "" } else { "," };
            put(&mut self.line, format_args!("{comma}\"{value:#x}\""));
        }
        put(&mut self.line, format_args!("]"));
        self
    }

    /// Writes the record.
    pub fn emit(&mut self) {
        self.close();
        if self.line.is_cut() {
            log::error!("record {} is longer than {RECORD} bytes and was dropped", self.kind);
        } else {
            serial::write_line(self.line.as_bytes());
        }
    }

    fn close(&mut self) {
        put(&mut self.line, format_args!("}}"));
    }

    fn field(&mut self, key: &str, value: fmt::Arguments) -> &mut Self {
        let comma = if self.empty { "" } else { "," };
        self.empty = false;
        put(&mut self.line, format_args!("{comma}\"{key}\":{value}"));
        self
    }
}

fn put(line: &mut Line<RECORD>, text: fmt::Arguments) {
    // `Line` never fails: it cuts, and `emit` looks.
    let _ = line.write_fmt(text);
}

/// A value as the inside of a JSON string.
struct Escaped<T>(T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(Escaper(out), "{}", self.0)
    }
}

struct Escaper<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '"' => self.0.write_str("\\\"")?,
                '\\' => self.0.write_str("\\\\")?,
                '\n' => self.0.write_str("\\n")?,
                control if control.is_control() => write!(self.0, "\\u{:04x}", u32::from(control))?,
                other => self.0.write_char(other)?,
            }
        }
        Ok(())
    }
}

mod tests {
    use super::Record;
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};

    ktest! {
        /// Fields of every type come out as JSON.
        fn fields_become_json(_t: &TestContext) {
            let mut record = Record::new("kind");
            record.number("n", 7_u32).flag("f", true).text("t", "x").address("a", 0xffff);
            record.addresses("l", [1, 2].into_iter()).addresses("e", [].into_iter()).close();
            let expected = br#"@kind {"n":7,"f":true,"t":"x","a":"0xffff","l":["0x1","0x2"],"e":[]}"#;
            ktest_assert_eq!(record.line.as_bytes(), expected);
            let mut empty = Record::new("kind");
            empty.close();
            ktest_assert_eq!(empty.line.as_bytes(), b"@kind {}");
        }

        /// Characters with a meaning in JSON are escaped.
        fn texts_are_escaped(_t: &TestContext) {
            let mut record = Record::new("k");
            record.text("t", "a\"b\\c\nd\u{1}é").close();
            ktest_assert_eq!(record.line.as_bytes(), r#"@k {"t":"a\"b\\c\nd\u0001é"}"#.as_bytes());
        }

        /// A record that does not fit is known to be cut, so that it is never emitted.
        fn a_record_too_long_is_not_emitted(_t: &TestContext) {
            let mut record = Record::new("k");
            record.addresses("l", (0..300).map(|_| u64::MAX)).close();
            ktest_assert!(record.line.is_cut());
        }
    }
}
