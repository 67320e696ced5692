//! Pages that are taken out, flushed and freed, in this order, under CPUs that have them cached (spec 8.1, 8.2; R20, R21, I30): the
//! whole of `munmap` and of `madvise(DONTNEED)`, every interleaving within a bound of preemptions.
//!
//! Two levels of four entries; both CPUs' TLBs forget nothing by themselves. What must hold whoever is faster: no frame is freed
//! while a CPU's TLB leads to it, no access finds one that is free (the machine looks after both), and who has dropped a page finds
//! it no more.
#![cfg(loom)]

mod loom_machine;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom_machine::world::World;
use loom_machine::{Cpu, Model};
use mm::address::{VirtAddr, VirtRange};
use mm::address_space::{Mapping, Mm};
use mm::fault::handle_mm_fault;
use mm::machine::Machine;
use mm::pgtable::{Protection, pte_at};
use mm::sync::rcu;
use mm::tlb;
use mm::vma::Access;

/// Enough for the zero page, the slabs, two tables and a few pages.
const FRAMES: usize = 18;

/// The whole span of one PTE table, the second, of which one page is there.
const SPAN: VirtRange = VirtRange { start: VirtAddr(0x4000), end: VirtAddr(0x8000) };
const PAGE: VirtAddr = SPAN.start;
const ONE_PAGE: VirtRange = VirtRange { start: PAGE, end: VirtAddr(0x5000) };

/// CPU 0 does `first`, CPU 1 `second`, having loaded the address space and cached the page, as CPU 0 has if `first_has`.
/// Both answer until both have done.
fn race(
    first_has: bool,
    first: impl Fn(&Mm<Cpu>, Cpu) + Copy + Send + Sync + 'static,
    second: impl Fn(&Mm<Cpu>, Cpu) + Copy + Send + Sync + 'static,
) {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        |cpu| {
            let world = World::new(cpu, FRAMES, |mm| {
                mm.mmap(SPAN, Protection::READ_WRITE, Mapping::Anonymous).unwrap();
                handle_mm_fault(mm, PAGE, Access::Write).unwrap();
            });
            (world, AtomicUsize::new(0))
        },
        move |(world, done), cpu| {
            cpu.awake(|| {
                let (mm, is_first) = (world.mm(), cpu.cpu().index() == 0);
                if !is_first || first_has {
                    // SAFETY: the address space outlives the work, at whose end it is left.
                    unsafe { tlb::switch(cpu, Some(mm.tlb())) };
                    access(mm, cpu);
                }
                if is_first {
                    first(mm, cpu)
                } else {
                    second(mm, cpu)
                }
                done.fetch_add(1, Ordering::AcqRel);
                while done.load(Ordering::Acquire) < 2 {
                    cpu.pause();
                }
                // SAFETY: as above.
                unsafe { tlb::switch(cpu, None) };
            });
        },
        |(world, _), cpu| world.balance(cpu, |_| ()),
    );
}

/// What an access to the page finds: an entry, or none. The walk goes by no lock.
fn access(mm: &Mm<Cpu>, cpu: Cpu) -> Option<u64> {
    cpu.translate(PAGE, || {
        let _rcu = rcu::read_lock(cpu);
        pte_at(mm, PAGE).filter(|entry| entry.is_present()).map_or(0, |entry| entry.0)
    })
}

/// R20, I30: T1 unmaps the page and its table, T2 goes on with what it has cached until it is told.
#[test]
fn an_unmapped_page_is_freed_when_no_tlb_has_it() {
    race(
        false,
        |mm, _| mm.munmap(SPAN).unwrap(),
        |mm, cpu| {
            access(mm, cpu);
        },
    );
}

/// R21: T1 and T2 drop the same page. The second finds nothing, since the first has taken it out; but unless the first has
/// flushed, the second's CPU still has it cached.
#[test]
fn who_has_dropped_a_page_finds_it_no_more() {
    let drop_page = |mm: &Mm<Cpu>, cpu: Cpu| {
        mm.madvise_dontneed(ONE_PAGE).unwrap();
        assert!(!cpu.has_cached(cpu.cpu(), PAGE), "a page that was dropped is found");
    };
    race(true, drop_page, drop_page);
}
