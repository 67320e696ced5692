//! Changing from one kernel stack to another. Kernel code uses no floating-point or vector state, so a kernel thread
//! is its stack and the registers a function call preserves.

use core::arch::{asm, naked_asm};

/// Leaves the running thread's context on its stack, tells where in `*previous`, and continues the context `next`.
/// Returns when somebody switches back to what was stored in `*previous`.
///
/// # Safety
/// `next` must come from [`prepare`] or from an earlier switch away, be continued only once, and its stack must be
/// mapped. Interrupts must be off. `previous` must be writable until the switch is done.
#[unsafe(naked)]
pub unsafe extern "C" fn switch_stacks(previous: *mut usize, next: usize) {
    naked_asm!(
        "mov eax, [esp + 4]",
        "mov edx, [esp + 8]",
        "push ebp",
        "push ebx",
        "push esi",
        "push edi",
        "mov [eax], esp",
        "mov esp, edx",
        "pop edi",
        "pop esi",
        "pop ebx",
        "pop ebp",
        "ret",
    )
}

/// Lays out a fresh stack so that the first switch to the returned context calls `entry(argument)`, with interrupts as
/// they are at the switch.
///
/// # Safety
/// The memory below `top`, which must be a multiple of 16, must be a mapped stack that nothing else uses.
#[must_use]
pub unsafe fn prepare(top: usize, entry: extern "C" fn(usize) -> !, argument: usize) -> usize {
    let context: [usize; 8] = [
        entry as usize,              // edi
        argument,                    // esi
        0,                           // ebx
        0,                           // ebp: ends the chain of frames
        begin as *const () as usize, // return address
        0,                           // with the argument, keeps the stack pointer a multiple of 16 in `begin`
        0,
        0,
    ];
    let bottom = top - size_of_val(&context);
    // SAFETY: the caller hands over the stack, which is larger than these words.
    unsafe { (bottom as *mut [usize; 8]).write(context) };
    bottom
}

/// First instructions of a thread: hands the argument over as the calling convention has it, on the stack.
#[unsafe(naked)]
unsafe extern "C" fn begin() {
    naked_asm!("push esi", "call edi", "ud2")
}

/// Loads the root table at `root`, and goes on in `entry` on the stack that ends at `stack_top`, with interrupts off.
///
/// # Safety
/// As [`activate`](crate::kernel_map::activate).
pub(crate) unsafe fn leave_boot(root: usize, stack_top: usize, entry: extern "C" fn() -> !) -> ! {
    // SAFETY: the caller vouches for tree and stack; code and statics stay where they are.
    unsafe {
        asm!(
            "cli",
            "mov cr3, {root}",
            // A multiple of 16, and room at the top for what `TrapFrame` asks for.
            "lea esp, [{stack} - 16]",
            "xor ebp, ebp",
            "call {entry}",
            "ud2",
            root = in(reg) root,
            stack = in(reg) stack_top,
            entry = in(reg) entry,
            options(noreturn),
        )
    }
}
