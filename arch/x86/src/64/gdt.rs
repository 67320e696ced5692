//! Segments, the task-state segment and the stacks it names: one set per CPU.
//!
//! Double fault, non-maskable interrupt and debug or machine check switch to stacks of their own, because they may
//! come when the stack in use is not usable. At the top of each such stack lies the address of the CPU's area: the
//! entry stub takes it from there, since the GS base cannot be trusted at those moments.

use core::ptr;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use crate::msr;
use crate::percpu::PerCpu;

/// Exceptions with a stack of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TrapStack {
    /// Double fault: the stack in use was not writable.
    DoubleFault = 1,
    /// Non-maskable interrupt.
    NonMaskable = 2,
    /// Debug exception and machine check.
    DebugOrMachineCheck = 3,
}

impl TrapStack {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DoubleFault, Self::NonMaskable, Self::DebugOrMachineCheck];
}

/// Bytes kept at the top of a trap stack for the address of the CPU's area.
const TRAP_STACK_HEADER: u64 = 16;

/// Slots of the descriptor table: null, two kernel segments, two user segments, and two for the TSS.
const DESCRIPTORS: usize = 7;

/// One CPU's descriptor table and task-state segment.
pub(crate) struct Tables {
    gdt: GlobalDescriptorTable<DESCRIPTORS>,
    tss: TaskStateSegment,
}

impl Tables {
    pub(crate) const fn new() -> Self {
        Self { gdt: GlobalDescriptorTable::empty(), tss: TaskStateSegment::new() }
    }

    pub(crate) fn set_ring0_stack(tables: *mut Self, top: usize) {
        // SAFETY: `tables` lies in a static area; the CPU reads the TSS only on a ring change, and a raw store
        // makes no reference to what it may be reading.
        unsafe { (&raw mut (*tables).tss.privilege_stack_table[0]).write_unaligned(VirtAddr::new(top as u64)) };
    }
}

/// Builds and loads the running CPU's descriptor table and task-state segment. Its trap stacks are unset until
/// [`set_trap_stack`].
///
/// # Safety
/// Call once on each CPU, before interrupts are enabled, with `area` its own. GS is set anew: install the area after.
pub unsafe fn load(area: &'static PerCpu) {
    // SAFETY: the area is this CPU's own and nothing refers to its tables yet.
    let Tables { gdt, tss } = unsafe { &mut *area.tables.get() };
    let kernel_code = gdt.append(Descriptor::kernel_code_segment());
    let kernel_data = gdt.append(Descriptor::kernel_data_segment());
    // `SYSRET` expects user data just below user code.
    gdt.append(Descriptor::user_data_segment());
    gdt.append(Descriptor::user_code_segment());
    // SAFETY: the TSS lies in a static.
    let tss = gdt.append(unsafe { Descriptor::tss_segment_unchecked(ptr::from_ref(tss)) });
    // SAFETY: table and segments stay in place for good, and the selectors are those just made.
    unsafe {
        gdt.load_unsafe();
        CS::set_reg(kernel_code);
        SS::set_reg(kernel_data);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(tss);
    }
}

/// Makes `area` the base of the running CPU's GS segment.
///
/// # Safety
/// The area must be this CPU's own.
pub(crate) unsafe fn set_base(area: &'static PerCpu) {
    // SAFETY: the base is a kernel address; what is found there is this CPU's area for good.
    unsafe { msr::write(msr::GS_BASE, ptr::from_ref(area).addr() as u64) };
}

/// Gives CPU `area` the stack that ends at `top` for `stack`.
///
/// # Safety
/// The memory below `top` must be mapped, writable, used by nothing else and stay so for good; it must be roomy
/// enough for the trap's handler. No such trap may be in service on that CPU.
pub unsafe fn set_trap_stack(area: &'static PerCpu, stack: TrapStack, top: usize) {
    let header = top as u64 - TRAP_STACK_HEADER;
    // SAFETY: the header lies in the stack, which the caller hands over; the TSS is in a static and is read by its
    // CPU only when such a trap comes.
    unsafe {
        (header as *mut *const PerCpu).write(area);
        let slot = &raw mut (*area.tables.get()).tss.interrupt_stack_table[stack as usize - 1];
        slot.write_unaligned(VirtAddr::new(header));
    }
}
