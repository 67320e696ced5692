//! Segments, and two task-state segments for each CPU: the running one, which names the stack of ring 0, and that of the task
//! which serves a double fault, with a stack of its own. What was interrupted is then found in the running one.
//!
//! The base of one segment is the CPU's area; its selector stays in GS as long as the kernel runs.

use core::arch::asm;
use core::ptr;

use super::entry::TrapFrame;
use crate::control;
use crate::entry::dispatch;
use crate::idt::exception;
use crate::percpu::{self, PerCpu};

/// Exceptions with a stack of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TrapStack {
    /// Double fault: the stack in use was not writable.
    DoubleFault = 1,
}

impl TrapStack {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::DoubleFault];
}

// Selectors. `SYSENTER` and `SYSEXIT` expect the first four in this order.
pub(super) const KERNEL_CODE: u16 = 0x08;
pub(super) const KERNEL_DATA: u16 = 0x10;
/// The CPU's area.
pub(super) const PER_CPU: u16 = 0x28;
const TASK: u16 = 0x30;
pub(super) const DOUBLE_FAULT_TASK: u16 = 0x38;

/// Slots of the descriptor table: null, kernel code and data, user code and data, the area, two task-state segments.
const DESCRIPTORS: usize = 8;

// Types of segments, present (Intel SDM vol. 3, 3.4.5 and 3.5): accessed already, so that the CPU does not write them.
const CODE: u8 = 0x9b;
const DATA: u8 = 0x93;
const RING_3: u8 = 3 << 5;
const AVAILABLE_TASK: u8 = 0x89;
/// 32-bit, in units of pages.
const PAGES: u8 = 0xc;
const BYTES: u8 = 0;
/// All addresses, from any base: they wrap.
const ALL: u32 = 0xf_ffff;

const fn descriptor(base: u32, limit: u32, kind: u8, flags: u8) -> u64 {
    (limit as u64 & 0xffff)
        | (base as u64 & 0x00ff_ffff) << 16
        | (kind as u64) << 40
        | (limit as u64 >> 16 & 0xf) << 48
        | (flags as u64) << 52
        | (base as u64 >> 24) << 56
}

/// A task-state segment (Intel SDM vol. 3, 8.2.1).
#[derive(Clone, Copy)]
#[repr(C)]
struct TaskState {
    link: u32,
    esp0: u32,
    ss0: u32,
    rings_1_and_2: [u32; 4],
    cr3: u32,
    eip: u32,
    eflags: u32,
    eax: u32,
    ecx: u32,
    edx: u32,
    ebx: u32,
    esp: u32,
    ebp: u32,
    esi: u32,
    edi: u32,
    es: u32,
    cs: u32,
    ss: u32,
    ds: u32,
    fs: u32,
    gs: u32,
    ldt: u32,
    /// Beyond the segment's end: there is no map of ports.
    io_map: u32,
}

const TASK_STATE_BYTES: u32 = size_of::<TaskState>() as u32;
const _: () = assert!(TASK_STATE_BYTES == 104);

impl TaskState {
    const EMPTY: Self = Self {
        link: 0,
        esp0: 0,
        ss0: KERNEL_DATA as u32,
        rings_1_and_2: [0; 4],
        cr3: 0,
        eip: 0,
        // The bit that is always set; interrupts are off.
        eflags: 1 << 1,
        eax: 0,
        ecx: 0,
        edx: 0,
        ebx: 0,
        esp: 0,
        ebp: 0,
        esi: 0,
        edi: 0,
        es: KERNEL_DATA as u32,
        cs: KERNEL_CODE as u32,
        ss: KERNEL_DATA as u32,
        ds: KERNEL_DATA as u32,
        fs: 0,
        gs: PER_CPU as u32,
        ldt: 0,
        io_map: TASK_STATE_BYTES << 16,
    };
}

/// One CPU's descriptor table and task-state segments, in one page: the CPU goes by physical addresses when it changes tasks.
#[repr(C, align(512))]
pub(crate) struct Tables {
    gdt: [u64; DESCRIPTORS],
    task: TaskState,
    double_fault: TaskState,
}

const _: () = assert!(size_of::<Tables>() == 512);

impl Tables {
    pub(crate) const fn new() -> Self {
        Self { gdt: [0; DESCRIPTORS], task: TaskState::EMPTY, double_fault: TaskState::EMPTY }
    }

    pub(crate) fn set_ring0_stack(tables: *mut Self, top: usize) {
        // SAFETY: `tables` lies in a static area; the CPU reads the field only on a ring change, and a raw store
        // makes no reference to what it may be reading.
        unsafe { (&raw mut (*tables).task.esp0).write(top as u32) };
    }
}

/// Builds and loads the running CPU's descriptor table and task-state segment. The stack of a double fault is unset until
/// [`set_trap_stack`].
///
/// # Safety
/// Call once on each CPU, before interrupts are enabled, with `area` its own. Install the area after.
pub unsafe fn load(area: &'static PerCpu) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u32,
    }
    // SAFETY: the area is this CPU's own and nothing refers to its tables yet.
    let tables = unsafe { &mut *area.tables.get() };
    let base = |task: *const TaskState| task.addr() as u32;
    tables.gdt = [
        0,
        descriptor(0, ALL, CODE, PAGES),
        descriptor(0, ALL, DATA, PAGES),
        descriptor(0, ALL, CODE | RING_3, PAGES),
        descriptor(0, ALL, DATA | RING_3, PAGES),
        descriptor(ptr::from_ref(area).addr() as u32, ALL, DATA, PAGES),
        descriptor(base(&raw const tables.task), TASK_STATE_BYTES - 1, AVAILABLE_TASK, BYTES),
        descriptor(base(&raw const tables.double_fault), TASK_STATE_BYTES - 1, AVAILABLE_TASK, BYTES),
    ];
    let pointer = Pointer { limit: size_of_val(&tables.gdt) as u16 - 1, base: tables.gdt.as_ptr().addr() as u32 };
    // SAFETY: table and segments stay in place for good, and the selectors are those just made.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {code}",
            "lea {scratch}, [2f]",
            "push {scratch}",
            "retf",
            "2:",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov ss, {data:x}",
            "xor {scratch:e}, {scratch:e}",
            "mov fs, {scratch:x}",
            "mov gs, {scratch:x}",
            "ltr {task:x}",
            pointer = in(reg) &raw const pointer,
            code = const KERNEL_CODE,
            data = in(reg) KERNEL_DATA,
            task = in(reg) TASK,
            scratch = out(reg) _,
        );
    }
}

/// Makes `area` the base of the running CPU's GS segment.
///
/// # Safety
/// The area must be this CPU's own, and the one it was given to [`load`] with.
pub(crate) unsafe fn set_base(_area: &'static PerCpu) {
    // SAFETY: the segment's base is the area; what is found there is this CPU's for good.
    unsafe { asm!("mov gs, {:x}", in(reg) PER_CPU, options(nostack, preserves_flags)) };
}

/// Gives CPU `area` the stack that ends at `top` for `stack`; the trap will be served with the page tables in use now.
///
/// # Safety
/// The memory below `top` must be mapped, writable, used by nothing else and stay so for good; it must be roomy
/// enough for the trap's handler. No such trap may be in service on that CPU. The page tables must be the kernel's own, or a
/// loader's that nobody changes until the next call.
pub unsafe fn set_trap_stack(area: &'static PerCpu, stack: TrapStack, top: usize) {
    let task = match stack {
        // SAFETY: the tables are in a static.
        TrapStack::DoubleFault => unsafe { &raw mut (*area.tables.get()).double_fault },
    };
    // SAFETY: the CPU reads the task's state only when such a trap comes, and raw stores make no reference to what it may be
    // reading.
    unsafe {
        // The CPU pushes the error code, which stands where a function finds its return address: a multiple of 16 above.
        (&raw mut (*task).esp).write(top as u32 - 16);
        (&raw mut (*task).eip).write(double_fault as *const () as u32);
        (&raw mut (*task).cr3).write(control::cr3() as u32);
    }
}

/// The task a double fault switches to. It cannot go back: what was interrupted may have been in the midst of anything.
extern "C" fn double_fault() -> ! {
    // SAFETY: the CPU wrote the interrupted registers there when it changed tasks, and writes no more.
    let task = unsafe { (&raw const (*percpu::current().tables.get()).task).read_volatile() };
    let mut frame = TrapFrame {
        stack: task.esp,
        gs: task.gs,
        fs: task.fs,
        es: task.es,
        ds: task.ds,
        edi: task.edi,
        esi: task.esi,
        ebp: task.ebp,
        ebx: task.ebx,
        edx: task.edx,
        ecx: task.ecx,
        eax: task.eax,
        vector: exception::DOUBLE_FAULT as u32,
        error_code: 0,
        eip: task.eip,
        cs: task.cs,
        eflags: task.eflags,
        esp: task.esp,
        ss: task.ss,
    };
    // SAFETY: the frame is this function's own.
    unsafe { dispatch(&raw mut frame) };
    unreachable!("a double fault cannot be returned from")
}
