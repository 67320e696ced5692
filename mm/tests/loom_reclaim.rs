//! Tables that go while their region stays: the whole of `madvise(DONTNEED)` against faults, against itself and against
//! `munmap`, every interleaving within the bounds given on the command line (spec 9.1; R3, R7, R8, R35, R41).
//!
//! Two levels of four entries, no TLBs. What must hold whoever is faster: nobody waits for ever, no store goes into a table
//! that was taken away, none is lost or freed while it is walked, and the books balance.
#![cfg(loom)]

mod loom_machine;

use loom_machine::{Cpu, FIRST_FRAME, Model};
use mm::address::{Pfn, VirtAddr, VirtRange};
use mm::address_space::{Mapping, Mm, MmRef};
use mm::fault::{FaultError, handle_mm_fault};
use mm::frame::FrameAllocator;
use mm::machine::Machine;
use mm::memory::Memory;
use mm::page::{MemMap, Page};
use mm::pgtable::{
    Protection, pmd_lock, pmd_offset, pte_at, pte_lock_second, pte_offset_map, pte_offset_map_rw_nolock,
};
use mm::sync::rcu;
use mm::sync::ticket::TicketLock;
use mm::vma::Access;
use std::cell::UnsafeCell;

/// Enough for the zero page, the slabs, four tables and a few pages, and nothing to spare for a leak.
const FRAMES: usize = 18;

struct World {
    memory: *mut Memory<Cpu>,
    pages: *mut [Page<TicketLock>],
    /// Taken out when the threads have ended.
    mm: UnsafeCell<Option<MmRef<Cpu>>>,
    free_at_start: u64,
}

// SAFETY: the pointers are used for shared access alone until the last thread has ended.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

/// The whole span of one PTE table, the second.
const FIRST: u64 = 0x4000;
const fn range(start: u64, end: u64) -> VirtRange {
    VirtRange { start: VirtAddr(start), end: VirtAddr(end) }
}
const SPAN: VirtRange = range(FIRST, 0x8000);

impl World {
    /// An address space with `regions`, of which the pages `touched` have been written.
    fn new(cpu: Cpu, regions: &[VirtRange], touched: &[u64]) -> Self {
        let pages = Box::into_raw((0..FRAMES).map(|_| Page::new()).collect::<Box<[_]>>());
        // SAFETY: freed by `drop` when nobody uses it any more.
        let frames = FrameAllocator::new(MemMap::new(FIRST_FRAME, unsafe { &*pages }));
        frames.add_free_range(cpu, FIRST_FRAME, Pfn(FIRST_FRAME.0 + FRAMES as u64)).unwrap();
        let memory = Box::into_raw(Box::new(Memory::new(cpu, frames).unwrap()));
        let mut world = Self { memory, pages, mm: UnsafeCell::new(None), free_at_start: 0 };
        world.free_at_start = world.memory().frames().free_frames(cpu);
        cpu.awake(|| {
            let mm = Mm::create(world.memory()).unwrap();
            for region in regions {
                mm.mmap(*region, Protection::READ_WRITE, Mapping::Anonymous).unwrap();
            }
            for address in touched {
                handle_mm_fault(&mm, VirtAddr(*address), Access::Write).unwrap();
            }
            // SAFETY: nobody else has the world yet.
            unsafe { *world.mm.get() = Some(mm) };
        });
        world
    }

    fn memory(&self) -> &'static Memory<Cpu> {
        // SAFETY: freed by `drop` when nobody uses it any more.
        unsafe { &*self.memory }
    }

    /// The address space, kept by `self`.
    fn mm(&self) -> &Mm<Cpu> {
        // SAFETY: only `balance` takes it out, when the threads have ended.
        unsafe { &*self.mm.get() }.as_ref().unwrap()
    }

    /// Every page that is mapped is mapped once; what is linked is what is alive (I7); and all of it comes back.
    fn balance(&self, cpu: Cpu) {
        cpu.awake(|| {
            // SAFETY: the threads have ended.
            let mm = unsafe { &mut *self.mm.get() }.take().unwrap();
            self.memory().drain_deferred();
            assert_eq!(mm.linked_table_bytes() / 4096 + 1, self.memory().page_tables(), "a table is lost (I7)");
            drop(mm);
            self.memory().drain_deferred();
            self.memory().slab().shrink(cpu, self.memory().frames());
            assert_eq!(self.memory().page_tables(), 0, "a table is lost");
            assert_eq!(self.memory().frames().free_frames(cpu), self.free_at_start, "a frame is lost");
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: from `Box::into_raw` in `new`; the threads have ended.
        unsafe {
            drop(Box::from_raw(self.memory));
            drop(Box::from_raw(self.pages));
        }
    }
}

/// CPU 0 does `first`, CPU 1 `second`.
fn race(
    regions: &'static [VirtRange],
    touched: &'static [u64],
    first: impl Fn(&World, Cpu) + Copy + Send + Sync + 'static,
    second: impl Fn(&World, Cpu) + Copy + Send + Sync + 'static,
) {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        move |cpu| World::new(cpu, regions, touched),
        move |world, cpu| cpu.awake(|| if cpu.cpu().index() == 0 { first(world, cpu) } else { second(world, cpu) }),
        |world, cpu| world.balance(cpu),
    );
}

fn discard(world: &World, _cpu: Cpu) {
    world.mm().madvise_dontneed(SPAN).unwrap();
}

fn store(world: &World, address: u64) {
    handle_mm_fault(world.mm(), VirtAddr(address), Access::Write).unwrap();
}

/// R3, R8: T2 has seen the table, or none in it, and T1 takes it away; or T1 has given its lock up and T2 fills the table.
#[test]
fn a_fault_against_a_table_that_goes() {
    race(&[SPAN], &[FIRST], discard, |world, _| store(world, FIRST + 0x1000));
}

/// R7: T1 holds the PTE lock and wants the PMD lock, which T2 holds to link a table beside it.
#[test]
fn a_table_that_goes_against_one_that_is_linked_beside_it() {
    race(const { &[range(0, 0x8000)] }, &[FIRST], discard, |world, _| store(world, 0x1000));
}

/// R7, R8: T1 has cleared the table, finds its PMD lock taken by T2 and lets go of the PTE lock. Until it has both, T2 fills
/// the table again.
#[test]
fn a_table_that_is_filled_again_stays() {
    race(&[SPAN], &[FIRST], discard, |world, cpu| {
        let rcu = rcu::read_lock(cpu);
        let pmds = pmd_offset(world.mm(), &rcu, SPAN.start).unwrap();
        drop(pmd_lock(world.mm(), pmds.slot(SPAN.start)));
        store(world, FIRST + 0x1000);
    });
}

/// R7: T1 holds the PTE lock and wants the PMD lock; T2 holds the PMD lock and waits for the PTE lock, as whoever takes a
/// second look at an empty table does.
#[test]
fn a_table_that_goes_against_one_who_holds_its_pmd_lock() {
    race(&[SPAN], &[FIRST], discard, |world, cpu| {
        let rcu = rcu::read_lock(cpu);
        let pmds = pmd_offset(world.mm(), &rcu, SPAN.start).unwrap();
        let pmd = pmds.slot(SPAN.start);
        let parent = pmd_lock(world.mm(), pmd);
        if let Some(map) = pte_offset_map_rw_nolock(world.mm(), pmd, SPAN.start) {
            let _own = pte_lock_second(&parent, map.lockptr());
            assert_eq!(pmd.load(), map.pmd());
        }
    });
}

/// R6, I11: T2 walks the table without a lock while it goes; it finds the page or none, in a table.
#[test]
fn a_lockless_walker_against_a_table_that_goes() {
    race(&[SPAN], &[FIRST], discard, |world, cpu| {
        let rcu = rcu::read_lock(cpu);
        let pmds = pmd_offset(world.mm(), &rcu, SPAN.start).unwrap();
        if let Some(pte) = pte_offset_map(world.mm(), pmds.slot(SPAN.start), SPAN.start) {
            let seen = pte.load();
            assert!(seen.is_none() || seen.is_present());
            let again = pte.load();
            assert!(again.is_none() || again == seen, "a table that goes is filled again");
        }
    });
}

/// R35: the table is half of one region and half of another. One goes with `munmap`, the other's pages are faulted in: the
/// table stays for them.
#[test]
fn a_neighbours_fault_against_munmap_in_one_table() {
    race(
        const { &[range(FIRST, 0x6000), range(0x6000, 0x8000)] },
        &[FIRST],
        |world, _| world.mm().munmap(range(FIRST, 0x6000)).unwrap(),
        |world, cpu| {
            store(world, 0x6000);
            let _rcu = rcu::read_lock(cpu);
            assert!(pte_at(world.mm(), VirtAddr(0x6000)).is_some_and(|entry| entry.is_present()), "the page is gone");
        },
    );
}

/// R41: a fault between the clearing of a table by `munmap` and its freeing.
#[test]
fn a_fault_between_clearing_and_freeing() {
    race(
        &[SPAN],
        &[FIRST],
        |world, _| {
            world.mm().munmap(SPAN).unwrap();
            assert_eq!(pte_at(world.mm(), SPAN.start), None);
            assert_eq!(world.mm().linked_table_bytes(), 0);
        },
        |world, _| match handle_mm_fault(world.mm(), SPAN.start, Access::Write) {
            Ok(_) | Err(FaultError::NotMapped) => (),
            Err(error) => panic!("{error:?}"),
        },
    );
}
