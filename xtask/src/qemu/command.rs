//! QEMU's arguments for a machine, a boot medium and a kernel command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::machine::{Accelerator, Clock, CommandLine, Machine};

/// The guest's calendar in a deterministic run.
const FIXED_DATE: &str = "2026-01-01T00:00:00";

/// What the machine starts from.
#[derive(Clone, Debug)]
pub enum BootMedium {
    /// The kernel itself, entered through PVH.
    Pvh {
        /// The kernel's ELF.
        kernel: PathBuf,
    },
    /// A disk image, started by UEFI firmware.
    Uefi {
        /// The image.
        image: PathBuf,
        /// The firmware's code.
        code: PathBuf,
        /// A copy of the firmware's variables that this run may write.
        variables: PathBuf,
    },
}

/// One call of QEMU.
pub struct Invocation<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// What it starts from.
    pub medium: &'a BootMedium,
    /// What the kernel is told.
    pub command_line: &'a CommandLine,
    /// Port of the debugger the machine waits for.
    pub gdb: Option<u16>,
    /// File the serial port writes to: never full, so the guest's timing does not depend on its reader.
    pub serial: &'a Path,
    /// Socket of the monitor.
    pub monitor: &'a Path,
    /// File the debug console writes to, if there is one.
    pub debug_console: Option<&'a Path>,
}

impl Invocation<'_> {
    /// The arguments, QEMU's name not among them.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments(Vec::new());
        arguments.option("-machine", "q35");
        let lacks = self.machine.lacks.map(|feature| format!(",{feature}=off"));
        arguments.option("-cpu", &format!("max{}", lacks.unwrap_or_default()));
        self.time(&mut arguments);
        arguments.option("-smp", &self.machine.cpus.to_string());
        arguments.option("-m", &format!("{}M", self.machine.memory_mib));
        arguments.option("-display", "none");
        arguments.0.push("-nodefaults".into());
        // A reset stops the machine and keeps its registers until we have read them.
        arguments.option("-action", "reboot=shutdown,shutdown=pause");
        arguments.option("-device", "isa-debug-exit,iobase=0xf4,iosize=4");
        arguments.file("-serial", "file:", self.serial);
        arguments.file("-qmp", "unix:", self.monitor);
        arguments.append(",server=on,wait=off");
        if let Some(path) = self.debug_console {
            arguments.file("-debugcon", "file:", path);
        }
        let words = self.command_line.to_string().replace(',', ",,");
        arguments.option("-fw_cfg", &format!("name=opt/latchwork/cmdline,string={words}"));
        match self.medium {
            BootMedium::Pvh { kernel } => {
                arguments.0.push("-kernel".into());
                arguments.0.push(kernel.into());
            }
            BootMedium::Uefi { image, code, variables } => {
                arguments.option("-vga", "std");
                arguments.file("-drive", "if=pflash,format=raw,unit=0,readonly=on,file=", code);
                arguments.file("-drive", "if=pflash,format=raw,unit=1,file=", variables);
                arguments.file("-drive", "format=raw,snapshot=on,file=", image);
            }
        }
        if let Some(port) = self.gdb {
            arguments.0.push("-S".into());
            arguments.option("-gdb", &format!("tcp:127.0.0.1:{port}"));
        }
        arguments.0
    }

    fn time(&self, arguments: &mut Arguments) {
        match (self.machine.clock, self.machine.accelerator) {
            (Clock::Host, Accelerator::Tcg) => arguments.option("-accel", "tcg,thread=multi"),
            (Clock::Host, Accelerator::Kvm) => arguments.option("-accel", "kvm"),
            (Clock::Instructions { shift }, _) => {
                arguments.option("-accel", "tcg,thread=single");
                arguments.option("-icount", &format!("shift={shift},sleep=off"));
                arguments.option("-rtc", &format!("clock=vm,base={FIXED_DATE}"));
                // RDRAND and the like.
                arguments.option("-seed", &self.command_line.seed.to_string());
            }
        }
    }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn option(&mut self, name: &str, value: &str) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    /// An option that ends in a file name, in which QEMU wants commas doubled.
    fn file(&mut self, name: &str, prefix: &str, path: &Path) {
        self.option(name, &format!("{prefix}{}", path.to_string_lossy().replace(',', ",,")));
    }

    fn append(&mut self, suffix: &str) {
        if let Some(last) = self.0.last_mut() {
            last.push(suffix);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::logline::Level;

    use super::*;
    use crate::machine::{EIGHT_CPUS, Task};

    fn arguments(machine: Machine, seed: u64) -> String {
        let command_line = CommandLine {
            task: Task::Test { filter: "a,b".to_owned() },
            seed,
            timeout: Duration::from_secs(60),
            log: Level::Info,
        };
        let medium = BootMedium::Pvh { kernel: "k".into() };
        let invocation = Invocation {
            machine: &machine,
            medium: &medium,
            command_line: &command_line,
            gdb: None,
            serial: Path::new("/a,b/serial.log"),
            monitor: Path::new("/tmp/m"),
            debug_console: Some(Path::new("/a,b/counts")),
        };
        let words: Vec<_> = invocation.arguments().into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn commas_are_doubled_where_qemu_splits_at_them() {
        let line = arguments(EIGHT_CPUS, 1);
        assert!(line.contains("-serial file:/a,,b/serial.log"), "{line}");
        assert!(line.contains("-debugcon file:/a,,b/counts"), "{line}");
        assert!(line.contains("filter=a,,b seed=1"), "{line}");
    }

    #[test]
    fn a_deterministic_machine_has_one_thread_and_nothing_from_outside() {
        let line = arguments(Machine { clock: Clock::Instructions { shift: 4 }, ..EIGHT_CPUS }, 7);
        for part in ["tcg,thread=single", "-icount shift=4,sleep=off", "clock=vm,base=2026", "-seed 7"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(arguments(EIGHT_CPUS, 7).contains("-accel tcg,thread=multi"));
        assert!(!arguments(EIGHT_CPUS, 7).contains("icount"));
    }
}
