//! Which address space a thread is in, and which one its CPU has loaded.
//!
//! Rules:
//! - A CPU has loaded what its running thread is in. Under a thread that is in none it keeps what it had, lazily: the way
//!   back is cheap, and no flush interrupts it unless tables are freed. Such a thread uses no accessor of the user half.
//! - The idle thread is in none and gets the kernel's own table: a CPU without work has left every address space's mask
//!   before it halts, and no flush wakes it (design decision 10). So does a thread that leaves its address space itself,
//!   unless it does so lazily.
//! - A CPU's reference is never the last one: the thread it follows holds one until the CPU has loaded something else, and
//!   what a CPU keeps lazily it has no reference to. So no address space is torn down while threads are switched, with
//!   interrupts off.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem;
use core::ptr;

use arch_x86::machine::X86;
use arch_x86::percpu;
use mm::address_space::LoadedMm;
use mm::config::NR_CPUS;
use mm::sync::rcu;

use super::MmRef;
use crate::thread;

/// A thread's part: the address space it is in.
pub struct UserSlot(UnsafeCell<Option<MmRef>>);

// SAFETY: only the thread it belongs to changes it. Its CPU reads it when it switches to that thread, which does not run
// then; threads never change their CPU.
unsafe impl Sync for UserSlot {}

impl UserSlot {
    /// Of a thread that is in no address space.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }
}

/// What one CPU has loaded.
#[repr(align(64))]
struct CpuSlot(UnsafeCell<LoadedMm<X86>>);

// SAFETY: each CPU touches its own element only, and never in an interrupt handler.
unsafe impl Sync for CpuSlot {}

static LOADED: [CpuSlot; NR_CPUS] = [const { CpuSlot(UnsafeCell::new(LoadedMm::none(X86))) }; NR_CPUS];

/// Runs `change` with what this CPU has loaded.
fn with_loaded(change: impl FnOnce(&mut LoadedMm<X86>)) {
    let slot = &LOADED[percpu::cpu().index()];
    // SAFETY: this CPU's element. No `change` gives the CPU away or calls this function again: the reference that is
    // dropped is not the last one.
    change(unsafe { &mut *slot.0.get() });
}

/// Loads `mm` on this CPU unless it is loaded already, and not only lazily.
fn load(mm: Option<&MmRef>) {
    let address = |mm: &MmRef| ptr::from_ref(&**mm);
    with_loaded(|loaded| {
        if mm.is_none() || loaded.get().map(address) != mm.map(address) {
            loaded.switch_to(mm.cloned());
        }
    });
}

/// This CPU is about to run the thread with `next`, which is or is not the idle one; interrupts are off.
pub fn switch_to(next: &UserSlot, is_idle: bool) {
    rcu::quiescent(X86);
    // SAFETY: the thread does not run yet, so nobody changes the slot.
    match unsafe { &*next.0.get() } {
        None if !is_idle => with_loaded(LoadedMm::enter_lazy),
        mm => load(mm.as_ref()),
    }
}

/// Runs `work` with what the running thread is in. `work` must not enter or leave an address space.
pub(super) fn with_current<R>(work: impl FnOnce(Option<&MmRef>) -> R) -> R {
    let thread = thread::current();
    // SAFETY: the running thread is the only one to change its slot, and is here.
    work(unsafe { &*thread.user().0.get() }.as_ref())
}

/// The running thread is in an address space. Guards are dropped in the reverse order of their making.
#[must_use = "dropping it leaves the address space"]
pub struct Entered {
    previous: Option<MmRef>,
    lazily: bool,
    /// Belongs to the thread that made it.
    _not_send: PhantomData<*const ()>,
}

/// Puts the running thread into `mm`: from now on the accessors of the user half reach it (`kthread_use_mm`).
pub fn enter(mm: &MmRef) -> Entered {
    let thread = thread::current();
    // SAFETY: as in `with_current`; no reference into the slot is alive, since nothing between is running.
    let previous = unsafe { &mut *thread.user().0.get() }.replace(mm.clone());
    load(Some(mm));
    Entered { previous, lazily: false, _not_send: PhantomData }
}

impl Entered {
    /// Leaves the address space as a thread does that ends: the CPU keeps it lazily until it has another to load, or none has
    /// a reference any more (R37). From here on the accessors of the user half are not to be used: they would go by translations
    /// that no flush reaches.
    pub fn leave_lazily(mut self) {
        self.lazily = true;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let thread = thread::current();
        if self.lazily && self.previous.is_none() {
            with_loaded(LoadedMm::enter_lazy);
        } else {
            load(self.previous.as_ref());
        }
        // SAFETY: as in `enter`.
        let left = mem::replace(unsafe { &mut *thread.user().0.get() }, self.previous.take());
        // It may be the last reference, and the end of an address space sleeps: not before the slot is right again.
        drop(left);
    }
}
