//! QEMU's `fw_cfg` device: small named files from the host, here the command line.
//!
//! The protocol of QEMU's `docs/specs/fw_cfg.rst`: choose an item by its number, then read its bytes one after the other.
//! Rule: what the device says is checked, because on another machine anything may answer in its place.

use core::fmt;

/// Item that identifies the device.
const SIGNATURE: u16 = 0x00;
/// Item that lists the named files.
const DIRECTORY: u16 = 0x19;

/// Where `xtask` puts the command line.
pub const CMDLINE: &str = "opt/latchwork/cmdline";

/// Bytes of a name in the directory, zero-terminated.
const NAME: usize = 56;
/// More files than any machine has: what claims more is no directory.
const MAX_FILES: u32 = 4096;

/// The device, or what answers in its place.
pub trait Device {
    /// Chooses an item, to be read from its first byte.
    fn select(&mut self, item: u16);

    /// Reads the item's next bytes. Beyond its end they are zero.
    fn read(&mut self, bytes: &mut [u8]);
}

/// A file on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// The item that holds it.
    pub item: u16,
    /// How long the device says it is, in bytes.
    pub size: u32,
}

/// Why a file's content cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FwCfgError {
    /// The file has this many bytes, more than there is room for.
    TooLong(u32),
    /// The file is not UTF-8.
    NotText,
}

impl fmt::Display for FwCfgError {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::TooLong(size) => write!(out, "it is {size} bytes long, which is too long"),
            Self::NotText => write!(out, "it is not UTF-8"),
        }
    }
}

/// Reads the command line into `buffer`. `None`: this machine has no such device or file.
///
/// # Errors
/// The file is there but is longer than `buffer`, or not UTF-8.
pub fn cmdline<'a>(device: &mut impl Device, buffer: &'a mut [u8]) -> Option<Result<&'a str, FwCfgError>> {
    let File { item, size } = find(device, CMDLINE)?;
    let Some(bytes) = usize::try_from(size).ok().and_then(|size| buffer.get_mut(..size)) else {
        return Some(Err(FwCfgError::TooLong(size)));
    };
    device.select(item);
    device.read(bytes);
    let text = core::str::from_utf8(bytes).map_err(|_| FwCfgError::NotText);
    Some(text.map(|text| text.trim_end_matches('\0')))
}

/// The file of this name. `None`: there is no such device or file.
pub fn find(device: &mut impl Device, wanted: &str) -> Option<File> {
    device.select(SIGNATURE);
    if &array(device) != b"QEMU" {
        return None;
    }
    device.select(DIRECTORY);
    let count = u32::from_be_bytes(array(device));
    if count > MAX_FILES {
        return None;
    }
    (0..count).find_map(|_| {
        let (size, item) = (u32::from_be_bytes(array(device)), u16::from_be_bytes(array(device)));
        let _reserved: [u8; 2] = array(device);
        let name: [u8; NAME] = array(device);
        let name = name.split(|&byte| byte == 0).next()?;
        (name == wanted.as_bytes()).then_some(File { item, size })
    })
}

/// The next bytes of the chosen item.
fn array<const N: usize>(device: &mut impl Device) -> [u8; N] {
    let mut bytes = [0; N];
    device.read(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose items are these bytes.
    #[derive(Default)]
    struct Items {
        items: Vec<(u16, Vec<u8>)>,
        chosen: u16,
        at: usize,
    }

    impl Device for Items {
        fn select(&mut self, item: u16) {
            (self.chosen, self.at) = (item, 0);
        }

        fn read(&mut self, bytes: &mut [u8]) {
            let item = self.items.iter().find(|(number, _)| *number == self.chosen);
            for byte in bytes {
                *byte = item.and_then(|(_, content)| content.get(self.at)).copied().unwrap_or(0);
                self.at += 1;
            }
        }
    }

    /// A device with these files: name, item, content.
    fn device(files: &[(&str, u16, &[u8])]) -> Items {
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        let mut items = vec![(SIGNATURE, b"QEMU".to_vec())];
        for &(name, item, content) in files {
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(item.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = name.as_bytes().to_vec();
            field.resize(NAME, 0);
            directory.extend(field);
            items.push((item, content.to_vec()));
        }
        items.push((DIRECTORY, directory));
        Items { items, ..Items::default() }
    }

    #[test]
    fn the_command_line_is_found_among_other_files() {
        let mut device = device(&[("etc/e820", 32, &[1; 20]), (CMDLINE, 33, b"mode=test\0"), ("z", 34, b"")]);
        assert_eq!(cmdline(&mut device, &mut [0; 64]), Some(Ok("mode=test")));
        assert_eq!(find(&mut device, "z"), Some(File { item: 34, size: 0 }));
        assert_eq!(find(&mut device, &CMDLINE[1..]), None);
    }

    #[test]
    fn a_command_line_that_is_no_text_or_too_long_is_an_error() {
        let mut long = device(&[(CMDLINE, 33, &[b'a'; 9])]);
        assert_eq!(cmdline(&mut long, &mut [0; 8]), Some(Err(FwCfgError::TooLong(9))));
        let mut wild = device(&[(CMDLINE, 33, &[0xff; 3])]);
        assert_eq!(cmdline(&mut wild, &mut [0; 8]), Some(Err(FwCfgError::NotText)));
    }

    #[test]
    fn another_device_in_its_place_has_no_files() {
        let mut other = device(&[(CMDLINE, 33, b"mode=run")]);
        other.items[0].1 = vec![0xff; 4];
        assert_eq!(cmdline(&mut other, &mut [0; 64]), None);
        // A floating bus: a directory with more files than there can be.
        let mut floating = device(&[(CMDLINE, 33, b"mode=run")]);
        floating.items.last_mut().unwrap().1[..4].fill(0xff);
        assert_eq!(cmdline(&mut floating, &mut [0; 64]), None);
        assert_eq!(cmdline(&mut Items::default(), &mut [0; 64]), None);
    }
}
