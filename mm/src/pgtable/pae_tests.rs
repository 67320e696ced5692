//! `mm` with PAE's tables, on simulated CPUs that latch the entries of the top table and know no change of one before they load
//! it again (spec 6.1).

use super::{
    Entry, EntrySlot, FourLevel, Level, Pae, PagingMode, Protection, SlotPae, leaf_at, pmd_offset, pte_offset_map,
};
use crate::address_space::{Mapping, MmRef};
use crate::cpu::CpuId;
use crate::fault::{FaultError, handle_mm_fault};
use crate::gather::MmuGather;
use crate::machine::Machine;
use crate::machine::sim::{ABOVE_4_GIB, Sim, SimConfig, SimMode};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::rcu;
use crate::testing::{Process, World, map_anonymous, map_huge, page, pages};
use crate::tlb::check_latched;
use crate::vma::Access;
use std::sync::atomic::{AtomicBool, Ordering};

const CPU1: CpuId = CpuId(1);
const CPU2: CpuId = CpuId(2);

/// Pages of one entry of the top table.
const GIB: u64 = 1 << 18;

/// CPU 1 has the address space loaded and has used a page in the first GiB, none in the second. The second has no PMD table
/// any more.
fn rig() -> (World<Pae>, MmRef<Sim<Pae>>, Process<Pae>) {
    let world = World::<Pae>::new(SimConfig::calm(512, 3, 1));
    let mm = world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0x200, 0x201));
        map_anonymous(&mm, pages(GIB, GIB + 1));
        mm.munmap(pages(GIB, GIB + 1)).unwrap();
        map_anonymous(&mm, pages(GIB, GIB + 1));
        assert_eq!(mm.linked_table_bytes(), 2 * 4096);
        mm
    });
    let process = world.machine.run_cpu(CPU1, || {
        let process = Process::enter(&world, &mm);
        process.write(page(0x200), 1).unwrap();
        process
    });
    (world, mm, process)
}

fn counted(world: &World<Pae>, cpu: CpuId, work: impl FnOnce()) -> StatsSnapshot {
    let stats = || world.machine.handle().cpus().of(cpu).stats.snapshot();
    let before = stats();
    world.alone(work);
    stats().since(&before)
}

fn touch(mm: &MmRef<Sim<Pae>>, number: u64) {
    handle_mm_fault(mm, page(number), Access::Write).unwrap();
}

/// The simulated machine's mode passes on what the mode says: else it would quietly have the defaults.
#[test]
fn the_machine_knows_what_the_mode_is_like() {
    assert_eq!(<SimMode<Pae> as PagingMode>::PREALLOCATED, 3);
    const { assert!(<SimMode<Pae> as PagingMode>::LATCHED_TOP && !<SimMode<FourLevel> as PagingMode>::LATCHED_TOP) };
    const { assert!(!<<SimMode<Pae> as PagingMode>::Slot as EntrySlot>::ONE_ACCESS && !SlotPae::ONE_ACCESS) };
    let entry = Entry::table(crate::address::Pfn(0x100));
    assert_eq!(SimMode::<Pae>::to_hardware(Level::Pgd, entry).0, 0x10_0001);
    assert_eq!(SimMode::<Pae>::from_hardware(Level::Pgd, Entry(0x10_0001)), entry);
}

/// R31, I38: CPU 0 fills an entry of the top table on behalf of a fault; CPU 1, which runs on that table, finds the page by its
/// own walk as soon as the fault returns, without a fault of its own.
///
/// Without the reload (`flush_top`) it faults for ever: the kernel finds nothing to do.
#[test]
fn a_filled_entry_is_known_to_whoever_runs_on_it() {
    let (world, mm, process) = rig();
    let served = counted(&world, CPU1, || touch(&mm, GIB));
    assert_eq!((served[Counter::FlushesServed], served[Counter::FlushesFull]), (1, 1));
    world.machine.run_cpu(CPU1, || {
        let mut faults = 0;
        let sim = world.machine.handle();
        let handler = |_, _| {
            faults += 1;
            Err(FaultError::NotMapped)
        };
        assert_eq!(sim.user(handler).read(page(GIB)), Ok(0));
        assert_eq!((faults, check_latched(&mm)), (0, Ok(())));
        sim.assert_coherent();
        drop(process);
    });
    world.alone(|| drop(mm));
}

/// R26 for the top table: a lazy CPU is passed by, and loads the table again when it comes back.
#[test]
fn a_lazy_cpu_learns_of_a_filled_entry_when_it_comes_back() {
    let (world, mm, mut process) = rig();
    world.machine.run_cpu(CPU1, || process.enter_lazy());
    let served = counted(&world, CPU1, || touch(&mm, GIB));
    assert_eq!(served[Counter::FlushesServed], 0);
    world.machine.run_cpu(CPU1, || {
        assert_eq!(check_latched(&mm), Ok(()), "nobody uses it");
        process.switch_to(&mm);
        assert_eq!(check_latched(&mm), Ok(()));
        world.machine.handle().assert_coherent();
        assert_eq!(process.read(page(GIB)), Ok(0));
        drop(process);
    });
    world.alone(|| drop(mm));
}

/// I30, I33, I38: a PMD table that an unmapping takes is unknown to every CPU before it is freed, lazy ones included. The machine
/// complains of a table that is freed while a CPU has its entry latched.
#[test]
fn a_freed_pmd_table_is_latched_nowhere() {
    for lazy in [false, true] {
        let (world, mm, mut process) = rig();
        world.machine.run_cpu(CPU1, || {
            process.write(page(GIB), 1).unwrap();
            if lazy {
                process.enter_lazy();
            }
        });
        let served = counted(&world, CPU1, || {
            mm.munmap(pages(GIB, GIB + 1)).unwrap();
            assert_eq!(mm.linked_table_bytes(), 3 * 4096);
            world.settle();
        });
        assert_eq!((served[Counter::LazyLeft], served[Counter::FlushesFull]), (u64::from(lazy), u64::from(!lazy)));
        world.machine.run_cpu(CPU1, || {
            if lazy {
                process.switch_to(&mm);
            }
            assert_eq!(check_latched(&mm), Ok(()));
            world.machine.handle().assert_coherent();
            assert_eq!(process.read(page(GIB)), Err(FaultError::NotMapped));
            assert_eq!(process.read(page(0x200)), Ok(1));
            drop(process);
        });
        world.alone(|| drop(mm));
    }
}

/// The check of I38 can fail: an entry changed behind everybody's back is named, and so says the machine.
#[test]
fn a_stale_copy_is_found() {
    let (world, mm, process) = rig();
    world.machine.run_cpu(CPU1, || {
        let sim = world.machine.handle();
        let slots = sim.map_small_top(mm.pgd());
        assert_eq!(check_latched(&mm), Ok(()));
        let entry = slots[2].swap(Entry::NONE);
        assert_eq!(check_latched(&mm), Err(2));
        // Who takes one out has perhaps not flushed it yet.
        let gather = MmuGather::new(&mm);
        assert_eq!(check_latched(&mm), Ok(()));
        gather.finish();
        assert_eq!(check_latched(&mm), Err(2));
        slots[2].store(entry);
        // A walker of an emulator has set A.
        slots[0].compare_exchange(slots[0].load(), Entry(slots[0].load().0 | 1 << 5)).unwrap();
        assert_eq!(check_latched(&mm), Ok(()));
        slots[0].swap(Entry(slots[0].load().0 & !(1 << 5)));
        drop(process);
    });
    world.alone(|| drop(mm));
}

/// R30: whoever takes a PTE table out of a slot that may be filled again at once has every CPU take an interrupt first, also
/// those that have nothing to do with the address space. In modes whose entries are one word nobody else is bothered.
#[test]
fn a_pte_table_goes_after_all_cpus_have_taken_an_interrupt() {
    fn interrupts<Mode: PagingMode>(work: impl Fn(&MmRef<Sim<Mode>>)) -> u64 {
        let world = World::<Mode>::new(SimConfig::calm(512, 3, 1));
        let taken = || world.machine.interrupts_taken(CPU2);
        world.alone(|| {
            let mm = world.mm();
            // In the same PMD table, so that this stays.
            map_anonymous(&mm, pages(0x1000, 0x1001));
            map_anonymous(&mm, pages(0x200, 0x400));
            handle_mm_fault(&mm, page(0x200), Access::Write).unwrap();
            handle_mm_fault(&mm, page(0x1000), Access::Write).unwrap();
            let before = taken();
            work(&mm);
            taken() - before
        })
    }
    let drop_contents = |mm: &MmRef<Sim<Pae>>| mm.madvise_dontneed(pages(0x200, 0x400)).unwrap();
    assert_eq!(interrupts::<Pae>(drop_contents), 1);
    assert_eq!(interrupts::<Pae>(|mm| mm.munmap(pages(0x200, 0x400)).unwrap()), 1);
    assert_eq!(interrupts::<Pae>(|mm| mm.munmap(pages(0x200, 0x300)).unwrap()), 0, "the table stays");
    assert_eq!(interrupts::<FourLevel>(|mm| mm.madvise_dontneed(pages(0x200, 0x400)).unwrap()), 0);
    assert_eq!(interrupts::<FourLevel>(|mm| mm.munmap(pages(0x200, 0x400)).unwrap()), 0);
}

/// R29: CPU 1 is in the midst of reading a slot, with interrupts off, when CPU 0 takes the table out of it. CPU 2, which wants one
/// there, waits for the PMD lock until CPU 1 is through.
#[test]
fn a_slot_is_not_filled_again_before_its_readers_are_through() {
    let world = World::<Pae>::new(SimConfig::calm(512, 3, 1));
    let (sim, mm) = (world.machine.handle(), world.alone(|| world.mm()));
    world.alone(|| {
        map_anonymous(&mm, pages(0x200, 0x400));
        touch(&mm, 0x200);
    });
    let pmd = || {
        let rcu = rcu::read_lock(sim);
        pmd_offset(&mm, &rcu, page(0x200)).unwrap().slot(page(0x200)).load()
    };
    let (reads, is_gone) = (AtomicBool::new(false), AtomicBool::new(false));
    let wait_for = |flag: &AtomicBool| {
        while !flag.load(Ordering::Acquire) {
            sim.pause();
        }
    };
    world.machine.run_all(|cpu| match cpu.0 {
        0 => {
            wait_for(&reads);
            mm.madvise_dontneed(pages(0x200, 0x400)).unwrap();
        }
        1 => {
            let irqs = sim.irq_save();
            reads.store(true, Ordering::Release);
            while !pmd().is_none() {
                sim.pause();
            }
            is_gone.store(true, Ordering::Release);
            for _ in 0..2000 {
                assert!(pmd().is_none(), "filled while a CPU may hold half of what was there");
                sim.pause();
            }
            sim.irq_restore(irqs);
        }
        _ => {
            wait_for(&is_gone);
            touch(&mm, 0x200);
        }
    });
    world.alone(|| assert!(pmd().is_table()));
    world.alone(|| drop(mm));
}

/// Nobody reads the tables of an address space that ends, so nobody is interrupted for them.
#[test]
fn the_end_of_an_address_space_interrupts_nobody() {
    let world = World::<Pae>::new(SimConfig::calm(512, 3, 1));
    let mm = world.alone(|| world.mm());
    world.alone(|| {
        map_anonymous(&mm, pages(0x200, 0x400));
        touch(&mm, 0x200);
        let before = world.machine.interrupts_taken(CPU1);
        drop(mm);
        assert_eq!(world.machine.interrupts_taken(CPU1), before);
    });
}

/// I39, spec 1.3: an entry of the top table with a bit that is reserved there is bad, though the bits are those of a table's
/// pointer anywhere else. It is reported with all its bits, cleared, and filled anew.
#[test]
fn reserved_bits_in_the_top_table_make_an_entry_bad() {
    let world = World::<Pae>::new(SimConfig::calm(512, 1, 1));
    world.alone(|| {
        let mm = world.mm();
        let sim = world.machine.handle();
        map_anonymous(&mm, pages(GIB, GIB + 1));
        let slots = sim.map_small_top(mm.pgd());
        let entry = slots[1].load();
        slots[1].swap(Entry::table(entry.pfn()));
        let rcu = rcu::read_lock(sim);
        assert!(pmd_offset(&mm, &rcu, page(GIB)).is_none());
        drop(rcu);
        assert_eq!((slots[1].load(), bad_entries(&world)), (Entry::NONE, 1));
        touch(&mm, GIB);
        mm.munmap(pages(GIB, GIB + 1)).unwrap();
        // Nobody knows any more what the bad entry named: back it goes, to be freed with the rest.
        slots[1].store(entry);
        assert_eq!(mm.linked_table_bytes(), 3 * 4096);
    });
}

fn bad_entries(world: &World<Pae>) -> u64 {
    StatsSnapshot::sum(world.machine.handle().cpus())[Counter::BadEntries]
}

/// I29 to I33, I38 with PMD tables that come and go under eight CPUs: each uses a page of its own in every GiB, and takes its
/// neighbour's GiB away or its own pages; now and then it is lazy. Walkers look ahead.
#[test]
fn pmd_tables_come_and_go_under_their_users() {
    for seed in 1..4 {
        let world = World::<Pae>::new(SimConfig::racy(2048, 8, seed));
        let mm = world.alone(|| world.mm());
        // The third GiB is of regions that come and go, the first stays.
        world.alone(|| map_anonymous(&mm, pages(0x200, 0x240)));
        world.machine.run_all(|cpu| {
            let own = u64::from(cpu.0);
            let mut process = Process::enter(&world, &mm);
            for round in 0..40 {
                process.write(page(0x200 + own), round).unwrap();
                let first = (1 + round % 2) * GIB + own * 0x200;
                let range = pages(first, first + 2);
                mm.mmap(range, Protection::READ_WRITE, Mapping::Anonymous).unwrap();
                assert_eq!(process.fetch_add(page(first), 1), Ok(0), "an old page shows");
                assert_eq!(check_latched(&mm), Ok(()));
                mm.munmap(range).unwrap();
                assert_eq!(process.read(page(first)), Err(FaultError::NotMapped));
                assert_eq!(check_latched(&mm), Ok(()));
                if round % 4 == own % 4 {
                    process.enter_lazy();
                    (0..10).for_each(|_| world.machine.handle().pause());
                    process.switch_to(&mm);
                }
                assert_eq!(process.read(page(0x200 + own)), Ok(round));
            }
        });
        world.alone(|| {
            world.machine.handle().assert_coherent();
            drop(mm);
        });
    }
}

/// A CPU without no-execute takes the bit for a reserved one: no entry has it, whoever makes or changes it.
#[test]
fn a_machine_without_no_execute_never_sees_the_bit() {
    let world = World::<Pae>::new(SimConfig { no_execute: false, ..SimConfig::calm(2048, 1, 1) });
    world.alone(|| {
        let mm = world.mm();
        map_anonymous(&mm, pages(0, 4));
        map_huge(&mm, pages(0x200, 0x400));
        let process = Process::enter(&world, &mm);
        let entries_are_bare = |what: &str, mm: &MmRef<Sim<Pae>>, level: Level| {
            for number in [0, 1, 0x200] {
                let (found, entry) = leaf_at(mm, page(number)).expect(what);
                assert_eq!(found, if number == 0x200 { level } else { Level::Pte }, "{what}");
                assert!(entry.is_executable(), "{what}: page {number:#x} is {entry:?}");
            }
        };
        process.write(page(0), 1).unwrap();
        assert_eq!(process.read(page(1)), Ok(0));
        process.write(page(0x200), 1).unwrap();
        entries_are_bare("faulted in", &mm, Level::Pmd);
        for protection in [Protection::READ, Protection::READ_WRITE] {
            mm.mprotect(pages(0, 4), protection).unwrap();
            mm.mprotect(pages(0x200, 0x400), protection).unwrap();
            entries_are_bare("protected", &mm, Level::Pmd);
        }
        assert!(mm.split_huge_page(page(0x200)));
        entries_are_bare("split", &mm, Level::Pte);
        let child = mm.fork().unwrap();
        entries_are_bare("of the parent", &mm, Level::Pte);
        entries_are_bare("of the child", &child, Level::Pte);
        process.write(page(0), 2).unwrap();
        entries_are_bare("copied", &mm, Level::Pte);
    });
}

/// A PTE table and its pages have addresses above 4 GiB, and eight CPUs use them: through their walkers, and by mappings of the
/// moment, of which each has one. The emulator that the kernel runs on cannot show that of tables.
#[test]
fn a_table_and_pages_above_4_gib_are_used_by_eight_cpus() {
    const ROUNDS: u64 = 10;
    let world = World::<Pae>::new(SimConfig { table_frames: None, ..SimConfig::racy(512, 8, 1) });
    let mm = world.alone(|| world.mm());
    world.alone(|| map_anonymous(&mm, pages(0x200, 0x210)));
    world.machine.run_all(|_| {
        let (sim, process) = (world.machine.handle(), Process::enter(&world, &mm));
        for number in (0..ROUNDS).flat_map(|_| 0x200..0x210) {
            process.fetch_add(page(number), 1).unwrap();
            let rcu = rcu::read_lock(sim);
            let pmds = pmd_offset(&mm, &rcu, page(number)).unwrap();
            let pte = pte_offset_map(&mm, pmds.slot(page(number)), page(number)).unwrap();
            assert!(pte.pmd().pfn() >= ABOVE_4_GIB && pte.load().pfn() >= ABOVE_4_GIB && sim.mapped() == 1);
        }
    });
    world.alone(|| {
        let process = Process::enter(&world, &mm);
        (0x200..0x210).for_each(|number| assert_eq!(process.read(page(number)), Ok(8 * ROUNDS)));
        drop(process);
        drop(mm);
    });
}
