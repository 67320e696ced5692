//! Turns a kernel ELF into a disk image that UEFI firmware starts: `latchwork-boot KERNEL IMAGE`.
//!
//! A program of its own because building `bootloader` needs library source: `xtask` must start without it, finds a
//! compiler that has it, and builds and runs this with that one.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (Some(kernel), Some(image), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: latchwork-boot KERNEL IMAGE");
        return ExitCode::FAILURE;
    };
    match bootloader::UefiBoot::new(&kernel).create_disk_image(&image) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("latchwork-boot: cannot make an image of {}: {error:#}", kernel.display());
            ExitCode::FAILURE
        }
    }
}
