//! The clock: the time-stamp counter, scaled to nanoseconds by a rate found at boot, and the rate of the local
//! APIC's timer.
//!
//! All CPUs read the same counter value at the same moment: the counters start together at reset and nothing here
//! writes them, so the clock is one for the machine. Under QEMU's `-icount` counter, PIT and APIC timer are driven
//! by the count of executed instructions, and the clock repeats from run to run.

use core::hint::spin_loop;

use spin::Once;

use crate::{apic, cpu, interrupts, io_port};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Rate of the programmable interval timer, in ticks per second.
const PIT_HZ: u64 = 1_193_182;
/// How long a rate is measured, in PIT ticks: 10 ms.
const PIT_WINDOW: u16 = (PIT_HZ / 100) as u16;
/// How often the PIT is read before it counts as absent: each read takes about a microsecond.
const PIT_POLLS: u32 = 2_000_000;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
/// Gate of PIT channel 2 (bit 0) and the speaker it drives (bit 1).
const SPEAKER_CONTROL: u16 = 0x61;

/// How many windows are opened to find one that was not slept through.
const WINDOWS: u32 = 8;
/// How many readings are taken to find one that nothing interrupted.
const READINGS: u32 = 16;

/// The clock, set on the boot CPU before others start.
static CLOCK: Once<Clock> = Once::new();

/// APIC timer ticks per second, set likewise.
static APIC_TIMER_HZ: Once<u64> = Once::new();

struct Clock {
    /// Counter value that is time zero.
    start: u64,
    /// Nanoseconds per counter tick as a 32.32 fixed-point number.
    nanos_per_tick: u64,
}

impl Clock {
    fn nanos(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.nanos_per_tick)) >> 32) as u64
    }
}

/// Why a clock's rate could not be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalibrationError {
    /// CPUID does not name the counter's rate and the interval timer does not count.
    NoReferenceClock,
    /// The time-stamp counter or the APIC timer does not count.
    DoesNotCount,
}

/// Raw value of the time-stamp counter.
#[must_use]
pub fn counter() -> u64 {
    #[cfg(target_arch = "x86")]
    use core::arch::x86::_rdtsc;
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::_rdtsc;
    // SAFETY: every CPU that runs this kernel has the counter, and ring 0 may always read it.
    unsafe { _rdtsc() }
}

/// Nanoseconds since [`calibrate`]; 0 before. The same on every CPU, and never running backwards.
#[must_use]
pub fn now_nanos() -> u64 {
    CLOCK.get().map_or(0, |clock| clock.nanos(counter().wrapping_sub(clock.start)))
}

/// Microseconds since [`calibrate`]; 0 before.
#[must_use]
pub fn now_micros() -> u64 {
    now_nanos() / 1000
}

/// APIC timer ticks in `nanos` nanoseconds.
#[must_use]
pub fn apic_timer_ticks(nanos: u64) -> u32 {
    let ticks =
        u128::from(APIC_TIMER_HZ.get().copied().unwrap_or(0)) * u128::from(nanos) / u128::from(NANOS_PER_SECOND);
    u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
}

/// Spins for at least `nanos` nanoseconds.
pub fn spin_for(nanos: u64) {
    let end = now_nanos().saturating_add(nanos);
    while now_nanos() < end {
        spin_loop();
    }
}

/// Finds the rate of the time-stamp counter and starts the clock. Call once, on the boot CPU.
///
/// # Errors
/// When there is nothing to measure against.
pub fn calibrate() -> Result<(), CalibrationError> {
    let hertz = match named_counter_hertz() {
        Some(hertz) => hertz,
        None => interrupts::without(measure_counter_hertz)?,
    };
    if hertz == 0 {
        return Err(CalibrationError::DoesNotCount);
    }
    CLOCK.call_once(|| Clock { start: counter(), nanos_per_tick: (NANOS_PER_SECOND << 32) / hertz });
    Ok(())
}

/// Finds the rate of the APIC timer against the clock. Call once, on the boot CPU, with its APIC enabled, after
/// [`calibrate`] and before the timer is started.
///
/// # Errors
/// When the timer does not count.
pub fn calibrate_apic_timer() -> Result<(), CalibrationError> {
    const WINDOW_NANOS: u64 = 10_000_000;
    let hertz = interrupts::without(|| {
        apic::start_free_running_timer();
        let start = tightest_reading(apic::timer_count);
        spin_for(WINDOW_NANOS);
        let end = tightest_reading(apic::timer_count);
        apic::stop_timer();
        let elapsed = CLOCK.get().map_or(0, |clock| clock.nanos(end.counter - start.counter));
        u64::from(start.value - end.value) * NANOS_PER_SECOND / elapsed.max(1)
    });
    if hertz == 0 {
        return Err(CalibrationError::DoesNotCount);
    }
    APIC_TIMER_HZ.call_once(|| hertz);
    Ok(())
}

/// The counter's rate as leaf 0x15 of CPUID names it, on the CPUs that do.
fn named_counter_hertz() -> Option<u64> {
    cpu::cpuid().get_tsc_info()?.tsc_frequency().filter(|hertz| *hertz != 0)
}

/// A value of some other clock and the counter's value at that moment.
struct Reading<T> {
    counter: u64,
    value: T,
}

/// Reads another clock several times and keeps the reading with the least time around it: under a hypervisor the
/// CPU may lose its turn between two instructions.
fn tightest_reading<T>(read: impl Fn() -> T) -> Reading<T> {
    let take = || {
        let before = counter();
        let value = read();
        let width = counter().wrapping_sub(before);
        (width, Reading { counter: before + width / 2, value })
    };
    let (mut least, mut best) = take();
    for _ in 1..READINGS {
        let (width, reading) = take();
        if width < least {
            (least, best) = (width, reading);
        }
    }
    best
}

fn measure_counter_hertz() -> Result<u64, CalibrationError> {
    for _ in 0..WINDOWS {
        start_pit();
        let start = tightest_reading(read_pit);
        let elapsed_enough = (0..PIT_POLLS).any(|_| start.value.wrapping_sub(read_pit()) >= PIT_WINDOW);
        if !elapsed_enough {
            return Err(CalibrationError::NoReferenceClock);
        }
        let end = tightest_reading(read_pit);
        // A CPU that lost its turn for long finds the count wrapped, which makes the window unusable.
        if !pit_expired() {
            let pit_ticks = u64::from(start.value.wrapping_sub(end.value));
            return Ok((end.counter - start.counter) * PIT_HZ / pit_ticks.max(1));
        }
    }
    Err(CalibrationError::NoReferenceClock)
}

/// Lets channel 2 count down once from 0xffff (55 ms), speaker off.
fn start_pit() {
    const CHANNEL_2_LOW_HIGH_ONE_SHOT: u8 = 0b1011_0000;
    // SAFETY: these ports are the interval timer and its gate on every PC; they reach no memory.
    unsafe {
        let control = io_port::read_u8(SPEAKER_CONTROL);
        io_port::write_u8(SPEAKER_CONTROL, (control & !0b10) | 0b01);
        io_port::write_u8(PIT_COMMAND, CHANNEL_2_LOW_HIGH_ONE_SHOT);
        io_port::write_u8(PIT_CHANNEL_2, 0xff);
        io_port::write_u8(PIT_CHANNEL_2, 0xff);
    }
}

fn read_pit() -> u16 {
    const LATCH_CHANNEL_2: u8 = 0b1000_0000;
    // SAFETY: as in `start_pit`.
    unsafe {
        io_port::write_u8(PIT_COMMAND, LATCH_CHANNEL_2);
        u16::from_le_bytes([io_port::read_u8(PIT_CHANNEL_2), io_port::read_u8(PIT_CHANNEL_2)])
    }
}

/// Whether the count started by [`start_pit`] has reached zero.
fn pit_expired() -> bool {
    const CHANNEL_2_OUTPUT: u8 = 1 << 5;
    // SAFETY: as in `start_pit`.
    unsafe { io_port::read_u8(SPEAKER_CONTROL) & CHANNEL_2_OUTPUT != 0 }
}
