//! The kernel's log: `[seconds.micros] cpuN LEVEL target: text`, one record a line (`docs/harness.md`).
//!
//! Rule: a record is formatted completely on the caller's stack before the serial port's lock is taken, so
//! formatting code may itself log, and a line is never torn.

use core::fmt::Write;

use arch_x86::{percpu, time};
use log::{LevelFilter, Log, Metadata, Record};

use crate::line::Line;
use crate::serial;

/// Longest log line in bytes.
const LINE: usize = 512;

struct SerialLog;

static LOG: SerialLog = SerialLog;

impl Log for SerialLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = time::now_micros();
        let mut line = Line::<LINE>::new();
        // `Line` never fails: it cuts.
        let _ = write!(
            line,
            "[{:5}.{:06}] cpu{} {:5} {}: {}",
            now / 1_000_000,
            now % 1_000_000,
            percpu::cpu().0,
            record.level(),
            short_target(record.target()),
            record.args()
        );
        serial::write_line(line.as_bytes());
    }

    fn flush(&self) {}
}

/// `kernel::boot::pvh` is `boot::pvh` to a reader who knows which program wrote the log.
fn short_target(target: &str) -> &str {
    target.strip_prefix("kernel::").unwrap_or(target)
}

/// Makes `log`'s macros write to the serial port, from level `info` up.
pub fn init() {
    // It fails only if a logger was set before, and this is the only one there is.
    let _ = log::set_logger(&LOG);
    set_level(LevelFilter::Info);
}

/// From now on shows records up to `level`.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}
