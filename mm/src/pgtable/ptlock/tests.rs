use super::{PtlGuard, PtlStorage, ptl, ptlock_cache_init};
use crate::config::{ALLOC_SPLIT_PTLOCKS, DEBUG_SPINLOCK, USE_SPLIT_PTE_PTLOCKS};
use crate::cpu::CpuId;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::page::Page;
use crate::pgtable::alloc::{OutOfTables, UnpublishedTable, pagetable_dtor_free, pagetable_pte_ctor};
use crate::pgtable::{FourLevel, Level};
use crate::slab::{Slab, SlabKind};
use crate::sync::debug::DebugLock;
use crate::sync::ticket::TicketLock;
use crate::sync::{Algorithm, BuildLock, LockClass, Nesting, RawLock, order};
use crate::testing::World;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn calm() -> World<FourLevel> {
    World::new(SimConfig::calm(64, 1, 1))
}

/// The message `body` panics with.
fn panic_of(body: impl FnOnce()) -> String {
    let error = catch_unwind(AssertUnwindSafe(body)).expect_err("nothing was noticed");
    error.downcast::<String>().map_or_else(|error| error.downcast::<&str>().unwrap().to_string(), |text| *text)
}

/// Spec 4.2: inline if it fits in a long, else a pointer; and the descriptor is as large either way.
#[test]
fn the_size_of_a_lock_decides_where_it_lives() {
    type Debug = DebugLock<TicketLock>;
    assert!((size_of::<TicketLock>()..size_of::<Debug>()).contains(&size_of::<usize>()));
    assert_eq!([PtlStorage::<TicketLock>::ALLOCATED, PtlStorage::<Debug>::ALLOCATED], [false, true]);
    assert_eq!(size_of::<PtlStorage<TicketLock>>(), size_of::<usize>());
    assert_eq!(size_of::<PtlStorage<Debug>>(), size_of::<usize>());
    assert_eq!((size_of::<Page<TicketLock>>(), size_of::<Page<Debug>>()), (64, 64));
    assert_eq!(ALLOC_SPLIT_PTLOCKS, DEBUG_SPINLOCK || size_of::<Algorithm>() > size_of::<usize>());
}

/// A boot without memory for the cache ends there; a build that needs no cache takes no memory for it.
#[test]
fn a_page_ptl_cache_that_cannot_be_made_is_fatal() {
    let world = calm();
    world.alone(|| {
        let handle = world.machine.handle();
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        injection.fail_from(1);
        let made = catch_unwind(AssertUnwindSafe(|| ptlock_cache_init(Slab::new(), handle, world.memory.frames())));
        let seen = injection.stop().seen;
        assert_eq!((made.is_err(), seen), if ALLOC_SPLIT_PTLOCKS { (true, 1) } else { (false, 0) });
        if let Err(error) = made {
            assert_eq!(*error.downcast::<&str>().unwrap(), "cannot make the slab cache page->ptl");
        }
    });
}

/// One lock object per table that has a lock of its own, from constructor to destructor (I4), and none left behind by a
/// constructor that fails.
#[test]
fn a_lock_is_made_and_freed_with_its_table() {
    let world = calm();
    world.alone(|| {
        let handle = world.machine.handle();
        let locks = || world.memory.slab().objects(handle, SlabKind::PtlLock);
        let own = u64::from(ALLOC_SPLIT_PTLOCKS && USE_SPLIT_PTE_PTLOCKS);
        let table = UnpublishedTable::allocate(world.memory, Level::Pte).unwrap();
        assert_eq!(locks(), own);
        let upper = UnpublishedTable::allocate(world.memory, Level::Pud).unwrap();
        assert_eq!(locks(), own, "tables above the PMD have no lock of their own");
        drop(upper);
        drop(table);
        assert_eq!(locks(), 0);
        if USE_SPLIT_PTE_PTLOCKS {
            let injection = &world.machine.cpus().of(CpuId(0)).injection;
            // The table's frame comes first, then its lock.
            injection.fail_nth(2);
            assert!(matches!(UnpublishedTable::allocate(world.memory, Level::Pte), Err(OutOfTables)));
            assert_eq!(injection.stop().failed, Some(crate::frame::Site::PtlLock));
            assert_eq!(locks(), 0);
        }
    });
}

/// I9, I4: a second constructor finds the first one's work.
#[test]
fn a_table_constructed_twice_is_caught() {
    let world = calm();
    world.alone(|| {
        let table = UnpublishedTable::allocate(world.memory, Level::Pte).unwrap();
        let pfn = table.into_pfn();
        let text = panic_of(|| assert!(pagetable_pte_ctor(world.memory, pfn).is_ok()));
        assert!(text.contains("constructed twice") || text.contains("which is in use (I8)"), "{text}");
        pagetable_dtor_free(world.memory, pfn);
    });
}

/// I12, in both forms; the debug form also says who has the lock and where it was taken.
#[test]
fn a_table_destroyed_with_its_lock_held_is_caught() {
    let world = calm();
    world.alone(|| {
        if !USE_SPLIT_PTE_PTLOCKS {
            return;
        }
        let handle: Sim<FourLevel> = world.machine.handle();
        let pfn = UnpublishedTable::allocate(world.memory, Level::Pte).unwrap().into_pfn();
        let page = world.memory.memmap().page(pfn);
        let lock = ptl(page);
        let guard = PtlGuard::<Sim<FourLevel>>::lock(handle, lock, LockClass::Pte);
        let text = panic_of(|| super::super::alloc::pagetable_dtor(world.memory, pfn));
        assert!(text.contains("held (I12)"), "{text}");
        assert_eq!(DEBUG_SPINLOCK, text.contains("cpu 0 has it, last taken at "), "{text}");
        assert!(lock.is_locked());
        drop(guard);
        if DEBUG_SPINLOCK {
            // The descriptor let go of the lock before the lock complained.
            let lock = std::ptr::NonNull::from(lock);
            #[allow(unsafe_code)]
            // SAFETY: it came from the cache, is free now, and nothing names it any more.
            unsafe {
                world.memory.free_value(SlabKind::PtlLock, lock)
            };
        }
        pagetable_dtor_free(world.memory, pfn);
    });
}

/// A report says where a second lock was taken, which is not in this module.
#[test]
fn a_second_lock_is_known_by_the_place_that_took_it() {
    let world = calm();
    world.alone(|| {
        let handle: Sim<FourLevel> = world.machine.handle();
        let [one, two] = [BuildLock::new(), BuildLock::new()];
        let first = PtlGuard::<Sim<FourLevel>>::lock(handle, &one, LockClass::Pmd);
        let _second = first.lock_second(&two, LockClass::Pte, Nesting::Plain);
        let text = panic_of(|| order::assert_may_wait(handle, "a thread"));
        assert!(text.contains("the lock of a PTE table"), "{text}");
        assert_eq!(text.matches("ptlock/tests.rs:").count(), 2, "who waits, and who took the lock: {text}");
    });
}

/// R5: T1 has a lock's address by `ro_nolock`; T2 runs the destructor at once; T1 takes the lock. The debug form's poison
/// catches T1.
#[test]
#[cfg(feature = "debug-locks")]
fn a_stale_lock_pointer_is_caught_by_the_poison() {
    let world = calm();
    world.alone(|| {
        let handle = world.machine.handle();
        let pfn = UnpublishedTable::allocate(world.memory, Level::Pte).unwrap().into_pfn();
        let page = world.memory.memmap().page(pfn);
        if !USE_SPLIT_PTE_PTLOCKS {
            return pagetable_dtor_free(world.memory, pfn);
        }
        let stale = ptl(page);
        pagetable_dtor_free(world.memory, pfn);
        let text = panic_of(|| stale.lock(handle, LockClass::Pte));
        assert!(text.contains("(bad magic"), "{text}");
        let unconstructed = panic_of(|| assert!(!ptl(page).is_locked()));
        assert!(unconstructed.contains("not constructed (I11, R5)"), "{unconstructed}");
    });
}
