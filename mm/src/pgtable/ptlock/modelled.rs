//! `page->ptl` under the model checker, whose locks have a size of their own: a field of the lock's type.

use crate::sync::RawLock;
use core::ptr::NonNull;

/// The page-table lock as a frame descriptor holds it.
pub struct PtlStorage<L: RawLock>(L);

#[allow(unsafe_code)]
impl<L: RawLock> PtlStorage<L> {
    pub(super) const ALLOCATED: bool = false;

    /// Of a frame that is no table.
    pub(crate) fn new() -> Self {
        Self(L::new())
    }

    pub(in crate::pgtable) fn is_empty(&self) -> bool {
        !self.0.is_locked()
    }

    pub(super) unsafe fn write(&self) {}

    pub(super) unsafe fn point_to(&self, _lock: NonNull<L>) {}

    pub(super) unsafe fn take(&self) -> Option<NonNull<L>> {
        None
    }

    pub(super) fn lock(&self) -> &L {
        &self.0
    }
}
