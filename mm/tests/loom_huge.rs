//! Huge entries, every interleaving within the bounds given on the command line: a split under the eyes of a lockless walker
//! (R12, I28), and faults that race for huge pages below one PMD table, with a zap among them (R13, I14).
//!
//! Two levels of four entries: a huge page is four frames.
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
use mm::pgtable::{Level, Protection, deposited_tables, leaf_at, pmd_offset};
use mm::sync::rcu;
use mm::sync::ticket::TicketLock;
use mm::vma::Access;
use std::cell::UnsafeCell;

/// Enough for the zero page, the slabs, tables and four blocks.
const FRAMES: usize = 32;

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

/// The pages that PMD entry `number` covers.
fn span(number: u64) -> VirtRange {
    VirtRange::new(number * 0x4000, (number + 1) * 0x4000).unwrap()
}

impl World {
    /// An address space with a region for each of two huge pages; the first `touched` of them are there.
    fn new(cpu: Cpu, touched: u64) -> Self {
        let pages = Box::into_raw((0..FRAMES).map(|_| Page::new()).collect::<Box<[_]>>());
        // SAFETY: freed by `drop` when nobody uses it any more.
        let frames = FrameAllocator::new(MemMap::new(FIRST_FRAME, unsafe { &*pages }));
        frames.add_free_range(cpu, FIRST_FRAME, Pfn(FIRST_FRAME.0 + FRAMES as u64)).unwrap();
        let memory = Box::into_raw(Box::new(Memory::new(cpu, frames).unwrap()));
        let mut world = Self { memory, pages, mm: UnsafeCell::new(None), free_at_start: 0 };
        world.free_at_start = world.memory().frames().free_frames(cpu);
        cpu.awake(|| {
            let mm = Mm::create(world.memory()).unwrap();
            for number in 0..2 {
                mm.mmap(span(number), Protection::READ_WRITE, Mapping::AnonymousHuge).unwrap();
            }
            for number in 0..touched {
                handle_mm_fault(&mm, span(number).start, Access::Write).unwrap();
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

    fn deposits(&self, cpu: Cpu) -> usize {
        let rcu = rcu::read_lock(cpu);
        deposited_tables(self.mm(), pmd_offset(self.mm(), &rcu, VirtAddr(0)).unwrap().slot(VirtAddr(0)))
    }

    /// As many deposits as huge entries, and everything comes back with the address space.
    fn balance(&self, cpu: Cpu) {
        cpu.awake(|| {
            let level = |number| leaf_at(self.mm(), span(number).start).map(|(level, _)| level);
            let huge = (0..2).filter(|number| level(*number) == Some(Level::Pmd)).count();
            assert_eq!(self.deposits(cpu), huge, "deposits and huge entries differ (I14)");
            // SAFETY: the threads have ended.
            drop(unsafe { &mut *self.mm.get() }.take().unwrap());
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

/// R12, I28: whoever tests the entry without a lock sees it huge or a table, never none, and what it leads to is filled.
#[test]
fn an_entry_in_split_is_never_none() {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        |cpu| World::new(cpu, 1),
        |world, cpu| {
            let mm = world.mm();
            cpu.awake(|| {
                if cpu.cpu().index() == 0 {
                    assert!(mm.split_huge_page(VirtAddr(0)));
                    return;
                }
                let (level, entry) = leaf_at(mm, VirtAddr(0x3000)).expect("an entry in split is none");
                assert!(entry.is_present() || level == Level::Pmd, "a table in split is not filled");
            });
        },
        |world, cpu| world.balance(cpu),
    );
}

/// R12, I28, the other change: rights that are taken and given.
#[test]
fn an_entry_under_protection_change_is_never_none() {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        |cpu| World::new(cpu, 1),
        |world, cpu| {
            let mm = world.mm();
            cpu.awake(|| {
                if cpu.cpu().index() == 0 {
                    mm.mprotect(span(0), Protection::READ).unwrap();
                    return;
                }
                let (level, entry) = leaf_at(mm, VirtAddr(0)).expect("an entry under protection change is none");
                assert!(level == Level::Pmd && entry.is_huge());
            });
        },
        |world, cpu| world.balance(cpu),
    );
}

fn fault(mm: &Mm<Cpu>, address: VirtAddr) {
    match handle_mm_fault(mm, address, Access::Write) {
        Ok(_) | Err(FaultError::NotMapped) => (),
        Err(error) => panic!("{error:?}"),
    }
}

/// R13: two faults for one huge page; the loser gives back block and deposit.
#[test]
fn two_faults_for_one_huge_page() {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        |cpu| World::new(cpu, 0),
        |world, cpu| cpu.awake(|| fault(world.mm(), VirtAddr(0x1000 * cpu.cpu().index() as u64))),
        |world, cpu| world.balance(cpu),
    );
}

/// R13: a huge fault and the zap of another huge page below the same PMD table share the list of deposits.
#[test]
fn a_huge_fault_against_a_zap_of_its_neighbour() {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        |cpu| World::new(cpu, 1),
        |world, cpu| {
            cpu.awake(|| match cpu.cpu().index() {
                0 => world.mm().munmap(span(0)).unwrap(),
                _ => fault(world.mm(), span(1).start),
            });
        },
        |world, cpu| world.balance(cpu),
    );
}

/// The rule of `mm::vma` for a huge fault: a fault against the removal of its own region leaves nothing.
#[test]
fn a_huge_fault_against_munmap() {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        |cpu| World::new(cpu, 0),
        |world, cpu| {
            cpu.awake(|| match cpu.cpu().index() {
                0 => world.mm().munmap(span(1)).unwrap(),
                _ => fault(world.mm(), span(1).start),
            });
        },
        |world, cpu| {
            cpu.awake(|| {
                assert!(leaf_at(world.mm(), span(1).start).is_none(), "a page is left in a removed region");
            });
            world.balance(cpu);
        },
    );
}
