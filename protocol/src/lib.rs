//! What the kernel says on its serial line (`docs/harness.md`), as pure functions: bytes in, typed lines out.
//!
//! The rule: a line is judged by its first characters alone, and a line that starts like one of ours but does not
//! hold together is [`Line::Torn`], never silently something else. Lost output shows only that way.

pub mod ktap;
pub mod logline;
pub mod record;
mod splitter;
mod transcript;

pub use ktap::Ktap;
pub use logline::LogLine;
pub use record::Record;
pub use splitter::LineSplitter;
pub use transcript::{Event, KernelTest, LastWord, TestStatus, Transcript};

/// One line of serial output.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A line of the test protocol.
    Ktap(Ktap),
    /// A log line.
    Log(LogLine),
    /// A record for machines.
    Record(Record),
    /// Starts like one of ours and is damaged: output was lost or torn.
    Torn(String),
    /// Anything else: firmware, the boot loader, a reader's own `print`.
    Other(String),
}

impl Line {
    /// Classifies one line, given without its end of line.
    pub fn parse(text: &str) -> Self {
        if let Some(body) = text.strip_prefix('@') {
            return match Record::parse(body) {
                Some(record) => Self::Record(record),
                None => Self::Torn(text.to_owned()),
            };
        }
        if text.starts_with('[') {
            return match LogLine::parse(text) {
                Some(line) => Self::Log(line),
                None => Self::Other(text.to_owned()),
            };
        }
        match ktap::parse(text) {
            ktap::Parsed::Ktap(ktap) => Self::Ktap(ktap),
            ktap::Parsed::Torn => Self::Torn(text.to_owned()),
            ktap::Parsed::NotKtap => Self::Other(text.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line_is_recognised_by_its_start() {
        assert!(matches!(Line::parse("KTAP version 1"), Line::Ktap(_)));
        assert!(matches!(Line::parse("[    0.000123] cpu0 INFO boot: hello"), Line::Log(_)));
        assert!(matches!(Line::parse(r#"@start {"test":"a"}"#), Line::Record(_)));
        assert!(matches!(Line::parse("BdsDxe: starting Boot0001"), Line::Other(_)));
    }

    #[test]
    fn half_a_record_and_half_a_result_are_torn() {
        assert!(matches!(Line::parse(r#"@end {"mode":"te"#), Line::Torn(_)));
        assert!(matches!(Line::parse("ok 3"), Line::Torn(_)));
        assert!(matches!(Line::parse("@"), Line::Torn(_)));
    }
}
