//! Translations that CPUs have cached: who may hold which, and how they are dropped everywhere at once.
//!
//! | file | its idea | spec |
//! | --- | --- | --- |
//! | `asid.rs` | what a CPU remembers of address spaces it had loaded before, and how current that is | 8.4, I31 |
//! | `switch.rs` | loading an address space, keeping one lazily, leaving it | I32, I36, R23, R25, R26, R37 |
//! | `flush.rs` | what a flush drops, whom it reaches, and what each CPU it reaches does | I29, I33, R24 |
//! | `shootdown.rs` | asking other CPUs and waiting for them | I24, I37, R27, R28 |
//! | `latched.rs` | the check that no CPU runs on an old copy of the top table | I38 |
//!
//! The rule under all of it is a generation. Each change of an address space's tables that takes something away raises its
//! `tlb_gen`; each CPU knows, for each ASID, which generation its translations are as new as (I31). A CPU that is not
//! reached by a flush, because it has the address space not loaded or lazily, finds itself behind when it comes back.
//!
//! Where words are small generations come round. A CPU that has the address space loaded is behind by less than half a round:
//! every flush reaches it, or, if it is lazy, every [`REFRESH`](crate::sync::atomic::REFRESH)th.

#![allow(unsafe_code)]

mod asid;
mod flush;
mod latched;
mod shootdown;
mod switch;
#[cfg(all(test, not(loom)))]
mod tests;

pub use asid::{Asid, MAX_ASIDS};
pub use flush::{FLUSH_CEILING, TlbFlush, flush};
pub(crate) use flush::{flush_and_sync, flush_mm_range, flush_range, flush_top};
pub use latched::check_latched;
pub use shootdown::{service, sync_all_cpus};
pub(crate) use switch::evict_lazy;
pub use switch::{enter_lazy, switch};

use crate::address::PhysAddr;
use crate::cpu::{CpuMask, CpuSet};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering, const_new, plain};
use asid::AsidSlots;
use shootdown::Requests;

/// An address space's side: its identity, the generation of its tables, and who has it loaded.
#[repr(align(64))]
pub struct MmTlb {
    /// Never 0 and never used again, so that no CPU takes what it cached of another address space for this one's.
    ctx_id: usize,
    pgd: PhysAddr,
    /// Raised by every flush, after the tables were changed and before the mask is read.
    tlb_gen: AtomicUsize,
    cpus: CpuMask,
}

impl MmTlb {
    /// Of an address space with top table `pgd` that nobody has loaded. `ctx_id` is not 0 and never used again.
    pub fn new(ctx_id: usize, pgd: PhysAddr) -> Self {
        Self { ctx_id, pgd, tlb_gen: AtomicUsize::new(1), cpus: CpuMask::new() }
    }

    /// The CPUs that have the address space loaded, lazily or not (`mm_cpumask`).
    pub fn cpus(&self) -> CpuSet {
        self.cpus.snapshot()
    }

    /// The generation of the tables: translations cached under a lower one may be wrong.
    pub fn tlb_gen(&self) -> usize {
        // Acquire: with a generation come the changes of the tables it stands for; pairs with the addition in `flush`.
        self.tlb_gen.load(Ordering::Acquire)
    }
}

/// A CPU's side; on lines of its own, because other CPUs write the requests.
#[repr(align(64))]
pub struct TlbCpu {
    /// The address space this CPU has loaded, null for the kernel's own. Only this CPU uses it. It is in that address
    /// space's mask as long as this points there, which is what keeps it in place: see `switch.rs`.
    loaded: plain::AtomicPtr<MmTlb>,
    asids: AsidSlots,
    /// A kernel thread runs on tables it does not use. Read by whoever looks for CPUs to flush.
    is_lazy: AtomicBool,
    requests: Requests,
}

impl TlbCpu {
    const_new! {
        /// Of a CPU with the kernel's table loaded.
        pub(crate) fn new() -> Self {
            Self {
                loaded: plain::AtomicPtr::new(core::ptr::null_mut()),
                asids: AsidSlots::new(),
                is_lazy: AtomicBool::new(false),
                requests: Requests::new(),
            }
        }
    }

    /// The CPUs this one still waits for; for the report of a hang.
    pub fn unanswered(&self) -> CpuSet {
        self.requests.unanswered()
    }

    /// Whether the CPU runs a kernel thread on the tables of an address space the thread is not in.
    pub fn is_lazy(&self) -> bool {
        // Acquire: for the simulated machine, which asks what the CPU may hold because of it.
        self.is_lazy.load(Ordering::Acquire)
    }

    /// Whether this CPU, the running one, has `mm` loaded, lazily or not.
    fn has_loaded(&self, mm: &MmTlb) -> bool {
        // Relaxed, here and below: only this CPU uses it.
        core::ptr::eq(self.loaded.load(Ordering::Relaxed), mm)
    }

    fn set_loaded(&self, mm: Option<&MmTlb>) {
        let mm = mm.map_or(core::ptr::null_mut(), |mm| core::ptr::from_ref(mm).cast_mut());
        self.loaded.store(mm, Ordering::Relaxed);
    }
}
