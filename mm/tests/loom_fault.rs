//! Fault against detach: the whole of `handle_mm_fault` and of `munmap`, every interleaving within the bounds given on the
//! command line. The region rule of `mm::vma`, the rechecks under every lock, and the PMD recheck (R3, R41).
//!
//! Two levels of four entries, one CPU that faults, one that unmaps. What must hold whoever is faster: nothing stays mapped
//! in the removed region, no table is left or lost, no frame is walked as a table that is none, and the books balance.
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
use mm::pgtable::{Protection, pmd_offset, pte_at, pte_offset_map_lock};
use mm::sync::rcu;
use mm::sync::ticket::TicketLock;
use mm::vma::Access;
use std::cell::UnsafeCell;

/// Enough for the zero page, the slabs, four tables and a page, and nothing to spare for a leak.
const FRAMES: usize = 16;

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

/// The region under test: the second PMD entry, pages 4 and 5.
fn region() -> VirtRange {
    VirtRange::new(0x4000, 0x6000).unwrap()
}

impl World {
    /// An address space with the region, and, if `with_table`, a neighbour that has made the region's PTE table.
    fn new(cpu: Cpu, with_table: bool) -> Self {
        let pages = Box::into_raw((0..FRAMES).map(|_| Page::new()).collect::<Box<[_]>>());
        // SAFETY: freed by `drop` when nobody uses it any more.
        let frames = FrameAllocator::new(MemMap::new(FIRST_FRAME, unsafe { &*pages }));
        frames.add_free_range(cpu, FIRST_FRAME, Pfn(FIRST_FRAME.0 + FRAMES as u64)).unwrap();
        let memory = Box::into_raw(Box::new(Memory::new(cpu, frames).unwrap()));
        let mut world = Self { memory, pages, mm: UnsafeCell::new(None), free_at_start: 0 };
        world.free_at_start = world.memory().frames().free_frames(cpu);
        cpu.awake(|| {
            let mm = Mm::create(world.memory()).unwrap();
            mm.mmap(region(), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
            if with_table {
                handle_mm_fault(&mm, region().start, Access::Write).unwrap();
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

    fn balance(&self, cpu: Cpu) {
        cpu.awake(|| {
            // SAFETY: the threads have ended.
            let mm = unsafe { &mut *self.mm.get() }.take().unwrap();
            assert_eq!(mm.linked_table_bytes(), 0, "a table is left in a removed region");
            assert_eq!(pte_at(&mm, region().start), None);
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

fn fault_against_munmap(with_table: bool, address: VirtAddr) {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        move |cpu| World::new(cpu, with_table),
        move |world, cpu| {
            let mm = world.mm();
            cpu.awake(|| match cpu.cpu().index() {
                0 => mm.munmap(region()).unwrap(),
                _ => match handle_mm_fault(mm, address, Access::Write) {
                    Ok(_) | Err(FaultError::NotMapped) => (),
                    Err(error) => panic!("{error:?}"),
                },
            });
        },
        |world, cpu| world.balance(cpu),
    );
}

/// The fault has to make the PTE table while the region goes: checks under the PMD lock.
#[test]
fn a_fault_without_tables_against_munmap() {
    fault_against_munmap(false, region().start);
}

/// The table is there: checks under the PTE lock.
#[test]
fn a_fault_on_a_present_table_against_munmap() {
    fault_against_munmap(true, VirtAddr(region().start.0 + 0x1000));
}

/// I16 by itself: whoever gets the lock from `pte_offset_map_lock` has a table that is still hooked.
#[test]
fn a_locked_table_is_hooked() {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        |cpu| World::new(cpu, true),
        |world, cpu| {
            let mm = world.mm();
            cpu.awake(|| {
                if cpu.cpu().index() == 0 {
                    mm.munmap(region()).unwrap();
                    return;
                }
                let rcu = rcu::read_lock(cpu);
                let pmds = pmd_offset(mm, &rcu, region().start).unwrap();
                let pmd = pmds.slot(region().start);
                if let Some(locked) = pte_offset_map_lock(mm, pmd, region().start) {
                    assert!(
                        !world.memory().memmap().page(locked.pmd().pfn()).is_detached(),
                        "a detached table is held"
                    );
                    assert_eq!(pmd.load(), locked.pmd());
                }
            });
        },
        |world, cpu| world.balance(cpu),
    );
}
