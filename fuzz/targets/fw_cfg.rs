//! A device that answers anything: there is a command line, or there is none, or it cannot be read.

#![no_main]

use handover::fw_cfg::{Device, cmdline};
use libfuzzer_sys::fuzz_target;

/// Longest command line there is room for.
const ROOM: usize = 64;

/// Gives its bytes whatever item is chosen, as a bus on which something else answers.
struct Anything<'a>(&'a [u8]);

impl Device for Anything<'_> {
    fn select(&mut self, _item: u16) {}

    fn read(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.0.split_off_first().copied().unwrap_or(0);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    match cmdline(&mut Anything(bytes), &mut [0; ROOM]) {
        Some(Ok(line)) => assert!(line.len() <= ROOM && !line.ends_with('\0')),
        // What is said of it goes onto a console.
        Some(Err(error)) => assert!(!error.to_string().is_empty()),
        None => {}
    }
});
