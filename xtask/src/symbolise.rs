//! Addresses of the kernel to functions and lines.

use std::path::{Path, PathBuf};

use addr2line::Loader;

/// The kernel's symbols and line tables.
pub struct Symbols {
    loader: Option<Loader>,
    root: PathBuf,
}

impl Symbols {
    /// Reads a kernel's ELF. Without one, or with a damaged one, addresses just stay numbers.
    pub fn load(kernel: &Path, root: &Path) -> Self {
        Self { loader: Loader::new(kernel).ok(), root: root.to_path_buf() }
    }

    /// Describes a chain of addresses, innermost first, one line per (inlined) function.
    pub fn backtrace(&self, frames: &[u64]) -> Vec<String> {
        // `0x` and the digits of the kernel's words.
        let width = if frames.iter().all(|frame| u32::try_from(*frame).is_ok()) { 10 } else { 18 };
        let mut lines = Vec::new();
        let mut depth = 0;
        for same in frames.chunk_by(|one, next| one == next) {
            // A return address is that of the next instruction, which may belong to the next line or function.
            let probe = if depth == 0 { same[0] } else { same[0].saturating_sub(1) };
            for place in self.places(probe) {
                lines.push(format!("{depth:>3}: {:#0width$x} {place}", same[0]));
            }
            depth += same.len();
            if same.len() > 1 {
                lines.push(format!("     and {} times more", same.len() - 1));
            }
        }
        lines
    }

    fn places(&self, address: u64) -> Vec<String> {
        let Some(loader) = &self.loader else {
            return vec![String::new()];
        };
        let mut places = Vec::new();
        if let Ok(mut frames) = loader.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let function =
                    frame.function.as_ref().and_then(|name| name.demangle().ok().map(|name| name.into_owned()));
                let location = frame.location.as_ref().and_then(|at| Some((at.file?, at.line?)));
                let location = location.map(|(file, line)| format!("{}:{line}", self.shorten(file)));
                if function.is_some() || location.is_some() {
                    places.push((function, location));
                }
            }
        }
        if places.is_empty() {
            places.push((None, None));
        }
        let symbol = loader.find_symbol(address).map(|name| format!("{:#}", rustc_name(name)));
        let outermost = places.len() - 1;
        let line = |(index, (function, location)): (usize, (Option<String>, Option<String>))| {
            // Line tables alone give bare names; the symbol table has the path of the outermost function.
            let path = symbol.clone().filter(|_| index == outermost);
            let function = path.or(function).unwrap_or_else(|| "?".to_owned());
            location.map_or_else(|| function.clone(), |location| format!("{function} ({location})"))
        };
        places.into_iter().enumerate().map(line).collect()
    }

    /// Our own files from the workspace's root, others from their library's name on.
    fn shorten<'a>(&self, file: &'a str) -> &'a str {
        if let Some(inside) = Path::new(file).strip_prefix(&self.root).ok().and_then(Path::to_str) {
            return inside;
        }
        if let Some((_, inside)) = file.split_once("/rust/library/") {
            return inside;
        }
        let registry = file.split_once("/registry/src/").and_then(|(_, inside)| inside.split_once('/'));
        registry.map_or(file, |(_, inside)| inside)
    }
}

/// The path a compiler's symbol stands for; other symbols as they are.
pub fn rustc_name(symbol: &str) -> String {
    addr2line::demangle_auto(symbol.into(), None).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_from_where_a_reader_knows_them() {
        let symbols = Symbols { loader: None, root: "/work/latchwork".into() };
        for (file, short) in [
            ("/work/latchwork/kernel/src/trap.rs", "kernel/src/trap.rs"),
            ("/usr/lib/rustlib/src/rust/library/core/src/hint.rs", "core/src/hint.rs"),
            ("/root/.cargo/registry/src/registry-1/spin-0.12.3/src/mutex.rs", "spin-0.12.3/src/mutex.rs"),
            ("/elsewhere/a.rs", "/elsewhere/a.rs"),
        ] {
            assert_eq!(symbols.shorten(file), short);
        }
    }

    #[test]
    fn without_symbols_addresses_stay_numbers_and_repetitions_are_counted() {
        let symbols = Symbols { loader: None, root: PathBuf::new() };
        let lines = symbols.backtrace(&[0x10, 0x20, 0x20, 0x20, 0x30]);
        assert_eq!(lines.len(), 4);
        assert!(lines[2].contains("and 2 times more"), "{lines:?}");
        assert!(lines[3].trim_start().starts_with("4: 0x00000030"), "{lines:?}");
        let long = symbols.backtrace(&[0xffff_8000_0000_0010, 0x20]);
        assert!(long[1].trim_start().starts_with("1: 0x0000000000000020"), "{long:?}");
    }
}
