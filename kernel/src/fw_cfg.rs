//! QEMU's `fw_cfg` device: small named files from the host, here the command line.
//!
//! The port interface of QEMU's `docs/specs/fw_cfg.rst`: write an item's number to the selector, then read its
//! bytes one by one from the data port. Rule: what the device says is checked, because on another machine
//! anything may answer at these ports.

use arch_x86::io_port;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;

/// Item that identifies the device.
const SIGNATURE: u16 = 0x00;
/// Item that lists the named files.
const DIRECTORY: u16 = 0x19;

/// Where `xtask` puts the command line.
const CMDLINE: &str = "opt/latchwork/cmdline";

/// Bytes of a name in the directory, zero-terminated.
const NAME: usize = 56;
/// More files than any machine has: what claims more is no directory.
const MAX_FILES: u32 = 4096;

/// Longest command line the kernel takes, in bytes.
pub const MAX_CMDLINE: usize = 1024;

/// Why a file's content cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FwCfgError {
    /// The file has this many bytes, more than there is room for.
    TooLong(u32),
    /// The file is not UTF-8.
    NotText,
}

/// Reads the command line into `buffer`. `None`: this machine has no such device or file.
///
/// # Errors
/// The file is there but is longer than `buffer`, or not UTF-8.
pub fn cmdline(buffer: &mut [u8]) -> Option<Result<&str, FwCfgError>> {
    let (item, size) = find(CMDLINE)?;
    let Some(bytes) = usize::try_from(size).ok().and_then(|size| buffer.get_mut(..size)) else {
        return Some(Err(FwCfgError::TooLong(size)));
    };
    select(item);
    read(bytes);
    let text = core::str::from_utf8(bytes).map_err(|_| FwCfgError::NotText);
    Some(text.map(|text| text.trim_end_matches('\0')))
}

/// The item number and the size in bytes of a named file.
fn find(wanted: &str) -> Option<(u16, u32)> {
    let mut signature = [0; 4];
    select(SIGNATURE);
    read(&mut signature);
    if &signature != b"QEMU" {
        return None;
    }
    select(DIRECTORY);
    let mut count = [0; 4];
    read(&mut count);
    let count = u32::from_be_bytes(count);
    if count > MAX_FILES {
        return None;
    }
    for _ in 0..count {
        let (mut size, mut item, mut reserved, mut name) = ([0; 4], [0; 2], [0; 2], [0; NAME]);
        read(&mut size);
        read(&mut item);
        read(&mut reserved);
        read(&mut name);
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        if name.get(..length) == Some(wanted.as_bytes()) {
            return Some((u16::from_be_bytes(item), u32::from_be_bytes(size)));
        }
    }
    None
}

fn select(item: u16) {
    // SAFETY: selecting an item changes only what the data port returns next. A PC without the device has
    // nothing at this port.
    unsafe { io_port::write_u16(SELECTOR, item) }
}

fn read(bytes: &mut [u8]) {
    for byte in bytes {
        // SAFETY: reading the data port only advances the device's cursor.
        *byte = unsafe { io_port::read_u8(DATA) };
    }
}

mod tests {
    use super::{DIRECTORY, FwCfgError, MAX_CMDLINE, cmdline, find, read, select};
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq, ktest_skip};

    ktest! {
        /// The command line that chose this test can be read again, and a buffer it does not fit in is an error.
        fn the_command_line_is_read(_t: &TestContext) {
            let mut buffer = [0; MAX_CMDLINE];
            let Some(line) = cmdline(&mut buffer) else { ktest_skip!("there is no fw_cfg device") };
            let line = line?;
            ktest_assert!(line.contains("mode=test"), "'{line}'");
            let length = line.len();
            ktest_assert_eq!(cmdline(&mut [0; 4]), Some(Err(FwCfgError::TooLong(length as u32))));
        }

        /// A file that is not there is not found, and the directory ends where it says.
        fn an_unknown_file_is_not_found(_t: &TestContext) {
            if find("opt/latchwork/cmdline").is_none() {
                ktest_skip!("there is no fw_cfg device");
            }
            ktest_assert_eq!(find("opt/latchwork/cmdlin"), None);
            ktest_assert_eq!(find(""), None);
            let mut count = [0; 4];
            select(DIRECTORY);
            read(&mut count);
            ktest_assert!((1..100).contains(&u32::from_be_bytes(count)), "{count:?}");
        }
    }
}
