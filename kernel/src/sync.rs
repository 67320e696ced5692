//! The lock of the kernel crate itself: for queues and tables that interrupt handlers touch too.
//!
//! Rules. Held with interrupts off, for a short, bounded time. Waited for with interrupts as the caller had them, so a
//! waiter still answers other CPUs (I24), and for a minute at most. Nothing waits for another CPU while it holds one. Every acquisition is
//! counted on its CPU, because a test asserts how many locks of any kind a page fault takes; every lock held or waited
//! for is on record for the panic and hang reports.

use core::ops::{Deref, DerefMut};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use arch_x86::{interrupts, percpu, time};
use mm::config::NR_CPUS;
use mm::cpu::CpuId;
use mm::sync::atomic::plain::Solo64;
use spin::{Mutex, MutexGuard};

/// Locks of this kind one CPU may hold at once and still have on record.
const RECORDED: usize = 8;

/// Nanoseconds after which a wait can only be a bug.
const STUCK_AFTER: u64 = 60_000_000_000;
/// How often a waiter polls between two looks at the clock.
const POLLS_PER_LOOK: u64 = 1024;

/// What a lock protects, in the words of the reports.
#[derive(Debug)]
pub struct LockName(pub &'static str);

/// A short lock, held with interrupts off.
pub struct Spin<T> {
    name: &'static LockName,
    inner: Mutex<T>,
}

impl<T> Spin<T> {
    /// A free lock around `value`.
    pub const fn new(name: &'static LockName, value: T) -> Self {
        Self { name, inner: Mutex::new(value) }
    }

    /// Takes the lock and turns interrupts off until it is dropped.
    ///
    /// # Panics
    /// After a minute of waiting, which can only be a bug. The watchdog normally speaks up long before.
    pub fn lock(&self) -> SpinGuard<'_, T> {
        self.lock_within(STUCK_AFTER)
    }

    /// As [`lock`](Self::lock), with the patience of so many nanoseconds.
    pub fn lock_within(&self, limit: u64) -> SpinGuard<'_, T> {
        let address = ptr::from_ref(self).addr();
        let (mut waiting, mut since, mut polls) = (None, None, 0_u64);
        loop {
            let saved = interrupts::save_and_disable();
            if let Some(inner) = self.inner.try_lock() {
                let record = &RECORDS[percpu::cpu().index()];
                drop(waiting);
                record.acquisitions.set(record.acquisitions.get() + 1);
                let held = Held::enter(&record.held, self.name, address);
                return SpinGuard { inner, _held: held, _interrupts: RestoreInterrupts(saved) };
            }
            interrupts::restore(saved);
            waiting.get_or_insert_with(|| {
                Held::enter(core::slice::from_ref(&RECORDS[percpu::cpu().index()].waiting), self.name, address)
            });
            while self.inner.is_locked() {
                core::hint::spin_loop();
                polls += 1;
                if polls.is_multiple_of(POLLS_PER_LOOK) {
                    let now = time::now_nanos();
                    let waited = now.saturating_sub(*since.get_or_insert(now));
                    assert!(waited <= limit, "waited for {} {address:#x} beyond any reason", self.name.0);
                }
            }
        }
    }
}

/// Proof that a [`Spin`] is held, and the way to what it protects. The fields are dropped in this order.
pub struct SpinGuard<'a, T> {
    inner: MutexGuard<'a, T>,
    _held: Held,
    _interrupts: RestoreInterrupts,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

struct RestoreInterrupts(interrupts::Saved);

impl Drop for RestoreInterrupts {
    fn drop(&mut self) {
        interrupts::restore(self.0);
    }
}

/// What one CPU does with locks. Written by that CPU alone; read relaxed by reports, which may see a line that is just
/// changing and then name a lock that was let go a moment ago.
#[repr(align(128))]
struct Record {
    acquisitions: Solo64,
    held: [Slot; RECORDED],
    waiting: Slot,
}

struct Slot {
    name: AtomicPtr<LockName>,
    address: AtomicUsize,
}

impl Slot {
    const fn new() -> Self {
        Self { name: AtomicPtr::new(ptr::null_mut()), address: AtomicUsize::new(0) }
    }

    fn read(&self) -> Option<(&'static str, usize)> {
        // SAFETY: only null and pointers made from `&'static LockName` are ever stored.
        let name = unsafe { self.name.load(Ordering::Relaxed).as_ref() }?;
        Some((name.0, self.address.load(Ordering::Relaxed)))
    }
}

static RECORDS: [Record; NR_CPUS] =
    [const { Record { acquisitions: Solo64::new(0), held: [const { Slot::new() }; RECORDED], waiting: Slot::new() } };
        NR_CPUS];

/// A line of the record, cleared when dropped.
struct Held(Option<&'static Slot>);

impl Held {
    fn enter(slots: &'static [Slot], name: &'static LockName, address: usize) -> Self {
        let free = slots.iter().find(|slot| slot.name.load(Ordering::Relaxed).is_null());
        if let Some(slot) = free {
            slot.address.store(address, Ordering::Relaxed);
            slot.name.store(ptr::from_ref(name).cast_mut(), Ordering::Relaxed);
        }
        Self(free)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.name.store(ptr::null_mut(), Ordering::Relaxed);
        }
    }
}

/// How many locks of this module `cpu` has taken so far.
pub fn acquisitions(cpu: CpuId) -> u64 {
    RECORDS[cpu.index()].acquisitions.get()
}

/// The locks of this module that `cpu` holds: name and address.
pub fn held_by(cpu: CpuId) -> impl Iterator<Item = (&'static str, usize)> {
    RECORDS[cpu.index()].held.iter().filter_map(Slot::read)
}

/// The lock of this module that `cpu` waits for.
pub fn awaited_by(cpu: CpuId) -> Option<(&'static str, usize)> {
    RECORDS[cpu.index()].waiting.read()
}

mod tests;
