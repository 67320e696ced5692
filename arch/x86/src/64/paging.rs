//! What of `CR3` is the mode's.

use mm::pgtable::Entry;

/// Bits of `CR3` that name the root table.
pub(crate) const CR3_ROOT: usize = !0xfff & (usize::MAX >> 12);

/// Does `reload`, which has the CPU read the root table at `root` anew. With four and five levels it is read at every walk,
/// so there is nothing to remember.
#[inline(always)]
pub(crate) fn reloading(_root: usize, reload: impl FnOnce()) {
    reload();
}

/// What the running CPU has copied of the root table: nothing.
pub(crate) fn latched(_index: usize) -> Option<Entry> {
    None
}
