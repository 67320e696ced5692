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
        let mut lines = Vec::new();
        for (depth, &address) in frames.iter().enumerate() {
            // A return address is that of the next instruction, which may belong to the next line or function.
            let probe = if depth == 0 { address } else { address.saturating_sub(1) };
            for place in self.places(probe) {
                lines.push(format!("{depth:>3}: {address:#018x} {place}"));
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
            // Line tables alone name no inlined function; the symbol table names the outermost.
            let function = function.or_else(|| symbol.clone().filter(|_| index == outermost));
            let function = function.unwrap_or_else(|| "?".to_owned());
            location.map_or_else(|| function.clone(), |location| format!("{function} ({location})"))
        };
        places.into_iter().enumerate().map(line).collect()
    }

    fn shorten<'a>(&self, file: &'a str) -> &'a str {
        let inside = Path::new(file).strip_prefix(&self.root).ok();
        inside.and_then(Path::to_str).unwrap_or(file)
    }
}

fn rustc_name(symbol: &str) -> String {
    addr2line::demangle_auto(symbol.into(), None).into_owned()
}
