//! Cuts a stream of bytes into lines, however the reads happened to fall.

/// Holds the bytes of the line that is not finished yet.
#[derive(Default)]
pub struct LineSplitter {
    unfinished: Vec<u8>,
}

impl LineSplitter {
    /// Takes the next bytes and returns the lines they finish, without `\n` or `\r\n`.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.unfinished.extend_from_slice(bytes);
        let Some(last) = self.unfinished.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.unfinished.split_off(last + 1);
        let finished = std::mem::replace(&mut self.unfinished, rest);
        let finished = finished.strip_suffix(b"\n").unwrap_or(&finished);
        finished.split(|&byte| byte == b'\n').map(text).collect()
    }

    /// The line that never ended, if there is one.
    pub fn finish(self) -> Option<String> {
        (!self.unfinished.is_empty()).then(|| text(&self.unfinished))
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_wherever_the_reads_fall() {
        let stream = b"one\r\ntwo\n\nthree";
        for cut in 0..=stream.len() {
            let mut splitter = LineSplitter::default();
            let mut lines = splitter.push(&stream[..cut]);
            lines.extend(splitter.push(&stream[cut..]));
            assert_eq!(lines, ["one", "two", ""], "cut at {cut}");
            assert_eq!(splitter.finish().as_deref(), Some("three"));
        }
    }

    #[test]
    fn nothing_is_left_after_a_whole_line() {
        let mut splitter = LineSplitter::default();
        assert_eq!(splitter.push(b"one\n"), ["one"]);
        assert_eq!(splitter.finish(), None);
    }
}
