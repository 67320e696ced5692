//! The local APIC: sending interrupts to CPUs, acknowledging them, and its timer.
//!
//! Two ways lead to the same registers: memory (xAPIC) and model-specific registers (x2APIC). The mode is
//! chosen once, on the boot CPU, and every CPU follows (Intel SDM vol. 3, 12.4 and 12.12).

use core::arch::asm;
use core::hint::spin_loop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::cpu::{self, Features};
use crate::{interrupts, msr};

const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ERROR_STATUS: u32 = 0x280;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const SPURIOUS_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_16: u32 = 0b0011;
const COMMAND_PENDING: u32 = 1 << 12;
const COMMAND_ASSERT: u32 = 1 << 14;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_INIT: u32 = 0b101 << 8;
const DELIVER_STARTUP: u32 = 0b110 << 8;

const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_FRAME: u64 = 0x000f_ffff_ffff_f000;

/// How often the command register is looked at before a command that is still pending is given up. Delivery takes
/// a few bus cycles; the bound only keeps a broken APIC from stopping the CPU.
const COMMAND_POLLS: u32 = 1_000_000;

const MODE_UNSET: u32 = 0;
const MODE_MEMORY: u32 = 1;
const MODE_REGISTERS: u32 = 2;

/// Which way leads to the registers. Written by [`init`] on the boot CPU before it starts others; read relaxed.
static MODE: AtomicU32 = AtomicU32::new(MODE_UNSET);
/// The mapped registers in memory mode. Written before `MODE`, read after it, in the same order of start-up.
static REGISTERS: AtomicPtr<u32> = AtomicPtr::new(core::ptr::null_mut());

/// What a CPU can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The interrupt of this vector.
    Interrupt(u8),
    /// A non-maskable interrupt.
    NonMaskable,
    /// Reset, and wait for [`Message::Startup`].
    Init,
    /// Run in real mode from the page of this number, below 1 MiB.
    Startup(u8),
}

/// The APIC did not take a message in time, or cannot name its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDelivered;

/// Physical address of the registers when they must be mapped, uncached, before [`init`]; none with x2APIC.
#[must_use]
pub fn registers_to_map() -> Option<u64> {
    if cpu::features().contains(Features::X2APIC) {
        return None;
    }
    // SAFETY: every CPU that runs this kernel has a local APIC and so this register.
    Some(unsafe { msr::read(msr::APIC_BASE) } & APIC_BASE_FRAME)
}

/// Chooses the way to the registers for all CPUs. Call once, on the boot CPU, before [`enable`].
///
/// # Safety
/// `registers` must be where the page named by [`registers_to_map`] is mapped, uncached and for good, or `None` if
/// that named none.
pub unsafe fn init(registers: Option<NonNull<u32>>) {
    match registers {
        Some(registers) => {
            REGISTERS.store(registers.as_ptr(), Ordering::Relaxed);
            MODE.store(MODE_MEMORY, Ordering::Relaxed);
        }
        None => MODE.store(MODE_REGISTERS, Ordering::Relaxed),
    }
}

/// Switches this CPU's APIC on with the two vectors it raises by itself, timer stopped, external line masked.
pub fn enable(spurious_vector: u8, error_vector: u8) {
    // SAFETY: the register exists, see `registers_to_map`; the base address stays, the mode is the one chosen.
    unsafe {
        let mut base = msr::read(msr::APIC_BASE) | APIC_BASE_ENABLE;
        if MODE.load(Ordering::Relaxed) == MODE_REGISTERS {
            base |= APIC_BASE_X2APIC;
        }
        msr::write(msr::APIC_BASE, base);
    }
    write(TASK_PRIORITY, 0);
    write(LVT_TIMER, LVT_MASKED);
    write(LVT_LINT0, LVT_MASKED);
    write(LVT_ERROR, u32::from(error_vector));
    write(SPURIOUS, SPURIOUS_ENABLE | u32::from(spurious_vector));
}

/// The number by which other CPUs reach this one.
#[must_use]
pub fn id() -> u32 {
    match MODE.load(Ordering::Relaxed) {
        MODE_REGISTERS => read(ID),
        _ => read(ID) >> 24,
    }
}

/// Ends the service of the interrupt in service, so that the next may come.
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Reads and clears the accumulated errors.
#[must_use]
pub fn take_errors() -> u32 {
    write(ERROR_STATUS, 0);
    read(ERROR_STATUS)
}

/// Sends `message` to the CPU with APIC number `target`.
///
/// # Errors
/// When an earlier message stays pending beyond any reason, or without x2APIC for a target above 255; the new one is not
/// sent then.
///
/// # Safety
/// [`Message::Init`] and [`Message::Startup`] take a CPU away from what it does: `target` must run nothing of ours,
/// and the start-up page must hold code for it. [`Message::Interrupt`] must name a vector with a handler.
pub unsafe fn send(target: u32, message: Message) -> Result<(), NotDelivered> {
    let low = match message {
        Message::Interrupt(vector) => u32::from(vector) | COMMAND_ASSERT,
        Message::NonMaskable => DELIVER_NMI | COMMAND_ASSERT,
        Message::Init => DELIVER_INIT | COMMAND_ASSERT,
        Message::Startup(page) => DELIVER_STARTUP | COMMAND_ASSERT | u32::from(page),
    };
    if MODE.load(Ordering::Relaxed) == MODE_REGISTERS {
        // Unlike a store to the memory-mapped register, the write to the model-specific one does not wait for
        // earlier stores to be seen by others, and a fence alone does not hold it up: it takes both instructions (Intel
        // SDM vol. 3, 12.12.3).
        // SAFETY: waiting for memory changes no state.
        unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
        // SAFETY: x2APIC mode is on, so the register exists; the caller vouches for the effect.
        unsafe { msr::write(msr::X2APIC + (COMMAND_LOW >> 4), u64::from(target) << 32 | u64::from(low)) };
        return Ok(());
    }
    // The field has eight bits; more would reach another CPU.
    let Ok(target) = u8::try_from(target) else { return Err(NotDelivered) };
    // The command is two stores; an interrupt between them that sends too would redirect this one.
    interrupts::without(|| {
        let idle = (0..COMMAND_POLLS).any(|_| {
            let idle = read(COMMAND_LOW) & COMMAND_PENDING == 0;
            if !idle {
                spin_loop();
            }
            idle
        });
        if !idle {
            return Err(NotDelivered);
        }
        write(COMMAND_HIGH, u32::from(target) << 24);
        write(COMMAND_LOW, low);
        Ok(())
    })
}

/// Starts this CPU's timer: `vector` every `count` timer ticks, for good.
pub fn start_periodic_timer(vector: u8, count: u32) {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(LVT_TIMER, LVT_PERIODIC | u32::from(vector));
    write(TIMER_INITIAL, count);
}

/// Stops this CPU's timer.
pub fn stop_timer() {
    write(LVT_TIMER, LVT_MASKED);
    write(TIMER_INITIAL, 0);
}

/// Lets the timer count down from its largest value without interrupting, to measure its rate.
pub(crate) fn start_free_running_timer() {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(LVT_TIMER, LVT_MASKED);
    write(TIMER_INITIAL, u32::MAX);
}

/// What is left of the timer's count.
pub(crate) fn timer_count() -> u32 {
    read(TIMER_CURRENT)
}

fn read(register: u32) -> u32 {
    if MODE.load(Ordering::Relaxed) == MODE_REGISTERS {
        // SAFETY: x2APIC mode is on, and only registers of the list above are read.
        return unsafe { msr::read(msr::X2APIC + (register >> 4)) } as u32;
    }
    // SAFETY: `init` was given the mapped page, in which `register` lies.
    unsafe { REGISTERS.load(Ordering::Relaxed).byte_add(register as usize).read_volatile() }
}

fn write(register: u32, value: u32) {
    if MODE.load(Ordering::Relaxed) == MODE_REGISTERS {
        // SAFETY: as in `read`; none of the values written breaks memory safety by itself.
        unsafe { msr::write(msr::X2APIC + (register >> 4), u64::from(value)) };
        return;
    }
    // SAFETY: as in `read`.
    unsafe { REGISTERS.load(Ordering::Relaxed).byte_add(register as usize).write_volatile(value) }
}
