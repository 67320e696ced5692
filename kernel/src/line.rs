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
