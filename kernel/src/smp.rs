//! Bringing the CPUs up: the boot CPU in two steps, then the others one after the other.
//!
//! Rules. A CPU has its per-CPU area, segments and gates before anything else, so that a fault in the first line is
//! reported like any other. A CPU is in [`online`] when it takes interrupts and runs threads, never earlier. One that does
//! not answer in time ends the boot: it may wake up later and run with another's stack.

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use arch_x86::apic::{self, Message};
use arch_x86::cpu::{self, MissingFeatures};
use arch_x86::gdt::{self, TrapStack};
use arch_x86::ipi::{self, Vector};
use arch_x86::kernel_map::{self, MapError};
use arch_x86::time::{self, CalibrationError};
use arch_x86::trampoline::{FRAMES, Trampoline};
use arch_x86::{idt, layout, paging, percpu};
use mm::config::{NR_CPUS, PAGE_SIZE};
use mm::cpu::{CpuId, CpuMask, CpuSet};

use crate::boot::{self, frames};
use crate::exit::{ExitCode, exit};
use crate::thread::{self, stack};
use crate::{interrupt, memory, trap};

/// How long a CPU may take from the start-up message to its first sign of life.
const START_LIMIT_NANOS: u64 = 10_000_000_000;
/// How long a CPU is given to reset, and to fetch its first instruction (Intel SDM vol. 3, 10.4.4.1).
const RESET_NANOS: u64 = 10_000_000;
const FIRST_START_NANOS: u64 = 200_000;

/// The boot CPU.
const BOOT: CpuId = CpuId(0);

/// CPUs that are up. A CPU adds itself with release once all of its own is set up.
static ONLINE: CpuMask = CpuMask::new();

/// What became of the CPU that is being started: stored by it with release, polled by the boot CPU with acquire.
static PROGRESS: AtomicU32 = AtomicU32::new(WAITING);
const WAITING: u32 = 0;
const UP: u32 = 1;
const LACKS_FEATURES: u32 = 2;

/// Why not all CPUs could be started.
#[derive(Clone, Copy, Debug)]
enum SmpError {
    Clock(CalibrationError),
    Map(MapError),
    NoLowMemory,
    Silent { cpu: CpuId, apic_id: u32 },
    Lacking { cpu: CpuId, apic_id: u32 },
}

impl fmt::Display for SmpError {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Clock(error) => write!(out, "there is no clock: {error:?}"),
            Self::Map(error) => write!(out, "stacks and registers cannot be mapped: {error:?}"),
            Self::NoLowMemory => write!(out, "no memory below 1 MiB to start CPUs from"),
            Self::Silent { cpu, apic_id } => {
                write!(out, "cpu {} (APIC {apic_id}) did not answer in {} s", cpu.0, START_LIMIT_NANOS / 1_000_000_000)
            }
            Self::Lacking { cpu, apic_id } => {
                write!(out, "cpu {} (APIC {apic_id}) lacks features of the boot CPU", cpu.0)
            }
        }
    }
}

impl From<MapError> for SmpError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<CalibrationError> for SmpError {
    fn from(error: CalibrationError) -> Self {
        Self::Clock(error)
    }
}

/// The CPUs that are up.
pub fn online() -> CpuSet {
    ONLINE.load(Ordering::Acquire)
}

/// Stack for any trap of the boot CPU until there are guarded ones.
#[repr(C, align(16))]
struct EarlyStack(UnsafeCell<[u8; 16 << 10]>);

// SAFETY: only the boot CPU uses it, as a stack.
unsafe impl Sync for EarlyStack {}

static EARLY_STACK: EarlyStack = EarlyStack(UnsafeCell::new([0; 16 << 10]));

/// Gives the boot CPU its area, segments and gates. The first thing the kernel does.
pub fn claim_boot_cpu() {
    percpu::prepare(BOOT, u32::MAX);
    let area = percpu::area(BOOT);
    // SAFETY: called once, first of all, on the boot CPU, with interrupts off as every loader leaves them; the stack is
    // used for nothing else.
    unsafe {
        gdt::load(area);
        percpu::install(BOOT);
        let top = EARLY_STACK.0.get().addr() + size_of::<EarlyStack>();
        for stack in TrapStack::ALL {
            gdt::set_trap_stack(area, stack, top);
        }
        idt::init(trap::handle);
        idt::load();
    }
}

/// Starts clock, interrupts and all other CPUs, and runs `main` as the first thread. On the kernel's own page tables and
/// the boot CPU's own stack, which becomes that of its idle thread.
pub fn start(main: fn() -> !) -> ! {
    memory::prepare();
    if let Err(error) = bring_up(&boot::info().cpus.apic_ids) {
        log::error!("boot failed: {error}");
        exit(ExitCode::BootFailed)
    }
    interrupt::start_timer();
    match thread::spawn_on(BOOT, "main", move || main()) {
        Ok(_main) => thread::run_idle(),
        Err(error) => panic!("the first thread cannot be started: {error:?}"),
    }
}

fn bring_up(apic_ids: &[u32]) -> Result<(), SmpError> {
    time::calibrate()?;
    set_trap_stacks(BOOT)?;
    ipi::mask_legacy_controllers();
    let registers = match apic::registers_to_map() {
        Some(physical) => NonNull::new(map_device(physical)? as *mut u32),
        None => None,
    };
    // SAFETY: the registers were just mapped as asked for.
    unsafe { apic::init(registers) };
    enable_apic();
    let boot_id = apic::id();
    percpu::prepare(BOOT, boot_id);
    time::calibrate_apic_timer()?;
    thread::adopt_boot_context();
    ONLINE.add(BOOT, Ordering::Release);

    let others = apic_ids.iter().copied().filter(|id| *id != boot_id);
    let count = others.clone().count();
    let wanted: Vec<(CpuId, u32)> = (1..NR_CPUS as u32).map(CpuId).zip(others).collect();
    if count > wanted.len() {
        log::warn!(
            "{} of {} CPUs are more than this kernel drives and are left alone",
            count - wanted.len(),
            count + 1
        );
    }
    stack::fill(wanted.len() as u32 + 1)?;
    if wanted.is_empty() { Ok(()) } else { start_others(&wanted) }
}

fn start_others(cpus: &[(CpuId, u32)]) -> Result<(), SmpError> {
    let low = frames::lend(|frames| frames.take_low(FRAMES as u64)).flatten().ok_or(SmpError::NoLowMemory)?;
    let root = layout::direct(kernel_map::top()) as *const u64;
    // SAFETY: the frames are RAM and were just taken for good; the kernel's half of the root table is complete.
    let trampoline = unsafe { Trampoline::new(low.address(), layout::direct(low) as *mut u8, root) };
    let mut trampoline = trampoline.map_err(|_| SmpError::NoLowMemory)?;
    for &(cpu, apic_id) in cpus {
        // SAFETY: none of these CPUs runs anything of ours.
        unsafe { apic::send(apic_id, Message::Init) }.map_err(|_| SmpError::Silent { cpu, apic_id })?;
    }
    time::spin_for(RESET_NANOS);
    for &(cpu, apic_id) in cpus {
        start_one(cpu, apic_id, &mut trampoline)?;
    }
    Ok(())
}

fn start_one(cpu: CpuId, apic_id: u32, trampoline: &mut Trampoline) -> Result<(), SmpError> {
    percpu::prepare(cpu, apic_id);
    set_trap_stacks(cpu)?;
    let stack_top = stack::map_boot_stack(cpu)?;
    PROGRESS.store(WAITING, Ordering::Relaxed);
    // SAFETY: the CPU before this one has answered, so it is through. The stack was just mapped for this CPU.
    unsafe { trampoline.aim(ap_main, stack_top, cpu.index()) };
    let silent = SmpError::Silent { cpu, apic_id };
    // SAFETY: the CPU was reset and waits; the trampoline's page holds its code.
    let start = || unsafe { apic::send(apic_id, Message::Startup(trampoline.page())) }.map_err(|_| silent);
    start()?;
    // Some CPUs miss the first message; one that took it ignores the second.
    if !has_answered_within(FIRST_START_NANOS) {
        start()?;
    }
    if !has_answered_within(START_LIMIT_NANOS) {
        return Err(silent);
    }
    match PROGRESS.load(Ordering::Acquire) {
        UP => Ok(()),
        _ => Err(SmpError::Lacking { cpu, apic_id }),
    }
}

fn has_answered_within(nanos: u64) -> bool {
    let give_up = time::now_nanos().saturating_add(nanos);
    while PROGRESS.load(Ordering::Acquire) == WAITING {
        if time::now_nanos() >= give_up {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Where the trampoline takes a CPU.
extern "C" fn ap_main(cpu: usize) -> ! {
    let cpu = CpuId(cpu as u32);
    // SAFETY: this CPU is the only one ever to be `cpu`, and the boot CPU has prepared its area and trap stacks. The
    // kernel's tree maps all that is used here, and allows what the protections enforce.
    let enabled = unsafe {
        gdt::load(percpu::area(cpu));
        percpu::install(cpu);
        idt::load();
        paging::load_root(kernel_map::top().address() as usize, paging::Context::KERNEL);
        cpu::enable()
    };
    if let Err(MissingFeatures(missing)) = enabled {
        log::error!("features missing: {missing:?}");
        PROGRESS.store(LACKS_FEATURES, Ordering::Release);
        arch_x86::interrupts::halt_forever();
    }
    enable_apic();
    thread::adopt_boot_context();
    interrupt::start_timer();
    ONLINE.add(cpu, Ordering::Release);
    PROGRESS.store(UP, Ordering::Release);
    thread::run_idle()
}

fn enable_apic() {
    apic::enable(Vector::Spurious as u8, Vector::Error as u8);
}

fn set_trap_stacks(cpu: CpuId) -> Result<(), SmpError> {
    for trap in TrapStack::ALL {
        let top = stack::map_trap_stack(cpu, trap)?;
        // SAFETY: the stack was just mapped for this purpose; the CPU is not up, or is this one and serves no trap.
        unsafe { gdt::set_trap_stack(percpu::area(cpu), trap, top) };
    }
    Ok(())
}

fn map_device(physical: u64) -> Result<usize, SmpError> {
    let mapped = frames::lend(|frames| kernel_map::device(physical, PAGE_SIZE, frames));
    Ok(mapped.ok_or(MapError::OutOfFrames)??)
}

mod tests;
