//! `mmap_lock`: the sleeping reader-writer lock of an address space.
//!
//! Readers and writers take turns. A waiting writer keeps new readers out; when a writer leaves, all readers that wait at
//! that moment get in together. So neither side starves the other, and the faults that fall back to this lock get
//! through a storm of `munmap`s.
//!
//! ```text
//!   63       62    59           40 39           20 19            0
//! +--------+-------+--------------+---------------+--------------+
//! | writer | phase | writers wait | readers wait  | readers hold |
//! +--------+-------+--------------+---------------+--------------+
//! ```
//!
//! A leaving writer turns waiting readers into holding ones and flips the phase: a reader that waits holds the lock as
//! soon as the phase is no longer the one it began to wait in. It cannot flip twice unseen, because the next writer has
//! to wait for that reader.
//!
//! No wake-up is lost. Every change of the word is an RMW, and a sleeper is counted in it by the RMW that decided to
//! wait. The RMW that ends its wait comes later in the word's order, so it sees the count and calls `wake`. The sleeper
//! asks once more inside `block_while`, which excludes `wake`: it sees that RMW and does not sleep, or it sleeps first
//! and is woken.

use super::atomic::{AtomicUsize, Ordering};
use super::{order, rcu};
use crate::machine::Machine;
use crate::stats::Counter;
use core::marker::PhantomData;

/// Of each of three counts.
const COUNT_BITS: u32 = (usize::BITS - 2) / 3;
const COUNT: usize = (1 << COUNT_BITS) - 1;
const READER: usize = 1;
const READERS: usize = COUNT;
const WAITING_READER: usize = 1 << COUNT_BITS;
const WAITING_WRITER: usize = 1 << (2 * COUNT_BITS);
const WAITING_WRITERS: usize = COUNT << (2 * COUNT_BITS);
const PHASE: usize = 1 << (usize::BITS - 2);
const WRITER: usize = 1 << (usize::BITS - 1);

/// The lock. Threads wait for it by sleeping: never under another lock or in a read section.
pub struct MmapLock(AtomicUsize);

impl MmapLock {
    /// Threads that may have one lock, or wait for it, at once. Whoever runs threads has no more: each has a stack.
    pub const MAX_THREADS: usize = COUNT;

    /// A free lock.
    pub fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Takes the lock for reading. Not twice by one thread: a writer that waits in between would stop both.
    #[track_caller]
    pub fn read<M: Machine>(&self, machine: M) -> MmapReadGuard<'_, M> {
        self.assert_may_take(machine);
        let mut word = self.0.load(Ordering::Relaxed);
        let waited_since = loop {
            let free = word & (WRITER | WAITING_WRITERS) == 0;
            let next = word + if free { READER } else { WAITING_READER };
            // Acquire pairs with the Release of the last writer, directly or through the RMWs since.
            match self.0.compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) if free => break None,
                Ok(_) => break Some(word & PHASE),
                Err(now) => word = now,
            }
        };
        if let Some(phase) = waited_since {
            self.sleep_while(machine, |word| word & PHASE == phase);
        }
        self.note_taken(machine);
        MmapReadGuard { lock: self, machine, not_send: PhantomData }
    }

    /// Takes the lock for writing. Not if the thread has it already.
    #[track_caller]
    pub fn write<M: Machine>(&self, machine: M) -> MmapWriteGuard<'_, M> {
        self.assert_may_take(machine);
        // Relaxed: taking the lock, below, is what acquires.
        let mut word = self.0.fetch_add(WAITING_WRITER, Ordering::Relaxed) + WAITING_WRITER;
        loop {
            if word & (WRITER | READERS) != 0 {
                word = self.sleep_while(machine, |word| word & (WRITER | READERS) != 0);
            }
            let taken = (word - WAITING_WRITER) | WRITER;
            // Acquire pairs with the Release of the last writer and of all readers since.
            match self.0.compare_exchange_weak(word, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    self.note_taken(machine);
                    return MmapWriteGuard { lock: self, machine, not_send: PhantomData };
                }
                Err(now) => word = now,
            }
        }
    }

    /// Whether a thread sleeps until it may read.
    #[cfg(all(test, not(any(loom, feature = "single-lock"))))]
    pub(crate) fn has_waiting_readers(&self) -> bool {
        self.0.load(Ordering::Relaxed) >> COUNT_BITS & COUNT > 0
    }

    /// Sleeps until the word no longer is as `still` describes, and returns it.
    fn sleep_while<M: Machine>(&self, machine: M, still: impl Fn(usize) -> bool) -> usize {
        loop {
            // Acquire: a reader owns the lock by what it reads here; pairs with the Release in `unlock_write`.
            let word = self.0.load(Ordering::Acquire);
            if !still(word) {
                return word;
            }
            machine.block_while(self.key(), &mut || still(self.0.load(Ordering::Acquire)));
        }
    }

    #[track_caller]
    fn assert_may_take<M: Machine>(&self, machine: M) {
        order::assert_may_wait(machine, "mmap_lock");
        debug_assert!(!rcu::in_read_section(machine), "mmap_lock is taken in a read section (I25)");
        order::check_mmap_lock(machine, self.key());
    }

    #[track_caller]
    fn note_taken<M: Machine>(&self, machine: M) {
        order::note_mmap_lock(machine, self.key());
        // On the CPU the thread has it on: perhaps another than it began to wait on.
        machine.local().stats.bump(Counter::MmapLockTaken);
    }

    fn unlock_read<M: Machine>(&self, machine: M) {
        let key = self.key();
        order::forget_mmap_lock(machine, key);
        // Release: the next writer comes after what this reader did.
        let before = self.0.fetch_sub(READER, Ordering::Release);
        if before & READERS == READER && before & WAITING_WRITERS != 0 {
            machine.wake(key);
        }
    }

    fn unlock_write<M: Machine>(&self, machine: M) {
        let key = self.key();
        order::forget_mmap_lock(machine, key);
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let readers = word >> COUNT_BITS & COUNT;
            let mut next = word & !WRITER;
            if readers > 0 {
                next = (next - readers * WAITING_READER + readers * READER) ^ PHASE;
            }
            // Release: readers and writers from here on come after what this writer did.
            match self.0.compare_exchange_weak(word, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) if readers > 0 || word & WAITING_WRITERS != 0 => return machine.wake(key),
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    fn key(&self) -> usize {
        (&raw const self.0).addr()
    }
}

impl Default for MmapLock {
    fn default() -> Self {
        Self::new()
    }
}

/// The lock held for reading.
#[must_use = "dropping the guard gives the lock up"]
pub struct MmapReadGuard<'a, M: Machine> {
    lock: &'a MmapLock,
    machine: M,
    not_send: PhantomData<*mut ()>,
}

impl<M: Machine> Drop for MmapReadGuard<'_, M> {
    fn drop(&mut self) {
        self.lock.unlock_read(self.machine);
    }
}

/// The lock held for writing.
#[must_use = "dropping the guard gives the lock up"]
pub struct MmapWriteGuard<'a, M: Machine> {
    lock: &'a MmapLock,
    machine: M,
    not_send: PhantomData<*mut ()>,
}

impl<M: Machine> Drop for MmapWriteGuard<'_, M> {
    fn drop(&mut self) {
        self.lock.unlock_write(self.machine);
    }
}

/// Proof that `mmap_lock` of some address space is held, for reading or for writing: no region comes or goes.
pub trait MmapHeld {}

impl<M: Machine> MmapHeld for MmapReadGuard<'_, M> {}
impl<M: Machine> MmapHeld for MmapWriteGuard<'_, M> {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{COUNT, COUNT_BITS, MmapLock, READERS, WAITING_WRITERS, WRITER};
    use crate::cpu::CpuId;
    use crate::machine::Machine;
    use crate::sync::atomic::{AtomicUsize, Ordering};
    use crate::sync::testing::{TestMachine, machine};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Waits until the word of `lock` is as `wanted` says.
    fn await_word(lock: &MmapLock, machine: TestMachine, wanted: impl Fn(usize) -> bool) {
        while !wanted(lock.0.load(Ordering::Relaxed)) {
            machine.pause();
        }
    }

    fn waiting_readers(word: usize) -> usize {
        word >> COUNT_BITS & COUNT
    }

    fn is_held(word: usize) -> bool {
        word & (super::WRITER | READERS) != 0
    }

    /// By one thread, in each of the ways that would stop it; what was held is free again afterwards. The report has both
    /// places.
    #[test]
    fn taking_the_lock_twice_is_reported() {
        let sim = machine(1, 0, 1);
        let machine = sim.handle();
        let ways: [fn(&MmapLock, TestMachine); 4] = [
            |lock, machine| drop((lock.read(machine), lock.read(machine))),
            |lock, machine| drop((lock.read(machine), lock.write(machine))),
            |lock, machine| drop((lock.write(machine), lock.read(machine))),
            |lock, machine| drop((lock.write(machine), lock.write(machine))),
        ];
        for (way, take_twice) in ways.iter().enumerate() {
            let lock = MmapLock::new();
            let result = machine.run_cpu(CpuId(0), || catch_unwind(AssertUnwindSafe(|| take_twice(&lock, machine))));
            let report = *result.expect_err("nothing was noticed").downcast::<String>().expect("a report");
            let name = format!("cpu 0 takes mmap_lock {:#x} at ", lock.key());
            assert!(report.contains(&name) && report.contains(" a second time"), "{way}: {report}");
            assert_eq!(report.matches("sync/rwlock.rs:").count(), 2, "both places: {report}");
            machine.run_cpu(CpuId(0), || drop(lock.write(machine)));
        }
    }

    /// As `fork` does, parent and child.
    #[test]
    fn locks_of_two_address_spaces_nest() {
        let sim = machine(1, 0, 1);
        let machine = sim.handle();
        let (parent, child) = (MmapLock::new(), MmapLock::new());
        machine.run_cpu(CpuId(0), || {
            let outer = parent.write(machine);
            drop(child.write(machine));
            let inner = child.write(machine);
            drop(outer);
            drop(parent.read(machine));
            drop(inner);
            assert_eq!(machine.local().mmap_locks.count(), 0);
        });
    }

    #[test]
    fn a_waiting_writer_stops_new_readers_and_they_get_in_after_it() {
        let sim = machine(4, 0, 1);
        let machine = sim.handle();
        let (lock, order) = (MmapLock::new(), AtomicUsize::new(0));
        machine.run_all(|cpu| match cpu.0 {
            0 => {
                let _first = lock.read(machine);
                await_word(&lock, machine, |word| waiting_readers(word) == 2);
            }
            1 => {
                await_word(&lock, machine, is_held);
                let _writing = lock.write(machine);
                assert_eq!(order.fetch_add(1, Ordering::Relaxed), 0);
            }
            _ => {
                await_word(&lock, machine, |word| word & WAITING_WRITERS != 0);
                let _reading = lock.read(machine);
                assert_ne!(order.fetch_add(1, Ordering::Relaxed), 0);
            }
        });
        assert_eq!(order.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn readers_that_wait_get_in_before_the_next_writer() {
        let sim = machine(3, 0, 1);
        let machine = sim.handle();
        let (lock, order) = (MmapLock::new(), AtomicUsize::new(0));
        machine.run_all(|cpu| match cpu.0 {
            0 => {
                let _first = lock.write(machine);
                await_word(&lock, machine, |word| waiting_readers(word) == 1);
            }
            1 => {
                await_word(&lock, machine, is_held);
                let _writing = lock.write(machine);
                assert_eq!(order.fetch_add(1, Ordering::Relaxed), 1);
            }
            _ => {
                await_word(&lock, machine, |word| is_held(word) && word & WAITING_WRITERS != 0);
                let _reading = lock.read(machine);
                assert_eq!(order.fetch_add(1, Ordering::Relaxed), 0);
            }
        });
        assert_eq!(order.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn readers_share_and_writers_exclude_everyone() {
        const WRITING: usize = 1000;
        let sim = machine(6, 0, 1);
        let machine = sim.handle();
        let (lock, inside) = (MmapLock::new(), AtomicUsize::new(0));
        machine.run_all(|cpu| {
            for _ in 0..300 {
                if cpu < CpuId(2) {
                    let _writing = lock.write(machine);
                    assert_eq!(inside.fetch_add(WRITING, Ordering::Relaxed), 0);
                    machine.pause();
                    inside.fetch_sub(WRITING, Ordering::Relaxed);
                } else {
                    let _reading = lock.read(machine);
                    assert!(inside.fetch_add(1, Ordering::Relaxed) < WRITING);
                    machine.pause();
                    inside.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
        assert_eq!(lock.0.load(Ordering::Relaxed) & (WRITER | READERS | WAITING_WRITERS), 0);
    }
}
