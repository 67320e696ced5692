//! The per-CPU area: what a CPU must find by itself, through its GS segment, whose base it is.
//!
//! Areas are a static array, so a CPU has one before there is memory to allocate, and any CPU may look at any
//! other's. Kernel data per CPU is an array of the kernel's own, indexed by [`cpu`]. Threads never change their CPU,
//! so what [`cpu`] returned stays true for the rest of a function.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use mm::config::NR_CPUS;
use mm::cpu::CpuId;

use crate::bits::gdt::{self, Tables};

/// One CPU's area. The entry stubs know the offsets of its first fields.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Address of this area: turns the segment base into a pointer with one load.
    this: AtomicUsize,
    number: AtomicU32,
    apic_id: AtomicU32,
    /// Where a ring change to the kernel puts the stack pointer; the same value as in the TSS.
    kernel_stack_top: AtomicUsize,
    pub(crate) tables: UnsafeCell<Tables>,
}

// SAFETY: the atomics may be shared; `tables` is touched only by its own CPU, or before that CPU runs.
unsafe impl Sync for PerCpu {}

static AREAS: [PerCpu; NR_CPUS] = [const { PerCpu::new() }; NR_CPUS];

impl PerCpu {
    const fn new() -> Self {
        Self {
            this: AtomicUsize::new(0),
            number: AtomicU32::new(0),
            apic_id: AtomicU32::new(u32::MAX),
            kernel_stack_top: AtomicUsize::new(0),
            tables: UnsafeCell::new(Tables::new()),
        }
    }

    /// This CPU's number in the local APICs' addressing.
    #[must_use]
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Number of the CPU, from 0 for the boot CPU.
    #[must_use]
    pub fn number(&self) -> CpuId {
        CpuId(self.number.load(Ordering::Relaxed))
    }

    /// Sets the stack that the next entry from ring 3 starts on.
    pub fn set_kernel_stack(&self, top: usize) {
        self.kernel_stack_top.store(top, Ordering::Relaxed);
        Tables::set_ring0_stack(self.tables.get(), top);
    }
}

/// The area of CPU `cpu`.
///
/// # Panics
/// If `cpu` is not below [`NR_CPUS`].
#[must_use]
pub fn area(cpu: CpuId) -> &'static PerCpu {
    &AREAS[cpu.index()]
}

/// Number of the running CPU.
#[must_use]
pub fn cpu() -> CpuId {
    let number: u32;
    // SAFETY: `install` has pointed GS at this CPU's area before anything else ran on it.
    unsafe {
        asm!(
            "mov {:e}, gs:[{}]",
            out(reg) number,
            const offset_of!(PerCpu, number),
            options(nostack, preserves_flags, readonly),
        );
    }
    CpuId(number)
}

/// The running CPU's area.
#[must_use]
pub fn current() -> &'static PerCpu {
    area(cpu())
}

/// Fills CPU `cpu`'s area before that CPU runs. `apic_id` may be unknown (`u32::MAX`) for the boot CPU at first.
pub fn prepare(cpu: CpuId, apic_id: u32) {
    let area = area(cpu);
    area.this.store(core::ptr::from_ref(area).addr(), Ordering::Relaxed);
    area.number.store(cpu.0, Ordering::Relaxed);
    area.apic_id.store(apic_id, Ordering::Relaxed);
}

/// Makes CPU `cpu`'s area the running CPU's. The first thing a CPU does in the kernel.
///
/// # Safety
/// The running CPU must be the only one ever to install `cpu`, after [`prepare`] and [`gdt::load`].
pub unsafe fn install(cpu: CpuId) {
    // SAFETY: the caller vouches for the area, which is this CPU's for good.
    unsafe { gdt::set_base(area(cpu)) };
}
