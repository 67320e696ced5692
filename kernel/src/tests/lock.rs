//! How many locks a fault takes, and how long anyone waits for one: counted, without a clock.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::spin_loop;
use core::sync::atomic::Ordering;

use arch_x86::machine::X86;
use arch_x86::{percpu, time};
use mm::config::USE_SPLIT_PTE_PTLOCKS;
use mm::cpu::CpuSet;
use mm::machine::Machine;
use mm::pgtable::{pmd_offset, pte_offset_map_lock};
use mm::stats::{Counter, LockCounter, LockPeak, StatsSnapshot};
use mm::sync::rwlock::MmapLock;
use mm::sync::{LockClass, rcu};

use super::race::held::{TableLock, await_halted};
use super::support::{
    NoTicks, PATIENCE_NANOS, add, dawdle, map_anonymous, map_object, page, pages, read, stock_a_frame, write,
};
use crate::harness::{AtomicCount, Random, Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mm, Object, enter, memory, statistics};
use crate::smp::online;
use crate::sync::acquisitions;
use crate::thread::{spawn_on, yield_now};
use crate::workload::crew;

ktest! {
    /// Two threads of one CPU are in `mmap_lock` for reading at once. What is noted of them goes with the thread, not the
    /// CPU, so neither is taken for one that takes the lock twice.
    fn threads_of_one_cpu_share_mmap_lock(_t: &TestContext) {
        let shared = Arc::new((MmapLock::new(), AtomicCount::new(0)));
        let spawn_reader = || {
            let shared = Arc::clone(&shared);
            spawn_on(percpu::cpu(), "reader", move || {
                let (lock, inside) = &*shared;
                let _reading = lock.read(X86);
                inside.fetch_add(1, Ordering::Relaxed);
                while inside.load(Ordering::Relaxed) < 2 {
                    yield_now();
                }
            })
        };
        let readers = [spawn_reader(), spawn_reader()];
        for reader in readers {
            reader?.join();
        }
    }

    /// A page fault on a present table takes one lock of any kind, `mm`'s or the kernel's, and it is the PTE table's. It
    /// stores to no line of the address space or the region, but where replacing a page flushes it: a flush is counted there.
    fn a_fault_on_a_present_table_takes_one_lock_of_any_kind(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        let object = Object::create(memory(), 64)?;
        map_anonymous(&mm, pages(0, 128))?;
        map_object(&mm, pages(128, 192), &object, 0)?;
        let _user = enter(&mm);
        write(127, 1)?;
        for index in 0..64 {
            object.page(index)?;
        }
        type Touch = fn(u64) -> Result<(), Stop>;
        let kinds: [(&str, u64, Touch); 4] = [
            ("anonymous write", 0, |number| Ok(write(number, 1)?)),
            ("anonymous read", 32, |number| Ok(read(number).map(|_| ())?)),
            ("zero page replaced", 32, |number| Ok(write(number, 1)?)),
            ("object page", 128, |number| Ok(read(number).map(|_| ())?)),
        ];
        for (what, first, touch) in kinds {
            // A tick may come during a fault, and takes locks of its own: none of `mm`'s, but of the kernel's.
            let mut fewest = u64::MAX;
            for number in first..first + 16 {
                stock_a_frame()?;
                let lines = shared_lines(&mm, number)?;
                let before = (X86.local().stats.snapshot(), acquisitions(percpu::cpu()));
                touch(number)?;
                let after = (X86.local().stats.snapshot(), acquisitions(percpu::cpu()));
                let taken = after.0.since(&before.0);
                let of_mm = taken.locks(LockClass::ALL, LockCounter::Acquired);
                ktest_assert!(of_mm == 1, "{what}: {of_mm} locks of mm");
                ktest_assert!(taken[Counter::MmapLockTaken] == 0, "{what}: mmap_lock is taken");
                ktest_assert_eq!(taken.locks(&[LockClass::Pte], LockCounter::Acquired), 1);
                // With the single lock, the lock itself is in the address space.
                let stored = lines != shared_lines(&mm, number)?;
                let must_store = what == "zero page replaced" || !USE_SPLIT_PTE_PTLOCKS;
                ktest_assert!(stored == must_store, "{what}: {} shared line is stored to", if stored { "a" } else { "no" });
                fewest = fewest.min(after.1 - before.1);
            }
            ktest_assert!(fewest == 0, "{what}: {fewest} locks of the kernel");
        }
    }

    /// Whoever waits for a page-table lock stands outside the queue for no more rounds than the rule allows, and from its
    /// ticket to the lock no more others come before it than there are other CPUs.
    fn waiting_for_a_page_table_lock_is_bounded(t: &TestContext) {
        const TURNS: u64 = 120;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        {
            let _user = enter(&mm);
            write(0, 0)?;
        }
        X86.cpus().iter().for_each(|(_, local)| local.stats.forget_peaks());
        let before = statistics();
        let seed = t.random().next_u64();
        crew::run(online(), &|member| {
            let mut random = Random::new(seed ^ member.index as u64);
            for _ in 0..TURNS {
                let rcu = rcu::read_lock(X86);
                let pmds = pmd_offset(&mm, &rcu, page(0));
                let pte = pmds.as_ref().and_then(|pmds| pte_offset_map_lock(&mm, pmds.slot(page(0)), page(0)));
                t.check(pte.is_some(), format_args!("the table has gone"));
                // Long enough for others to come, now and then for so long that they use up their rounds.
                let most = if random.below(16) == 0 { 200_000 } else { 20_000 };
                dawdle(&mut random, most);
            }
        })?;
        let locks = [LockClass::Pte];
        let counted: StatsSnapshot = statistics().since(&before);
        let (turns, rounds) = (counted.peak(&locks, LockPeak::TurnsInQueue), counted.peak(&locks, LockPeak::RoundsOutside));
        t.note(format_args!(
            "{} of {} waited, {} halts; at most {rounds} rounds outside and {turns} turns in the queue",
            counted.locks(&locks, LockCounter::Waited),
            counted.locks(&locks, LockCounter::Acquired),
            counted.locks(&locks, LockCounter::Halts),
        ));
        ktest_assert!(counted.locks(&locks, LockCounter::Acquired) >= TURNS * t.cpus() as u64);
        ktest_assert!(turns < t.cpus() as u64, "{turns} turns with {} CPUs", t.cpus());
        ktest_assert!(rounds <= X86.waiting_rule().rounds.into(), "{rounds} rounds");
        ktest_assert!(t.cpus() == 1 || counted.locks(&locks, LockCounter::Waited) > 0, "nobody had to wait");
    }

    /// CPUs that have used up their rounds while the lock was held take tickets and are served in the order of these: the
    /// last one after as many turns as there are other CPUs, and no more.
    fn tickets_are_served_in_their_order(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        {
            let _user = enter(&mm);
            write(0, 0)?;
        }
        X86.cpus().iter().for_each(|(_, local)| local.stats.forget_peaks());
        let before = statistics();
        let served = AtomicCount::new(0);
        let outcomes = crew::run(online(), &|member| {
            if member.index == 0 {
                let tickets = TableLock::Pte.hold(&mm, || {
                    member.meet_awake();
                    tickets_of(online().without(member.cpu))
                });
                return tickets.map(|tickets| (0, tickets));
            }
            member.meet_awake();
            let turn = TableLock::Pte.hold(&mm, || served.fetch_add(1, Ordering::Relaxed))?;
            Ok((turn, Vec::new()))
        })?;
        let outcomes = outcomes.into_iter().collect::<Result<Vec<(u64, Vec<u32>)>, Stop>>()?;
        let tickets = outcomes.first().map(|(_, tickets)| tickets.clone()).unwrap_or_default();
        ktest_assert!(tickets.len() + 1 == t.cpus(), "only {} CPUs took a ticket", tickets.len());
        // By ticket, with wrapping: all are close to each other.
        let first = tickets.first().copied().unwrap_or(0);
        let distance = |ticket: &u32| (ticket.wrapping_sub(first) << TICKET_SHIFT) as i32;
        let mut order: Vec<(i32, u64)> =
            tickets.iter().map(distance).zip(outcomes.iter().skip(1).map(|(turn, _)| *turn)).collect();
        order.sort_unstable();
        ktest_assert!(order.iter().map(|(_, turn)| *turn).eq(0..tickets.len() as u64), "served {order:?}");
        let counted = statistics();
        ktest_assert_eq!(counted.peak(&[LockClass::Pte], LockPeak::TurnsInQueue), t.cpus() as u64 - 1);
        let kicks = counted.since(&before).locks(&[LockClass::Pte], LockCounter::Kicks);
        ktest_assert!(t.cpus() == 1 || kicks > 0, "the lock changed hands and nobody who halted was kicked");
        let rounds = if t.cpus() > 1 { X86.waiting_rule().rounds } else { 0 };
        ktest_assert_eq!(counted.peak(&[LockClass::Pte], LockPeak::RoundsOutside), u64::from(rounds));
    }

    /// Waiters that have halted go on when the lock is given up though no tick ends their halt: each is kicked (I47, R38).
    fn a_halted_waiter_is_kicked(t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        {
            let _user = enter(&mm);
            write(0, 0)?;
        }
        let _no_ticks = NoTicks::new();
        let outcomes = crew::run(online(), &|member| {
            let others = online().without(member.cpu);
            for _ in 0..4 {
                if member.index == 0 {
                    let halted = TableLock::Pte.hold(&mm, || {
                        member.meet_awake();
                        await_halted(others)
                    })?;
                    t.check(halted, format_args!("not every CPU halts"));
                } else {
                    member.meet_awake();
                    TableLock::Pte.hold(&mm, || ())?;
                }
                // Or the next round's holder would come before this round's last waiter, and wait for it.
                member.meet();
            }
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
    }

    /// Increments under contention for one table's lock are all there: the lock excludes.
    fn a_page_table_lock_excludes(t: &TestContext) {
        const PAGES: u64 = 64;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES))?;
        crew::run(online(), &|member| {
            let _user = enter(&mm);
            member.meet();
            for number in 0..PAGES {
                t.check(add(number, 1).is_ok(), format_args!("page {number} cannot be written"));
            }
        })?;
        let _user = enter(&mm);
        for number in 0..PAGES {
            ktest_assert_eq!(read(number)?, t.cpus() as u64);
        }
    }
}

/// Every byte of the lines of the address space and of the region of page `number`.
fn shared_lines(mm: &Mm, number: u64) -> Result<Vec<u8>, Stop> {
    const LINE: usize = 64;
    let rcu = rcu::read_lock(X86);
    let region = mm.find_vma(&rcu, page(number)).ok_or("no region")?;
    let mut bytes = Vec::new();
    for (start, size) in [
        ((&raw const *mm).expose_provenance(), size_of_val(mm)),
        ((&raw const *region).expose_provenance(), size_of_val(region)),
    ] {
        let lines = start & !(LINE - 1)..(start + size).next_multiple_of(LINE);
        // SAFETY: the value and what shares its lines lie in a frame of mapped memory; only the bytes are looked at, and no
        // other CPU is in this address space.
        bytes.extend(lines.map(|at| unsafe { core::ptr::read_volatile(core::ptr::with_exposed_provenance::<u8>(at)) }));
    }
    Ok(bytes)
}

/// Tickets have 12 bits; this many above them.
const TICKET_SHIFT: u32 = 20;

/// The tickets of `cpus`, in their order, once all have halted with one; without those that do not come to it.
fn tickets_of(cpus: CpuSet) -> Vec<u32> {
    let give_up = time::now_nanos().saturating_add(PATIENCE_NANOS);
    let ticket = |cpu| X86.cpus().of(cpu).parking.waiting_for().filter(|wait| wait.asleep).and_then(|wait| wait.ticket);
    loop {
        let tickets: Vec<u32> = cpus.iter().filter_map(ticket).collect();
        if tickets.len() == cpus.iter().count() || time::now_nanos() >= give_up {
            return tickets;
        }
        spin_loop();
    }
}
