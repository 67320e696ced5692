//! Locks used wrongly, one way each, in kernels whose locks notice (`debug-locks`): the report must name the lock, its
//! owner, the places and the rule.

use alloc::boxed::Box;
use core::hint::spin_loop;
use core::mem::{ManuallyDrop, MaybeUninit};

use arch_x86::machine::X86;
use arch_x86::{interrupts, percpu};
use mm::sync::rcu;
use mm::sync::rwlock::MmapLock;
use mm::sync::spin::SpinLock;
use mm::sync::{BuildLock, LockClass, Nesting, RawLock};

use crate::memory::memory;
use crate::{smp, thread};

/// A way to use a lock wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMisuse {
    /// One CPU takes it twice.
    Twice,
    /// A CPU gives up what another has taken.
    Stranger,
    /// A CPU gives up what nobody has taken.
    Unowned,
    /// A CPU takes it with interrupts off.
    Deaf,
    /// It is destroyed while it is held.
    Freed,
    /// A new one is put where one is held.
    Overwritten,
    /// It is taken after it was destroyed.
    Stale,
    /// A PMD lock is waited for under a PTE lock.
    Order,
    /// Of two PTE locks the one with the higher address is taken first.
    Address,
    /// Of three PMD locks two are declared as `SINGLE_DEPTH_NESTING`.
    Depth,
    /// A leaf is waited for under a leaf.
    Leaf,
    /// `mmap_lock` is taken under a page-table lock.
    Mmap,
    /// A grace period is waited for under a page-table lock.
    Grace,
    /// The CPU is given away under a page-table lock.
    Switch,
    /// A thread sleeps under a page-table lock.
    Sleep,
    /// What is taken is no lock.
    None,
    /// A lock is destroyed twice.
    FreedTwice,
    /// One thread takes `mmap_lock` for reading and then for writing.
    MmapTwice,
}

/// Their words on the command line.
pub const KINDS: [(&str, LockMisuse); 18] = [
    ("lock-twice", LockMisuse::Twice),
    ("lock-stranger", LockMisuse::Stranger),
    ("lock-unowned", LockMisuse::Unowned),
    ("lock-deaf", LockMisuse::Deaf),
    ("lock-freed", LockMisuse::Freed),
    ("lock-overwritten", LockMisuse::Overwritten),
    ("lock-stale", LockMisuse::Stale),
    ("lock-order", LockMisuse::Order),
    ("lock-address", LockMisuse::Address),
    ("lock-depth", LockMisuse::Depth),
    ("lock-leaf", LockMisuse::Leaf),
    ("lock-mmap", LockMisuse::Mmap),
    ("lock-grace", LockMisuse::Grace),
    ("lock-switch", LockMisuse::Switch),
    ("lock-sleep", LockMisuse::Sleep),
    ("lock-none", LockMisuse::None),
    ("lock-freed-twice", LockMisuse::FreedTwice),
    ("lock-mmap-twice", LockMisuse::MmapTwice),
];

type Lock = SpinLock<(), BuildLock>;

/// Uses a lock so; returns if nobody noticed.
pub fn misuse(how: LockMisuse) {
    interrupts::enable();
    match how {
        LockMisuse::Order | LockMisuse::Address | LockMisuse::Depth | LockMisuse::Leaf => out_of_order(how),
        LockMisuse::Stranger => unlocked_elsewhere(),
        LockMisuse::Mmap | LockMisuse::Grace | LockMisuse::Switch | LockMisuse::Sleep => wait_under_a_lock(how),
        LockMisuse::MmapTwice => mmap_lock_twice(),
        _ => one_lock(how),
    }
}

fn one_lock(how: LockMisuse) {
    let mut lock = ManuallyDrop::new(BuildLock::new());
    let take = |lock: &BuildLock| lock.lock(X86, LockClass::Pte);
    match how {
        LockMisuse::Twice => {
            take(&lock);
            take(&lock);
        }
        // SAFETY: none; that nobody holds the lock is what must be noticed.
        LockMisuse::Unowned => unsafe { lock.unlock(X86) },
        LockMisuse::Deaf => {
            interrupts::disable();
            take(&lock);
        }
        LockMisuse::Freed => {
            take(&lock);
            // SAFETY: the lock is not used again.
            unsafe { ManuallyDrop::drop(&mut lock) }
        }
        LockMisuse::Overwritten => {
            take(&lock);
            *lock = BuildLock::new();
        }
        LockMisuse::None => {
            // SAFETY: numbers and a pointer, for all of which zero is a value.
            *lock = unsafe { MaybeUninit::zeroed().assume_init() };
            take(&lock);
        }
        LockMisuse::FreedTwice => {
            for _ in 0..2 {
                // SAFETY: the memory stays, and the lock has nothing that could be freed twice.
                unsafe { ManuallyDrop::drop(&mut lock) }
            }
        }
        _ => {
            // SAFETY: the memory stays, and the lock has nothing that could be freed twice.
            unsafe { ManuallyDrop::drop(&mut lock) }
            take(&lock);
        }
    }
}

fn unlocked_elsewhere() {
    let lock: &'static BuildLock = Box::leak(Box::new(BuildLock::new()));
    lock.lock(X86, LockClass::Pte);
    let Some(other) = smp::online().without(percpu::cpu()).iter().next() else { return };
    // SAFETY: none; that the lock is another CPU's is what must be noticed.
    let stranger = thread::spawn_on(other, "stranger", || unsafe { lock.unlock(X86) });
    // A CPU that has a lock may not sleep. If nobody notices, the watchdog does.
    while stranger.is_ok() {
        spin_loop();
    }
}

fn out_of_order(how: LockMisuse) {
    let locks = [Lock::new(()), Lock::new(()), Lock::new(())];
    let (first, second) = match how {
        LockMisuse::Order => (LockClass::Pte, LockClass::Pmd),
        LockMisuse::Address => (LockClass::Pte, LockClass::Pte),
        LockMisuse::Leaf => (LockClass::Slab, LockClass::Zone),
        _ => return two_deep(&locks),
    };
    let _outer = locks[1].lock(X86, first);
    let _inner = locks[0].lock(X86, second);
}

fn two_deep(locks: &[Lock; 3]) {
    let _outer = locks[2].lock(X86, LockClass::Pmd);
    let _inner = locks[1].lock_nested(X86, LockClass::Pmd, Nesting::SingleDepth);
    let _innermost = locks[0].lock_nested(X86, LockClass::Pmd, Nesting::SingleDepth);
}

/// With a context switch in between: the note goes with the thread.
fn mmap_lock_twice() {
    let lock = MmapLock::new();
    let _reading = lock.read(X86);
    thread::sleep(10_000_000);
    let _writing = lock.write(X86);
}

fn wait_under_a_lock(how: LockMisuse) {
    let lock = Lock::new(());
    let _held = lock.lock(X86, LockClass::Pte);
    match how {
        LockMisuse::Mmap => drop(MmapLock::new().write(X86)),
        LockMisuse::Grace => rcu::synchronize(memory().rcu(), X86),
        LockMisuse::Switch => thread::yield_now(),
        _ => thread::block_while(0, &mut || false),
    }
}
