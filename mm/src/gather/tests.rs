//! Gathers on one CPU: how much is batched, what is bounded, and what two gathers at once owe each other.

use super::{MmuGather, TABLES};
use crate::cpu::CpuId;
use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{FourLevel, Level, UnpublishedTable, pmd_offset, pte_offset_map_lock};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::rcu;
use crate::testing::{Process, World, map_anonymous, page, pages};
use crate::vma::Access;
use std::sync::atomic::{AtomicU32, Ordering};

fn world() -> World<FourLevel> {
    World::new(SimConfig::calm(2048, 2, 1))
}

/// Shootdowns that unmapping `count` written pages takes, while another CPU has the address space loaded; allocations from
/// the `failing`-th on fail meanwhile.
fn shootdowns(count: u64, failing: Option<u32>) -> u64 {
    let world = world();
    let mm = world.alone(|| world.mm());
    let (entered, sent) = (AtomicU32::new(0), AtomicU32::new(u32::MAX));
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        if cpu.0 == 1 {
            entered.store(1, Ordering::Release);
            while sent.load(Ordering::Acquire) == u32::MAX {
                world.machine.handle().pause();
            }
            return;
        }
        map_anonymous(&mm, pages(0x200, 0x200 + count));
        (0x200..0x200 + count).for_each(|number| process.write(page(number), 1).unwrap());
        while entered.load(Ordering::Acquire) == 0 {
            world.machine.handle().pause();
        }
        let before = StatsSnapshot::sum(world.machine.cpus());
        let injection = &world.machine.cpus().of(CpuId(0)).injection;
        failing.into_iter().for_each(|nth| injection.fail_from(nth));
        mm.munmap(pages(0x200, 0x200 + count)).unwrap();
        injection.stop();
        world.machine.assert_no_translation(mm.pgd(), pages(0x200, 0x200 + count));
        let counted = StatsSnapshot::sum(world.machine.cpus()).since(&before);
        sent.store(counted[Counter::ShootdownsSent] as u32, Ordering::Release);
    });
    world.alone(|| drop(mm));
    u64::from(sent.into_inner())
}

/// Spec 8.2: a table's worth of pages, and more than one, is flushed once.
#[test]
fn pages_of_many_tables_are_flushed_once() {
    assert_eq!(shootdowns(5, None), 1);
    assert_eq!(shootdowns(600, None), 1);
}

/// Spec 8.2: without memory for longer lists the batches are smaller, and nothing else is different.
#[test]
fn without_memory_for_lists_a_gather_only_flushes_more_often() {
    assert_eq!(shootdowns(5, Some(1)), 1);
    // The last one for the tables.
    assert_eq!(shootdowns(600, Some(1)), 600 / 8 + 1);
    // One frame of 512 besides the 8 on the stack; the second table's pages find the rest of them.
    assert_eq!(shootdowns(600, Some(2)), 2);
}

/// R21: T1 has cleared an entry and not flushed it; T2 zaps the same range, finds none and returns. Nobody may read the old
/// page then.
#[test]
fn a_gather_that_finds_anothers_work_unflushed_flushes_it() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x208));
        let process = Process::enter(&world, &mm);
        (0x200..0x208).for_each(|number| process.write(page(number), 1).unwrap());

        let mut first = MmuGather::new(&mm);
        {
            let rcu = rcu::read_lock(world.machine.handle());
            let pmds = pmd_offset(&mm, &rcu, page(0x203)).unwrap();
            let pte = pte_offset_map_lock(&mm, pmds.slot(page(0x203)), page(0x203)).unwrap();
            let entry = pte.clear();
            world.memory.memmap().page(entry.pfn()).unmap();
            assert!(!first.remove_page(entry.pfn(), page(0x203)));
        }
        mm.madvise_dontneed(pages(0x203, 0x204)).unwrap();
        world.machine.assert_no_translation(mm.pgd(), pages(0x203, 0x204));

        let mut garbage = first.finish();
        garbage.free(world.memory);
        // Alone, a gather that takes nothing out flushes nothing.
        process.write(page(0x204), 2).unwrap();
        let flushes = || {
            let counts = StatsSnapshot::sum(world.machine.cpus());
            counts[Counter::FlushesRanged] + counts[Counter::FlushesFull]
        };
        let before = flushes();
        MmuGather::new(&mm).finish().free(world.memory);
        assert_eq!(flushes(), before);
        assert_eq!(process.read(page(0x204)), Ok(2));
    });
}

/// I10, I12: `pte_free_tlb`, `pmd_free_tlb` and `pud_free_tlb` free a table when it has been flushed and its readers are done.
/// One of them is under way while `munmap` takes the tables of all three levels.
#[test]
fn tables_of_every_level_wait_for_their_readers() {
    let world = world();
    let machine = world.machine.handle();
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x201));
        handle_mm_fault(&mm, page(0x200), Access::Write).unwrap();
        mm
    });
    let turn = AtomicU32::new(0);
    let await_turn = |wanted| {
        while turn.load(Ordering::Acquire) < wanted {
            machine.pause();
        }
    };
    let (top, all) = (1, world.memory.page_tables());
    assert_eq!(all, top + 3);
    machine.run_all(|cpu| {
        if cpu.0 == 0 {
            await_turn(1);
            mm.munmap(pages(0x200, 0x201)).unwrap();
            assert_eq!(mm.linked_table_bytes(), 0, "counted when they are unlinked, not when they are freed");
            world.memory.advance_deferred();
            assert_eq!(world.memory.page_tables(), all, "a table is freed under its reader");
            turn.store(2, Ordering::Release);
            return;
        }
        let _section = rcu::read_lock(machine);
        turn.store(1, Ordering::Release);
        await_turn(2);
    });
    world.alone(|| {
        while world.memory.advance_deferred() {}
        assert_eq!(world.memory.page_tables(), top);
        drop(mm);
    });
}

/// However many tables one gather takes out, only so many wait for their readers at a time.
#[test]
fn tables_of_one_gather_do_not_pile_up() {
    let world = world();
    world.alone(|| {
        let mm = world.mm();
        let mut gather: MmuGather<'_, Sim<FourLevel>> = MmuGather::new(&mm);
        for number in 0..1000 {
            let table = UnpublishedTable::allocate(world.memory, Level::Pte).unwrap();
            gather.pte_free_tlb(table.into_pfn(), page(number * 0x200));
            assert!(gather.garbage.tables() < TABLES);
            assert!(world.memory.page_tables() < 500, "{} tables after {number}", world.memory.page_tables());
        }
        world.memory.defer(gather.finish());
    });
}
