//! Where a table's lock lives: in the descriptor of the table's frame, or pointed to from there (spec 4). The only module
//! that touches `page->ptl`; nothing outside of it can tell the two forms apart.
//!
//! Rules kept: a lock is used between its table's constructor and destructor only (I11, I12, R5); a fresh frame has none
//! (I9); a lock that is pointed to dies with its table, after the grace period (spec 3.3).

// The model checker's atomics do not fit in a long.
#[cfg_attr(loom, path = "ptlock/modelled.rs")]
mod storage;

pub use storage::PtlStorage;

use super::alloc::PtlockAllocError;
use crate::config::DEBUG_SPINLOCK;
use crate::frame::{FrameAllocator, Site};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::page::{Page, PageType};
use crate::slab::{Slab, SlabKind};
use crate::sync::{LockClass, Nesting, RawLock, order};
use core::marker::PhantomData;
use core::ptr::NonNull;

/// Makes the cache `page->ptl`, with a frame in it, if this build's locks need one. Before the first table with a lock.
///
/// # Panics
///
/// If it cannot be made: without it there would be no table, and so no address space.
pub fn ptlock_cache_init<M: Machine>(slab: Slab<M>, machine: M, frames: &FrameAllocator<M>) -> Slab<M> {
    if !PtlStorage::<M::Lock>::ALLOCATED {
        return slab;
    }
    let slab = slab.register::<M::Lock>(SlabKind::PtlLock);
    match slab.stock(machine, frames, SlabKind::PtlLock) {
        Ok(()) => slab,
        Err(_) => panic!("cannot make the slab cache page->ptl"),
    }
}

/// Gives the fresh table in `page` its lock (`ptlock_init`).
///
/// # Errors
///
/// [`PtlockAllocError`], with nothing changed.
#[allow(unsafe_code)]
#[cfg_attr(test, track_caller)]
pub(super) fn ptlock_init<M: Machine>(memory: &Memory<M>, page: &Page<M::Lock>) -> Result<(), PtlockAllocError> {
    assert!(page.ptl.is_empty(), "page-table lock constructed twice, or its frame is not fresh (I9)");
    let lock = ptlock_alloc(memory)?;
    // SAFETY: the form is the type's. The table is not published yet, and `ptlock_free` is what frees the lock.
    unsafe {
        match lock {
            Some(lock) => page.ptl.point_to(lock),
            None => page.ptl.write(),
        }
    }
    Ok(())
}

/// A lock for a table, or `None` where it needs no memory of its own. Takes the slab lock if it does.
#[cfg_attr(test, track_caller)]
fn ptlock_alloc<M: Machine>(memory: &Memory<M>) -> Result<Option<NonNull<M::Lock>>, PtlockAllocError> {
    if PtlStorage::<M::Lock>::ALLOCATED {
        let lock = memory.alloc_value(SlabKind::PtlLock, M::Lock::new());
        return lock.map(Some).map_err(|_| PtlockAllocError);
    }
    // Constructors may fail in every build, so that what follows is tested in every build.
    if memory.machine().local().injection.should_fail(Site::PtlLock) { Err(PtlockAllocError) } else { Ok(None) }
}

/// Ends the life of the lock of the table in `page`, if it has one of its own.
#[allow(unsafe_code)]
pub(super) fn ptlock_free<M: Machine>(memory: &Memory<M>, page: &Page<M::Lock>) {
    if page.ptl.is_empty() || sabotaged!("lock-left") {
        return;
    }
    // The debug form has more to say about it, and does so when it is dropped.
    assert!(DEBUG_SPINLOCK || !page.ptl.lock().is_locked(), "page-table lock freed while held (I12)");
    // SAFETY: the table was never published, or its grace period is over: nobody has a way to the lock any more.
    if let Some(lock) = unsafe { page.ptl.take() } {
        // SAFETY: it came from `ptlock_alloc`, and the descriptor no longer names it.
        unsafe { memory.free_value(SlabKind::PtlLock, lock) }
    }
}

/// The lock of the table in `page`, which has one of its own.
pub(super) fn ptl<L: RawLock>(page: &Page<L>) -> &L {
    debug_assert_eq!(page.page_type(), PageType::Table, "lock of a table that is not constructed (I11, R5)");
    page.ptl.lock()
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
        if self.holds(lock) && !sabotaged!("lock-twice") {
            return None;
        }
        // No closure: it would end `track_caller`.
        Some(PtlGuard::lock_as(self.machine, lock, class, nesting))
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

#[cfg(all(test, not(loom)))]
mod tests;
