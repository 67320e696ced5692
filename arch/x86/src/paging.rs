//! The page-table root and the translations this CPU has cached. Everything here is local to the running CPU;
//! telling other CPUs is the business of whoever changes a table.

use core::arch::asm;

use crate::bits::paging::{CR3_ROOT, reloading};
use crate::{control, interrupts};

/// Physical address of the root table in use.
#[must_use]
pub fn root() -> usize {
    control::cr3() & CR3_ROOT
}

/// Process-context identifier, and whether what is cached under it stays: the rest of `CR3`. All translations have context
/// 0 where the CPU knows no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context(usize);

impl Context {
    /// The kernel's own, and everybody's without process-context identifiers. What is cached under it goes.
    pub const KERNEL: Self = Self(0);

    /// Bit 63 of `CR3`, in a write only: drop nothing.
    const KEEP: usize = 1 << (usize::BITS - 1);

    /// The context of address-space identifier `asid` of this CPU.
    #[must_use]
    pub const fn of(asid: u8, keep: bool) -> Self {
        Self((asid as usize + 1) | if keep { Self::KEEP } else { 0 })
    }
}

/// Uses another root table, and drops every cached translation of its context that is not global, unless those are to be
/// kept (Intel SDM vol. 3, 4.10.4.1).
///
/// # Safety
/// `root` must be the physical address of a root table that maps the running code, its stack and its data where
/// they are now, and that stays in place as long as it is loaded anywhere. A context other than [`Context::KERNEL`] needs
/// process-context identifiers to be enabled.
pub unsafe fn load_root(root: usize, context: Context) {
    debug_assert_eq!(root & !CR3_ROOT, 0);
    // SAFETY: the caller vouches for the tables.
    reloading(root, || unsafe { control::write_cr3(root | context.0) });
}

/// Drops the translation of the page that holds `address`, global or not, whatever its size, and all cached
/// upper-level entries.
pub fn flush_page(address: usize) {
    // SAFETY: dropping cached translations never breaks memory safety; not `nomem`, so that stores to the table
    // stay before it.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) }
}

/// Drops every translation of the current context that is not global. Interrupts are off: whoever interrupts may load another
/// root.
pub fn flush_local() {
    debug_assert!(!interrupts::enabled(), "the root may change meanwhile");
    // SAFETY: the root does not change.
    reloading(root(), || unsafe { control::write_cr3(control::cr3()) });
}
