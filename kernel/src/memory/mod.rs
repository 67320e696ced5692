//! `mm` in this kernel: its concrete types, the one value everything hangs off, and what calls it when.
//!
//! | when | what | where |
//! | --- | --- | --- |
//! | boot, with all CPUs up | the frames become `mm`'s | `take_over.rs` |
//! | a thread enters an address space; a CPU changes threads | the CPU loads what its thread is in | `user.rs` |
//! | a page fault in the user half | `handle_mm_fault` | `fault.rs` |
//! | flush interrupt; every interrupt | requests of other CPUs; a quiescent state | here |
//! | a CPU has nothing to do | memory whose grace period is over is freed | `idle.rs` |
//! | a panic, a hang | the locks of `mm` a CPU holds or waits for | `locks.rs` |
//! | after each test | nothing may be missing | `books.rs` |

mod books;
mod fault;
mod idle;
mod locks;
mod take_over;
mod user;

use arch_x86::machine::{self, Kernel, X86};
use mm::machine::Machine;
use mm::stats::StatsSnapshot;
use mm::sync::rcu;
use mm::tlb;
use spin::Once;

use crate::interrupt::{self, Hooks};
use crate::{report, smp, thread, trap};

pub use books::settle;
pub use take_over::take_over;
pub use user::{UserSlot, enter, switch_to};

/// The memory of this machine.
pub type Memory = mm::memory::Memory<X86>;
/// An address space.
pub type Mm = mm::address_space::Mm<X86>;
/// A reference to an address space.
pub type MmRef = mm::address_space::MmRef<X86>;
/// What to map.
pub type Mapping = mm::address_space::Mapping<X86>;
/// A memory object.
pub type Object = mm::object::Object<X86>;
/// A reference to a memory object.
pub type ObjectRef = mm::object::ObjectRef<X86>;

static MEMORY: Once<Memory> = Once::new();

/// The memory of this machine.
///
/// # Panics
/// Before [`take_over`].
pub fn memory() -> &'static Memory {
    match MEMORY.get() {
        Some(memory) => memory,
        None => panic!("mm has not taken the memory over yet"),
    }
}

/// What `mm` has counted, on all CPUs together.
pub fn statistics() -> StatsSnapshot {
    StatsSnapshot::sum(X86.cpus())
}

/// Puts `mm`'s functions where traps, interrupts, idle CPUs and reports find them. On the boot CPU, before any other CPU
/// starts and before the first thread: read-copy-update counts on seeing each CPU leave its idle loop.
pub fn prepare() {
    machine::set_kernel(Kernel {
        online: smp::online,
        block_while: thread::block_while,
        wake: thread::wake,
        with_mmap_locks: |look| look(thread::current().mmap_locks()),
        need_resched: thread::need_resched,
        cond_resched: thread::yield_now,
        stuck: |what| panic!("waited for {what} beyond any reason"),
        report_bad_entry: |level, entry| log::error!("a {level:?} table held {entry:?}, which is now cleared"),
    });
    interrupt::set_hooks(Hooks { flush: || tlb::service(X86), after_any: || rcu::on_interrupt(X86) });
    thread::set_idle_hooks(idle::HOOKS);
    trap::set_user_fault_handler(fault::handle);
    report::set_lock_lister(locks::list);
}
