//! Locks used wrongly, one way each, in kernels whose locks notice (`debug-locks`): the report must name the lock, its
//! owner, the places and the rule.

use alloc::boxed::Box;
use core::hint::spin_loop;
use core::mem::ManuallyDrop;

use arch_x86::machine::X86;
use arch_x86::{interrupts, percpu};
use mm::sync::rcu;
use mm::sync::rwlock::MmapLock;
use mm::sync::spin::SpinLock;
use mm::sync::{BuildLock, LockClass, RawLock};

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
    /// `mmap_lock` is taken under a page-table lock.
    Mmap,
    /// A grace period is waited for under a page-table lock.
    Grace,
    /// The CPU is given away under a page-table lock.
    Switch,
    /// A thread sleeps under a page-table lock.
    Sleep,
}

/// Their words on the command line.
pub const KINDS: [(&str, LockMisuse); 13] = [
    ("lock-twice", LockMisuse::Twice),
    ("lock-stranger", LockMisuse::Stranger),
    ("lock-unowned", LockMisuse::Unowned),
    ("lock-deaf", LockMisuse::Deaf),
    ("lock-freed", LockMisuse::Freed),
    ("lock-overwritten", LockMisuse::Overwritten),
    ("lock-stale", LockMisuse::Stale),
    ("lock-order", LockMisuse::Order),
    ("lock-address", LockMisuse::Address),
    ("lock-mmap", LockMisuse::Mmap),
    ("lock-grace", LockMisuse::Grace),
    ("lock-switch", LockMisuse::Switch),
    ("lock-sleep", LockMisuse::Sleep),
];

type Lock = SpinLock<(), BuildLock>;

/// Uses a lock so; returns if nobody noticed.
pub fn misuse(how: LockMisuse) {
    interrupts::enable();
    match how {
        LockMisuse::Order | LockMisuse::Address => out_of_order(how),
        LockMisuse::Stranger => unlocked_elsewhere(),
        LockMisuse::Mmap | LockMisuse::Grace | LockMisuse::Switch | LockMisuse::Sleep => wait_under_a_lock(how),
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
    let locks = [Lock::new(()), Lock::new(())];
    let (first, second) = match how {
        LockMisuse::Order => (LockClass::Pte, LockClass::Pmd),
        _ => (LockClass::Pte, LockClass::Pte),
    };
    let _outer = locks[1].lock(X86, first);
    let _inner = locks[0].lock(X86, second);
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
