//! Leak accounting (design decision 6): what of `mm` every test must leave as it found it.

use arch_x86::machine::X86;
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
counter!("locks of mm held", || X86.cpus().iter().map(|(_, local)| local.held.count() as u64).sum());
settler!(settle);

fn objects(kind: SlabKind) -> u64 {
    memory().slab().objects(X86, kind)
}

/// Frees what waits for a grace period or is kept in reserve by a cache.
pub fn settle() {
    memory().drain_deferred();
    memory().slab().shrink(X86, memory().frames());
}
