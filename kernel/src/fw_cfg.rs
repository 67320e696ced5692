//! The ports of QEMU's `fw_cfg` device (QEMU's `docs/specs/fw_cfg.rst`): an item's number goes to the selector, then the data
//! port gives its bytes one by one. What they mean is `handover::fw_cfg`'s.

use arch_x86::io_port;
use handover::fw_cfg::{self, Device, FwCfgError};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;

/// Longest command line the kernel takes, in bytes.
pub const MAX_CMDLINE: usize = 1024;

struct Ports;

impl Device for Ports {
    fn select(&mut self, item: u16) {
        // SAFETY: selecting an item changes only what the data port returns next. A PC without the device has
        // nothing at this port.
        unsafe { io_port::write_u16(SELECTOR, item) }
    }

    fn read(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            // SAFETY: reading the data port only advances the device's cursor.
            *byte = unsafe { io_port::read_u8(DATA) };
        }
    }
}

/// Reads the command line into `buffer`. `None`: this machine has no such device or file.
///
/// # Errors
/// The file is there but is longer than `buffer`, or not UTF-8.
pub fn cmdline(buffer: &mut [u8]) -> Option<Result<&str, FwCfgError>> {
    fw_cfg::cmdline(&mut Ports, buffer)
}

mod tests {
    use super::{MAX_CMDLINE, Ports, cmdline};
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq, ktest_skip};
    use handover::fw_cfg::{CMDLINE, FwCfgError, find};

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

        /// A file that is not there is not found: the directory ends where it says.
        fn an_unknown_file_is_not_found(_t: &TestContext) {
            if find(&mut Ports, CMDLINE).is_none() {
                ktest_skip!("there is no fw_cfg device");
            }
            ktest_assert_eq!(find(&mut Ports, "opt/latchwork/cmdlin"), None);
            ktest_assert_eq!(find(&mut Ports, ""), None);
        }
    }
}
