//! Copies and moves against faults, every interleaving within a bound of preemptions (R15, R17, R18). A whole fork
//! is too long for the checker; the simulated machine has its races.
//!
//! Two levels of four entries, two CPUs in one address space; a second address space shares its first page.
#![cfg(loom)]

mod loom_machine;

use loom_machine::world::World;
use loom_machine::{Cpu, Model};
use mm::address::{VirtAddr, VirtRange};
use mm::address_space::{Mapping, Mm, MmRef};
use mm::fault::{FaultError, Resolution, handle_mm_fault};
use mm::machine::Machine;
use mm::pgtable::{Entry, Protection, pte_at};
use mm::vma::Access;
use std::cell::UnsafeCell;

/// Enough for the zero page, the slabs, three address spaces' tables and pages.
const FRAMES: usize = 32;

/// The second PMD entry, pages 4 to 7: the first two are mapped, the first has been written.
const WRITTEN: VirtAddr = VirtAddr(0x4000);
const UNTOUCHED: VirtAddr = VirtAddr(0x5000);

fn region() -> VirtRange {
    VirtRange::new(WRITTEN.0, 0x6000).unwrap()
}

/// An address space, and its child if it has one, which ends with it.
struct Family {
    world: World,
    child: UnsafeCell<Option<MmRef<Cpu>>>,
}

// SAFETY: the child is taken out when the threads have ended, and not looked at before.
unsafe impl Send for Family {}
// SAFETY: as above.
unsafe impl Sync for Family {}

impl Family {
    fn new(cpu: Cpu, has_child: bool) -> Self {
        let world = World::new(cpu, FRAMES, |mm| {
            mm.mmap(region(), Protection::READ_WRITE, Mapping::Anonymous).unwrap();
            handle_mm_fault(mm, WRITTEN, Access::Write).unwrap();
        });
        let family = Self { world, child: UnsafeCell::new(None) };
        if has_child {
            // SAFETY: nobody else has the family yet.
            cpu.awake(|| unsafe { *family.child.get() = Some(family.mm().fork().unwrap()) });
        }
        family
    }

    fn mm(&self) -> &Mm<Cpu> {
        self.world.mm()
    }

    /// Judges all entries, lets `judge` do so too, and ends everybody.
    fn end(&self, cpu: Cpu, judge: impl FnOnce(&Mm<Cpu>)) {
        // SAFETY: the threads have ended.
        let child = unsafe { &mut *self.child.get() }.take();
        self.world.balance(cpu, |mm| {
            for page in (WRITTEN.0..0x8000).step_by(0x1000).map(VirtAddr) {
                let spaces = child.iter().map(|child| &**child).chain([mm]);
                let entries: Vec<Entry> = spaces.filter_map(|space| pte_at(space, page)).collect();
                for entry in entries.iter().filter(|entry| entry.is_present() && !entry.is_special()) {
                    let frame = mm.memory().memmap().page(entry.pfn());
                    let sharers =
                        entries.iter().filter(|other| other.is_present() && other.pfn() == entry.pfn()).count();
                    assert_eq!((frame.refcount(), frame.mapcount()), (sharers as u32, sharers as u32), "{page:?}");
                    assert!(sharers == 1 || !entry.is_writable(), "{page:?} is shared and may be written");
                }
            }
            judge(mm);
            drop(child);
        });
    }
}

fn model(
    has_child: bool,
    work: impl Fn(&Family, usize) + Copy + Send + Sync + 'static,
    judge: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
) {
    Model { frames: FRAMES, ..Model::new(2, 0) }.run_on(
        move |cpu| Family::new(cpu, has_child),
        move |family, cpu| cpu.awake(|| work(family, cpu.cpu().index())),
        move |family, cpu| family.end(cpu, judge),
    );
}

fn is_own(mm: &Mm<Cpu>, page: VirtAddr) {
    assert!(pte_at(mm, page).is_some_and(|entry| entry.is_writable()), "{page:?} is not written to");
}

/// R17: a copy clears the entry, flushes and sets the new one. A fault that sees none in between finds out under the lock, and
/// neither fills the slot nor takes it for unmapped.
#[test]
fn an_entry_under_copy_is_not_taken_for_none() {
    model(
        true,
        |family, cpu| match cpu {
            0 => assert_eq!(handle_mm_fault(family.mm(), WRITTEN, Access::Write), Ok(Resolution::PageCopied)),
            _ => {
                let seen = handle_mm_fault(family.mm(), WRITTEN, Access::Read);
                assert!(matches!(seen, Ok(Resolution::Spurious | Resolution::Raced)), "{seen:?}");
            }
        },
        |mm| is_own(mm, WRITTEN),
    );
}

/// R18: two CPUs write one shared page. It is copied once; the other finds the copy, or lost the race and will.
#[test]
fn two_that_write_a_shared_page_make_one_copy() {
    model(
        true,
        |family, _| {
            let seen = handle_mm_fault(family.mm(), WRITTEN, Access::Write);
            assert!(matches!(seen, Ok(Resolution::PageCopied | Resolution::Spurious | Resolution::Raced)), "{seen:?}");
        },
        |mm| is_own(mm, WRITTEN),
    );
}

/// R15: both pages move within one table, while a fault fills the second. The first is there and nowhere else; the second is
/// at the new place if the fault came first, and the fault finds nothing mapped if it came last.
#[test]
fn a_move_within_one_table_against_a_fault() {
    model(
        false,
        |family, cpu| match cpu {
            0 => family.mm().mremap(region(), VirtRange::new(0x6000, 0x8000).unwrap()).unwrap(),
            _ => match handle_mm_fault(family.mm(), UNTOUCHED, Access::Write) {
                Ok(Resolution::AnonymousPage) | Err(FaultError::NotMapped) => (),
                other => panic!("{other:?}"),
            },
        },
        |mm| {
            is_own(mm, VirtAddr(0x6000));
            for left in [WRITTEN, UNTOUCHED] {
                assert_eq!(pte_at(mm, left), Some(Entry::NONE), "an entry is left behind");
            }
        },
    );
}
