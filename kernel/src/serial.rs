//! The serial port, one whole line at a time.
//!
//! Rule: whatever leaves the kernel leaves it as a whole line, written under one lock, so lines of different
//! CPUs never mix. The lock is taken with interrupts off (an interrupt handler may print too) but waited for
//! with interrupts as they were, so a waiter still answers other CPUs.

use core::sync::atomic::{AtomicBool, Ordering};

use arch_x86::interrupts;
use spin::{Mutex, MutexGuard};
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

/// Base port of the first serial port of a PC.
const COM1: u16 = 0x3f8;

/// Polls of the lock before its holder counts as dead. Far longer than a descheduled vCPU stays away.
const PATIENCE: u32 = 400_000_000;

/// The same once the kernel panics: the holder is probably the CPU that was stopped in the middle of a line.
const PANIC_PATIENCE: u32 = 20_000_000;

/// Polls of a transmitter that accepts nothing before the rest of the line is dropped.
const TRANSMIT_PATIENCE: u32 = 1_000_000;

static PORT: Mutex<Uart16550<PioBackend>> = Mutex::new(com1());

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
    let present = PORT.lock().init(config).is_ok();
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

/// Waits until the transmitter has sent everything (or gives up): before the machine is turned off.
pub fn drain() {
    if !PRESENT.load(Ordering::Relaxed) {
        return;
    }
    interrupts::without(|| {
        let mut port = break_in();
        for _ in 0..TRANSMIT_PATIENCE {
            if port.lsr().contains(uart_16550::spec::registers::LSR::TRANSMITTER_EMPTY) {
                return;
            }
        }
    });
}

fn write(parts: &[&[u8]]) {
    if !PRESENT.load(Ordering::Relaxed) {
        return;
    }
    let patience = if PANICKING.load(Ordering::Relaxed) { PANIC_PATIENCE } else { PATIENCE };
    for _ in 0..patience {
        let written = interrupts::without(|| match PORT.try_lock() {
            Some(mut port) => {
                transmit(&mut port, parts);
                true
            }
            None => false,
        });
        if written {
            return;
        }
        core::hint::spin_loop();
    }
    interrupts::without(|| transmit(&mut break_in(), parts));
}

/// The port, whoever holds it.
fn break_in() -> MutexGuard<'static, Uart16550<PioBackend>> {
    if let Some(port) = PORT.try_lock() {
        return port;
    }
    // SAFETY: the holder was stopped or is stuck inside `transmit`. It holds a `&mut` to plain port numbers and
    // a cached configuration that is never changed after `init`; the worst that a second user can do is to mix
    // the characters of two lines.
    unsafe { PORT.force_unlock() };
    PORT.lock()
}

fn transmit(port: &mut Uart16550<PioBackend>, parts: &[&[u8]]) {
    for part in parts {
        let mut rest = *part;
        let mut stalled = 0;
        while !rest.is_empty() {
            let sent = port.send_bytes(rest);
            rest = rest.get(sent..).unwrap_or(&[]);
            stalled = if sent == 0 { stalled + 1 } else { 0 };
            if stalled > TRANSMIT_PATIENCE {
                return;
            }
        }
    }
}
