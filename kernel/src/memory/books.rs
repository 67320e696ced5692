//! Leak accounting (design decision 6): what of `mm` every test must leave as it found it.

use core::hint::spin_loop;

use arch_x86::machine::X86;
use arch_x86::time;
use mm::machine::Machine;
use mm::slab::SlabKind;

use super::memory;
use crate::harness::books::{counter, settler};

counter!("free frames", || memory().frames().free_frames(X86));
counter!("page tables", || memory().page_tables());
counter!("regions", || objects(SlabKind::Vma));
counter!("nodes of region trees", || objects(SlabKind::VmaNode));
counter!("address spaces", || objects(SlabKind::AddressSpace));
counter!("memory objects", || objects(SlabKind::Object));
counter!("nodes of memory objects", || objects(SlabKind::ObjectNode));
counter!("locks in page->ptl", || objects(SlabKind::PtlLock));
counter!("locks of mm held", locks_held);
counter!("frames mapped for a moment", || X86.mapped() as u64);
settler!(settle);

/// How long an idle CPU may hold a lock for its tidying, its vCPU's waits for the host included.
const TIDYING_NANOS: u64 = 2_000_000_000;

/// Locks that are held and not let go. Idle CPUs take some for a moment at any time, and nobody stops them for the books.
fn locks_held() -> u64 {
    let give_up = time::now_nanos().saturating_add(TIDYING_NANOS);
    loop {
        let held = X86.cpus().iter().map(|(_, local)| local.held.count() as u64).sum();
        if held == 0 || time::now_nanos() >= give_up {
            return held;
        }
        spin_loop();
    }
}

fn objects(kind: SlabKind) -> u64 {
    memory().slab().objects(X86, kind)
}

/// Frees what waits for a grace period or is kept in reserve by a cache.
pub fn settle() {
    memory().drain_deferred();
    memory().slab().shrink(X86, memory().frames());
}
