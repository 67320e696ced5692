//! A line of output built on the stack: no heap, no lock, so it works in a fault, an NMI and a panic.
//!
//! Rule: a `Line` holds exactly one line. Control characters become blanks, and what does not fit is cut at a
//! character boundary and marked.

use core::fmt;

/// Stands for what was cut off.
const ELLIPSIS: &str = "…";

/// A line of at most `N` bytes.
pub struct Line<const N: usize> {
    bytes: [u8; N],
    length: usize,
    cut: bool,
}

impl<const N: usize> Line<N> {
    const ROOM: usize = N - ELLIPSIS.len();

    /// An empty line.
    pub const fn new() -> Self {
        Self { bytes: [0; N], length: 0, cut: false }
    }

    /// What was written so far, with the mark at its end if something was cut off.
    pub fn as_bytes(&mut self) -> &[u8] {
        let mut end = self.length;
        if self.cut {
            end += ELLIPSIS.len();
            self.bytes[self.length..end].copy_from_slice(ELLIPSIS.as_bytes());
        }
        &self.bytes[..end]
    }

    /// Whether something did not fit.
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

impl<const N: usize> fmt::Write for Line<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character.is_control() { ' ' } else { character };
            let width = character.len_utf8();
            if self.cut || self.length + width > Self::ROOM {
                self.cut = true;
                break;
            }
            character.encode_utf8(&mut self.bytes[self.length..]);
            self.length += width;
        }
        Ok(())
    }
}

mod tests {
    use super::Line;
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
    use core::fmt::Write;

    ktest! {
        /// What fits is kept as it is, and a line that is exactly full is not cut.
        fn what_fits_is_kept(_t: &TestContext) {
            let mut line = Line::<16>::new();
            write!(line, "wörter-{}", 12345)?;
            ktest_assert!(!line.is_cut());
            ktest_assert_eq!(line.as_bytes(), "wörter-12345".as_bytes());
        }

        /// What does not fit is cut between two characters and marked, and nothing comes after the mark.
        fn the_rest_is_cut_and_marked(_t: &TestContext) {
            let mut line = Line::<16>::new();
            write!(line, "0123456789äöü")?;
            write!(line, "x")?;
            ktest_assert!(line.is_cut());
            ktest_assert_eq!(line.as_bytes(), "0123456789ä…".as_bytes());
        }

        /// Nothing that is written can make a second line of it.
        fn a_line_stays_one_line(_t: &TestContext) {
            let mut line = Line::<32>::new();
            write!(line, "one\ntwo\r\tthree\0\u{85}")?;
            ktest_assert_eq!(line.as_bytes(), b"one two  three  ");
        }
    }
}
