//! High memory: tables and pages that the kernel reaches only through mappings of the moment, used by all CPUs, and the end of
//! each zone (issue "PAE", point 4).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch_x86::machine::X86;
use mm::address::Pfn;
use mm::fault::{FaultError, handle_mm_fault};
use mm::frame::{MAX_ORDER, Zone};
use mm::machine::Machine;
use mm::pgtable::{Entry, EntrySlot, Level, pmd_offset, pte_offset_map, pte_unmap};
use mm::sync::rcu;
use mm::vma::Access;

use super::race::come_and_go::needs_a_second_cpu;
use super::support::{add, first_cpus, frame_at, map_anonymous, page, pages, read, write};
use crate::harness::{Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};
use crate::interrupt::call_on;
use crate::memory::{Mm, enter, memory, settle};
use crate::smp::online;
use crate::workload::crew;

/// The first frame whose address has more than 32 bits.
const ABOVE_4_GIB: Pfn = Pfn(1 << 20);

ktest! {
    /// The pages of a PTE table lie above 4 GiB, and the table as high as the machine's walkers reach. Every CPU adds to every
    /// page, reads the table through a mapping of its own, which it then has one of, and sees in the end what all have added.
    #[only("PAE")]
    fn a_high_table_and_pages_above_4_gib_are_used_from_all_cpus(t: &TestContext) {
        const PAGES: u64 = 16;
        const ROUNDS: u64 = 32;
        needs_memory_above_4_gib()?;
        let table_above = X86.walks(ABOVE_4_GIB);
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, PAGES))?;
        let outcomes = crew::run(online(), &|member| -> TestResult {
            let _user = enter(&mm);
            member.meet_awake();
            for step in 0..ROUNDS * PAGES {
                let number = (step + member.index as u64) % PAGES;
                add(number, 1)?;
                let (table, frame) = table_and_frame(&mm, number)?;
                ktest_assert!(frame >= ABOVE_4_GIB, "page {number} is {frame:?}");
                ktest_assert!(X86.is_high(table) && (table >= ABOVE_4_GIB || !table_above), "the table is {table:?}");
            }
            member.meet_awake();
            for number in 0..PAGES {
                ktest_assert_eq!(read(number)?, ROUNDS * member.count as u64);
            }
            Ok(())
        })?;
        outcomes.into_iter().collect::<TestResult>()?;
        let (table, frame) = table_and_frame(&mm, 0)?;
        t.note(format_args!("page 0 at {:#x}, its table at {:#x}", frame.address(), table.address()));
    }

    /// An interrupt maps a frame, and ends that, while the CPU is mapping frames itself: each finds what it has mapped.
    #[only("PAE")]
    fn an_interrupt_may_map_while_its_cpu_does(t: &TestContext) {
        const CALLS: usize = 1000;
        needs_a_second_cpu(t)?;
        needs_memory_above_4_gib()?;
        let frames = Marked::take()?;
        let Marked(ours) = &frames;
        let (done, wrong) = (AtomicBool::new(false), AtomicUsize::new(0));
        // What a frame shows where it is mapped is what lies in it.
        let look = |number: usize| {
            if mark(ours[number]) != mark_of(number) {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
        };
        let cpus = first_cpus(2);
        let looks = crew::run(cpus, &|member| {
            member.meet_awake();
            if member.index > 0 {
                (0..CALLS).for_each(|_| call_on(cpus.without(member.cpu), &|| look(2)));
                done.store(true, Ordering::Release);
                return 0;
            }
            let mut looks = 0_usize;
            while !done.load(Ordering::Acquire) {
                look(looks % 2);
                looks += 1;
            }
            looks
        })?;
        let wrong = wrong.load(Ordering::Relaxed);
        ktest_assert!(wrong == 0, "{wrong} of {} looks showed another frame", looks[0] + CALLS);
    }

    /// High memory is used up first, then low memory, then there is an error, after which what is mapped is all there, and more
    /// can be when memory comes back.
    #[only("PAE")]
    fn high_memory_and_then_low_memory_end_in_a_clean_error(_t: &TestContext) {
        const LEFT: u64 = 64;
        needs_memory_above_4_gib()?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 512))?;
        let _user = enter(&mm);
        // The tables on the way.
        write(0, 0)?;
        let hoard = Hoard::all_but(LEFT)?;
        let written = (1..512).find(|&number| write(number, number).is_err()).ok_or("there is no end of memory")?;
        ktest_assert_eq!(handle_mm_fault(&mm, page(written), Access::Write), Err(FaultError::OutOfMemory));
        ktest_assert_eq!(memory().frames().free_frames(X86), 0);
        let frames = (1..written).map(|number| frame_at(&mm, number).ok_or("a page has gone"));
        let frames = frames.collect::<Result<Vec<Pfn>, _>>()?;
        ktest_assert!(frames.is_sorted_by_key(|pfn| !X86.is_high(*pfn)), "a high frame after a low one");
        let high = frames.iter().filter(|pfn| X86.is_high(**pfn)).count() as u64;
        ktest_assert!((LEFT / 2..=2 * LEFT).contains(&high), "{high} of twice {LEFT} high frames");
        let low = frames.len() as u64 - high;
        ktest_assert!((LEFT / 2..=LEFT).contains(&low), "{low} of {LEFT} low frames");
        for number in 0..written {
            ktest_assert_eq!(read(number)?, number);
        }
        drop(hoard);
        write(written, written)?;
        ktest_assert!(frame_at(&mm, written).is_some_and(|pfn| X86.is_high(pfn)), "high memory is not first again");
    }
}

fn needs_memory_above_4_gib() -> TestResult {
    let ends = [Zone::High, Zone::Far].map(|zone| memory().frames().span(X86, zone).map(|(_, end)| end));
    if ends.into_iter().flatten().any(|end| end > ABOVE_4_GIB) {
        Ok(())
    } else {
        Err(Stop::skipped(format_args!("needs memory above 4 GiB that is not mapped for good")))
    }
}

/// The frames of the PTE table of page `number` and of the page.
fn table_and_frame(mm: &Mm, number: u64) -> Result<(Pfn, Pfn), Stop> {
    let rcu = rcu::read_lock(X86);
    let pmds = pmd_offset(mm, &rcu, page(number)).ok_or("no PMD table")?;
    let pmd = pmds.slot(page(number));
    let pte = pte_offset_map(mm, pmd, page(number)).ok_or("no PTE table")?;
    ktest_assert_eq!(X86.mapped(), 1);
    let frame = pte.load().pfn();
    pte_unmap(pte);
    ktest_assert_eq!(X86.mapped(), 0);
    Ok((pmd.load().pfn(), frame))
}

/// Three frames of high memory, each with its mark. They are given back when dropped.
struct Marked(Vec<Pfn>);

impl Marked {
    fn take() -> Result<Self, Stop> {
        let mut frames = Self(Vec::new());
        for number in 0..3 {
            let frame = memory().frames().alloc(X86)?;
            frames.0.push(frame);
            ktest_assert!(X86.is_high(frame), "{frame:?} is not high");
            let table = X86.map_table(frame, Level::Pte);
            table[0].store(mark_of(number));
            X86.unmap_table(table);
        }
        Ok(frames)
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|frame| memory().frames().free(X86, frame));
    }
}

/// The mark of frame `number`.
fn mark_of(number: usize) -> Entry {
    Entry::table(Pfn(0x100 + number as u64))
}

/// The mark that `frame` has.
fn mark(frame: Pfn) -> Entry {
    let table = X86.map_table(frame, Level::Pte);
    let mark = table[0].load();
    X86.unmap_table(table);
    mark
}

/// Frames taken away from each zone, to be given back when dropped.
#[derive(Default)]
struct Hoard([Vec<(Pfn, u32)>; Zone::ALL.len()]);

impl Hoard {
    /// Takes every frame but `left` of each zone.
    fn all_but(left: u64) -> Result<Self, Stop> {
        settle();
        memory().frames().drain(X86);
        let mut hoard = Self::default();
        // From the first to be given out to the last, and back: so each allocation meets the zone it is for.
        for zone in Zone::ALL.into_iter().rev() {
            take_all(&mut hoard.0[zone as usize], zone);
        }
        for zone in Zone::ALL {
            leave(&mut hoard.0[zone as usize], zone, left)?;
        }
        Ok(hoard)
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        for (block, order) in self.0.iter_mut().flat_map(|blocks| blocks.drain(..)) {
            memory().frames().free_order(X86, block, order);
        }
    }
}

/// Takes all blocks of `zone`, the largest first, when those given out before it are used up.
fn take_all(blocks: &mut Vec<(Pfn, u32)>, zone: Zone) {
    let frames = memory().frames();
    for order in (0..=MAX_ORDER).rev() {
        while let Ok(block) = frames.alloc_order(X86, order) {
            if Zone::of(X86, block) != zone {
                frames.free_order(X86, block, order);
                break;
            }
            blocks.push((block, order));
        }
    }
}

/// Gives the last of `blocks` back, and takes frames again until no more than `left` are free in `zone`.
fn leave(blocks: &mut Vec<(Pfn, u32)>, zone: Zone, left: u64) -> TestResult {
    let frames = memory().frames();
    let left = if frames.span(X86, zone).is_some() { left } else { 0 };
    while frames.free_frames_of(X86, zone) < left {
        let (block, order) = blocks.pop().ok_or("the machine has no so many frames")?;
        frames.free_order(X86, block, order);
    }
    while frames.free_frames_of(X86, zone) > left {
        blocks.push((frames.alloc(X86)?, 0));
    }
    Ok(())
}
