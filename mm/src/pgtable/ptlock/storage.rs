//! `page->ptl`: one long of a frame's descriptor, holding a lock that fits or the address of one that does not (spec 4.2).
//! The size of the lock decides, at compile time.
//!
//! Rule: the long is zero unless a constructed table with a lock of its own lies in the frame (I9).

#![allow(unsafe_code)]

use crate::config::alloc_split_ptlocks;
use crate::sync::RawLock;
use crate::sync::atomic::Ordering;
use crate::sync::atomic::plain::{AtomicPtr, AtomicUsize};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

/// The page-table lock as a frame descriptor holds it.
pub struct PtlStorage<L: RawLock> {
    /// Zero, an `L`, or the address of one. Not a field of type `L`: whether it is one depends on `L`'s size.
    word: UnsafeCell<AtomicUsize>,
    lock: PhantomData<L>,
}

// SAFETY: shared access is to the `L` inside or pointed to, which is `Sync`, or to the word as an atomic. It is turned
// from one into the other by the table's only owner, in constructor and destructor.
unsafe impl<L: RawLock> Sync for PtlStorage<L> {}
// SAFETY: owns an `L`, which is `Send`.
unsafe impl<L: RawLock> Send for PtlStorage<L> {}

impl<L: RawLock> PtlStorage<L> {
    /// Whether the long is the address of the lock.
    pub(super) const ALLOCATED: bool = {
        let allocated = alloc_split_ptlocks::<L>();
        assert!(
            allocated || align_of::<L>() <= align_of::<AtomicUsize>(),
            "a lock in page->ptl is aligned like a long"
        );
        allocated
    };

    /// Of a frame that is no table.
    pub(crate) fn new() -> Self {
        Self { word: UnsafeCell::new(AtomicUsize::new(0)), lock: PhantomData }
    }

    /// Whether there is neither a lock nor its address.
    pub(in crate::pgtable) fn is_empty(&self) -> bool {
        // SAFETY: the long is initialised in all its bytes. Only constructor and destructor ask, which own the table.
        let word = unsafe { &*self.word.get() };
        word.load(Ordering::Relaxed) == 0
    }

    /// Puts a new lock into the long.
    ///
    /// # Safety
    ///
    /// Not if `ALLOCATED`. The caller owns the table, and nobody else can reach its lock.
    pub(super) unsafe fn write(&self) {
        // SAFETY: an `L` fits and is aligned (`ALLOCATED`), and by the contract nobody else is looking.
        unsafe { self.word.get().cast::<L>().write(L::new()) }
    }

    /// Puts the address of `lock` into the long.
    ///
    /// # Safety
    ///
    /// Only if `ALLOCATED`. The lock stays where it is until [`Self::take`].
    pub(super) unsafe fn point_to(&self, lock: NonNull<L>) {
        self.pointer().store(lock.as_ptr(), Ordering::Relaxed);
    }

    /// Empties the long; returns the lock it pointed to, if it did.
    ///
    /// # Safety
    ///
    /// The caller owns the table, and nobody else can reach its lock.
    pub(super) unsafe fn take(&self) -> Option<NonNull<L>> {
        if Self::ALLOCATED {
            return NonNull::new(self.pointer().swap(ptr::null_mut(), Ordering::Relaxed));
        }
        // SAFETY: by the contract nobody else is looking; there is a lock, since the long is not zero or a free one is.
        unsafe {
            self.word.get().cast::<L>().drop_in_place();
            self.word.get().write(AtomicUsize::new(0));
        }
        None
    }

    /// The lock of a constructed table that has one.
    pub(super) fn lock(&self) -> &L {
        if Self::ALLOCATED {
            // Relaxed: whoever uses the lock got the table by an acquire load of its parent entry.
            let lock = self.pointer().load(Ordering::Relaxed);
            // SAFETY: null, or the lock that lives until `take`, which comes after everyone's last use (I11).
            return match unsafe { lock.as_ref() } {
                Some(lock) => lock,
                None => panic!("lock of a table that is not constructed (I11, R5)"),
            };
        }
        // SAFETY: the constructor wrote an `L` here, and the destructor comes after everyone's last use (I11).
        unsafe { &*self.word.get().cast::<L>() }
    }

    fn pointer(&self) -> &AtomicPtr<L> {
        debug_assert!(Self::ALLOCATED);
        // SAFETY: an atomic pointer is an atomic long; in this form nothing else is ever here.
        unsafe { &*self.word.get().cast::<AtomicPtr<L>>() }
    }
}
