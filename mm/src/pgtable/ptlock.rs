//! Where a table's lock lives: inline in the descriptor of the table's frame (spec 4). The only module that touches
//! `page->ptl`.
//!
//! Rules kept: a lock is used between its table's constructor and destructor only (I11, I12, R5); a fresh frame's lock is
//! not live (I9).

use crate::machine::Machine;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{LockClass, Nesting, RawLock, order};
use core::marker::PhantomData;

/// The page-table lock as a frame descriptor holds it: the lock itself, not a pointer to one.
pub struct PtlStorage<L: RawLock> {
    lock: L,
    /// 1 from constructor to destructor. Written by the table's only owner then; read by whoever uses the lock, who got
    /// the table through an acquire load of its parent entry.
    live: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(
    size_of::<crate::sync::ticket::TicketLock>() <= size_of::<usize>(),
    "the inline form needs a lock that fits in a long"
);

impl<L: RawLock> PtlStorage<L> {
    /// Of a frame that is no table.
    pub(crate) fn new() -> Self {
        Self { lock: L::new(), live: AtomicU32::new(0) }
    }

    /// Makes the lock of a fresh table usable (`ptlock_init`).
    pub(super) fn init(&self) {
        let was_live = self.live.swap(1, Ordering::Relaxed);
        assert_eq!(was_live, 0, "page-table lock constructed twice (I9)");
        debug_assert!(!self.lock.is_locked(), "fresh page-table lock is held (I9)");
    }

    /// Ends the lock's life with its table's (`ptlock_free`).
    pub(super) fn retire(&self) {
        debug_assert!(!self.lock.is_locked(), "page-table lock freed while held (I12)");
        self.live.store(0, Ordering::Relaxed);
    }

    /// Whether a constructor has run and no destructor since.
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed) == 1
    }

    /// The lock.
    pub(super) fn lock(&self) -> &L {
        debug_assert!(self.is_live(), "lock of a table that is not constructed (I11, R5)");
        &self.lock
    }
}

/// The lock of an address space for everything that has no lock of its own: `mm->page_table_lock`.
pub struct PageTableLock<L: RawLock>(L);

impl<L: RawLock> PageTableLock<L> {
    /// A free lock.
    pub(crate) fn new() -> Self {
        Self(L::new())
    }

    pub(super) fn lock(&self) -> &L {
        &self.0
    }
}

/// A held page-table lock of any level. Dropping it unlocks. It pins what it protects for as long as it lives (I16).
pub struct PtlGuard<'l, M: Machine> {
    lock: &'l M::Lock,
    machine: M,
    /// Held by a CPU, not by a thread: it must not travel.
    _not_send: PhantomData<*const ()>,
}

impl<'l, M: Machine> PtlGuard<'l, M> {
    /// Takes `lock`.
    #[track_caller]
    pub(super) fn lock(machine: M, lock: &'l M::Lock, class: LockClass) -> Self {
        Self::lock_as(machine, lock, class, Nesting::Plain)
    }

    #[track_caller]
    fn lock_as(machine: M, lock: &'l M::Lock, class: LockClass, nesting: Nesting) -> Self {
        order::take(machine, lock, class, nesting);
        Self { lock, machine, _not_send: PhantomData }
    }

    /// Whether somebody waits for the lock in its queue.
    pub(super) fn is_contended(&self) -> bool {
        self.lock.is_contended()
    }

    /// Whether this is the guard of `lock`. In the single-lock build two names may mean one lock, which must be
    /// neither taken nor released twice (spec 2.1).
    pub(super) fn holds(&self, lock: &M::Lock) -> bool {
        core::ptr::eq(self.lock, lock)
    }

    /// Takes `lock` too, unless it is the lock this guard holds. Addresses are compared here, before the second lock; the
    /// guard that is not made is not released, so no second unlock has to compare them (spec 2.1).
    ///
    /// [`Nesting::SingleDepth`] says that the caller knows the order of the two: fork's destination before its source,
    /// mremap's old table before its new one (spec 2.2).
    #[track_caller]
    pub(crate) fn lock_second<'b>(
        &self,
        lock: &'b M::Lock,
        class: LockClass,
        nesting: Nesting,
    ) -> Option<PtlGuard<'b, M>> {
        (!self.holds(lock)).then(|| PtlGuard::lock_as(self.machine, lock, class, nesting))
    }

    /// Takes `lock` too if it is free, in whatever order; `None` also when it is the lock this guard holds.
    #[track_caller]
    pub(crate) fn try_lock_second<'b>(&self, lock: &'b M::Lock, class: LockClass) -> Option<PtlGuard<'b, M>> {
        let taken = !self.holds(lock) && order::try_take(self.machine, lock, class);
        taken.then(|| PtlGuard { lock, machine: self.machine, _not_send: PhantomData })
    }
}

impl<M: Machine> Drop for PtlGuard<'_, M> {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: a guard is made by taking the lock, cannot be cloned or sent, and is dropped once.
        unsafe { self.lock.unlock(self.machine) }
    }
}
