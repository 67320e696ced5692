//! The serial port, one whole line at a time.
//!
//! Rule: whatever leaves the kernel leaves it as a whole line, written under one lock, so lines of different CPUs never
//! mix. The lock is taken with interrupts off (an interrupt handler may print too) but waited for with interrupts as
//! they were, so a waiter still answers other CPUs. A holder that does not let go is given up on: what is printed last
//! is what matters most.

use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::interrupts;
use spin::{Mutex, MutexGuard};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::LSR;
use uart_16550::{BaudRate, Config, Uart16550};

/// Base port of the first serial port of a PC.
pub const COM1: u16 = 0x3f8;

/// Polls of the lock before its holder counts as dead. Far longer than a descheduled vCPU stays away.
const PATIENCE: u32 = 400_000_000;

/// The same once the kernel panics: the holder is probably the CPU that was stopped in the middle of a line.
const PANIC_PATIENCE: u32 = 20_000_000;

/// Polls of a transmitter that accepts nothing before the rest of the line is dropped.
const TRANSMIT_PATIENCE: u32 = 1_000_000;

static PORT: Lines<Uart16550<PioBackend>> = Lines { wire: Mutex::new(com1()) };

/// Whether `init` found a port. Written once before any other CPU runs.
static PRESENT: AtomicBool = AtomicBool::new(false);

/// Set when the kernel panics. Relaxed: it only shortens a wait.
static PANICKING: AtomicBool = AtomicBool::new(false);

const fn com1() -> Uart16550<PioBackend> {
    // SAFETY: 0x3f8..0x3ff are the registers of the first serial port on every PC; `init` checks that one
    // answers, and only this module touches them.
    match unsafe { Uart16550::new_port(COM1) } {
        Ok(port) => port,
        Err(_) => panic!("COM1 is a valid port"),
    }
}

/// Finds and programs the port: 115200 baud, 8 data bits, no parity. Without one all output is dropped.
pub fn init() {
    let config = Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT };
    let present = PORT.wire.lock().init(config).is_ok();
    PRESENT.store(present, Ordering::Relaxed);
}

/// From now on a lock holder that does not let go is given up on sooner.
pub fn expect_dead_holders() {
    PANICKING.store(true, Ordering::Relaxed);
}

/// Writes `line` and a line feed. Takes the port's lock; callable in every context, also from an NMI.
pub fn write_line(line: &[u8]) {
    write(&[line, b"\n"]);
}

/// Writes `text` without a line feed: only for the misbehaviour mode that leaves half a line behind.
pub fn write_half_line(text: &[u8]) {
    write(&[text]);
}

fn write(parts: &[&[u8]]) {
    if PRESENT.load(Ordering::Relaxed) {
        PORT.write(parts, if PANICKING.load(Ordering::Relaxed) { PANIC_PATIENCE } else { PATIENCE });
    }
}

/// Waits until the transmitter has sent everything (or gives up): before the machine is turned off.
pub fn drain() {
    if !PRESENT.load(Ordering::Relaxed) {
        return;
    }
    interrupts::without(|| {
        let mut port = PORT.break_in();
        for _ in 0..TRANSMIT_PATIENCE {
            if port.lsr().contains(LSR::TRANSMITTER_EMPTY) {
                return;
            }
        }
    });
}

/// What lines go out on.
trait Wire {
    /// Takes some of `bytes` and says how many; 0 if it can take none now.
    fn send(&mut self, bytes: &[u8]) -> usize;
}

impl Wire for Uart16550<PioBackend> {
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.send_bytes(bytes)
    }
}

/// A wire on which lines stay whole.
struct Lines<W> {
    wire: Mutex<W>,
}

impl<W: Wire> Lines<W> {
    /// Writes `parts` in one piece, after at most `patience` polls of the lock.
    fn write(&self, parts: &[&[u8]], patience: u32) {
        for _ in 0..patience {
            let written = interrupts::without(|| self.wire.try_lock().map(|mut wire| transmit(&mut *wire, parts)));
            if written.is_some() {
                return;
            }
            core::hint::spin_loop();
        }
        interrupts::without(|| transmit(&mut *self.break_in(), parts));
    }

    /// The wire, whoever holds it.
    fn break_in(&self) -> MutexGuard<'_, W> {
        if let Some(wire) = self.wire.try_lock() {
            return wire;
        }
        // SAFETY: the holder was stopped or is stuck inside `transmit`, which is given up on. A `Wire` is plain numbers
        // that stay valid wherever the holder was; the worst that comes of it is two lines mixed.
        unsafe { self.wire.force_unlock() };
        self.wire.lock()
    }
}

fn transmit(wire: &mut impl Wire, parts: &[&[u8]]) {
    for part in parts {
        let mut rest = *part;
        let mut stalled = 0;
        while !rest.is_empty() {
            let sent = wire.send(rest);
            rest = rest.get(sent..).unwrap_or(&[]);
            stalled = if sent == 0 { stalled + 1 } else { 0 };
            if stalled > TRANSMIT_PATIENCE {
                return;
            }
        }
    }
}

mod tests {
    use core::fmt::Write;
    use core::mem;
    use core::sync::atomic::{AtomicUsize, Ordering};

    use super::{Lines, Wire};
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
    use crate::line::Line;
    use crate::smp;
    use crate::thread::spawn_on;
    use alloc::vec::Vec;
    use mm::config::NR_CPUS;
    use spin::Mutex;

    const LINES_PER_CPU: usize = 20;
    const LINE_LENGTH: usize = "cpu 00 line 00 is whole\n".len();

    /// A wire that keeps what it is sent, and takes one byte at a time, slowly.
    struct Paper {
        written: [u8; NR_CPUS * LINES_PER_CPU * LINE_LENGTH],
        length: usize,
    }

    impl Paper {
        const fn new() -> Self {
            Self { written: [0; NR_CPUS * LINES_PER_CPU * LINE_LENGTH], length: 0 }
        }
    }

    impl Wire for Paper {
        fn send(&mut self, bytes: &[u8]) -> usize {
            let (Some(place), Some(byte)) = (self.written.get_mut(self.length), bytes.first()) else { return 0 };
            *place = *byte;
            // Long enough for another CPU to come in between, if it can.
            for _ in 0..100 {
                core::hint::spin_loop();
            }
            self.length += 1;
            1
        }
    }

    ktest! {
        /// Lines that all CPUs write at once come out whole, and none is missing.
        fn lines_of_all_cpus_stay_whole(t: &TestContext) {
            static PAPER: Lines<Paper> = Lines { wire: Mutex::new(Paper::new()) };
            static READY: AtomicUsize = AtomicUsize::new(0);
            PAPER.wire.lock().length = 0;
            READY.store(0, Ordering::SeqCst);
            let cpus = t.cpus();
            let write = |cpu: u32| move || {
                READY.fetch_add(1, Ordering::SeqCst);
                while READY.load(Ordering::SeqCst) < cpus {
                    core::hint::spin_loop();
                }
                for number in 0..LINES_PER_CPU {
                    let mut line = Line::<64>::new();
                    // `Line` never fails: it cuts.
                    let _ = write!(line, "cpu {cpu:02} line {number:02} is whole");
                    PAPER.write(&[line.as_bytes(), b"\n"], u32::MAX);
                }
            };
            let writers: Result<Vec<_>, _> = smp::online().iter().map(|cpu| spawn_on(cpu, "writer", write(cpu.0))).collect();
            for writer in writers? {
                writer.join();
            }
            let paper = PAPER.wire.lock();
            let mut next = [0; NR_CPUS];
            for line in paper.written[..paper.length].split_inclusive(|byte| *byte == b'\n') {
                let number = |from| core::str::from_utf8(line.get(from..from + 2)?).ok()?.parse().ok();
                let (cpu, number): (Option<usize>, Option<usize>) = (number(4), number(12));
                let whole = line.len() == LINE_LENGTH && line.ends_with(b" is whole\n");
                let in_turn = cpu.and_then(|cpu| next.get_mut(cpu)).filter(|next| Some(**next) == number);
                let Some(next) = in_turn.filter(|_| whole) else {
                    return Err(crate::harness::Stop::failed(format_args!("'{}'", line.escape_ascii())));
                };
                *next += 1;
            }
            ktest_assert_eq!(next.iter().filter(|written| **written == LINES_PER_CPU).count(), t.cpus());
        }

        /// A holder that never lets go is given up on, and the line still comes out.
        fn a_dead_holder_does_not_silence_the_kernel(_t: &TestContext) {
            static PAPER: Lines<Paper> = Lines { wire: Mutex::new(Paper::new()) };
            PAPER.wire.lock().length = 0;
            mem::forget(PAPER.wire.lock());
            PAPER.write(&[b"last ", b"words"], 1000);
            let paper = PAPER.wire.try_lock();
            ktest_assert!(paper.is_some_and(|paper| &paper.written[..paper.length] == b"last words"));
        }
    }
}
