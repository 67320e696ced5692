//! High memory: tables and pages that the kernel reaches only through mappings of the moment, used by all CPUs, and the end of
//! each zone (issue "PAE", point 4).

use alloc::vec::Vec;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch_x86::machine::X86;
use arch_x86::percpu;
use mm::address::Pfn;
use mm::config::NR_CPUS;
use mm::fault::{FaultError, handle_mm_fault};
use mm::frame::{MAX_ORDER, Zone};
use mm::machine::Machine;
use mm::pgtable::{Entry, EntrySlot, Level, pmd_offset, pte_offset_map, pte_unmap};
use mm::sync::rcu;
use mm::vma::Access;

use super::support::{TABLE, add, map_anonymous, needs_a_second_cpu, page, pages, read, write};
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

    /// High memory is used up first, then low memory, then there is an error, after which what is mapped is all there, and more
    /// can be when memory comes back. Once with pages alone, once with a table for each page.
    #[only("PAE")]
    fn high_memory_and_then_low_memory_end_in_a_clean_error(_t: &TestContext) {
        const LEFT: u64 = 64;
        needs_memory_above_4_gib()?;
        for stride in [1, TABLE] {
            let mm = Mm::create(memory())?;
            map_anonymous(&mm, pages(0, 512 * stride))?;
            let _user = enter(&mm);
            // The tables on the way.
            write(0, 0)?;
            let hoard = Hoard::all_but([LEFT; 3])?;
            let first_error = (1..512).find(|&number| write(number * stride, number).is_err());
            let written = first_error.ok_or("there is no end of memory")?;
            let access = handle_mm_fault(&mm, page(written * stride), Access::Write);
            ktest_assert_eq!(access, Err(FaultError::OutOfMemory));
            ktest_assert_eq!(memory().frames().free_frames(X86), 0);
            let used = (1..written).map(|number| table_and_frame(&mm, number * stride));
            let (tables, frames): (Vec<Pfn>, Vec<Pfn>) = used.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
            for used in [&tables, &frames] {
                ktest_assert!(used.is_sorted_by_key(|pfn| !X86.is_high(*pfn)), "a high frame after a low one");
            }
            let count = |frames: &[Pfn], high| frames.iter().filter(|pfn| X86.is_high(**pfn) == high).count() as u64;
            let both = if stride == 1 { frames } else { [frames, tables].concat() };
            let (high, low) = (count(&both, true), count(&both, false));
            ktest_assert!((LEFT / 2..=2 * LEFT).contains(&high), "{high} of twice {LEFT} high frames");
            ktest_assert!((LEFT / 2..=LEFT).contains(&low), "{low} of {LEFT} low frames");
            for number in 0..written {
                ktest_assert_eq!(read(number * stride)?, number);
            }
            drop(hoard);
            write(written * stride, written)?;
            // Its table may be from the first try, which found memory for that alone.
            let (_, frame) = table_and_frame(&mm, written * stride)?;
            ktest_assert!(X86.is_high(frame), "high memory is not first again");
        }
    }

    /// Low memory alone is used up. An address space, whose upper tables are there, cannot be made, and leaves nothing behind; those
    /// there are get pages from high memory as before.
    #[only("PAE")]
    fn without_low_memory_there_are_pages_and_no_address_spaces(_t: &TestContext) {
        needs_memory_above_4_gib()?;
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 8))?;
        let _user = enter(&mm);
        write(0, 0)?;
        let hoard = Hoard::all_but([0, 64, 64])?;
        let before = memory().frames().free_frames(X86);
        ktest_assert!(Mm::create(memory()).is_err(), "an address space without low memory");
        settle();
        ktest_assert_eq!(memory().frames().free_frames(X86), before);
        for number in 1..8 {
            write(number, number)?;
        }
        drop(hoard);
        drop(Mm::create(memory())?);
    }

    /// CPUs map and use frames, up to half of their slots, while interrupts come whose handlers use the other half: neither finds
    /// anything but its own frames. Every second interrupt comes at any moment, the others while all is mapped.
    #[only("PAE")]
    fn interrupts_map_above_what_they_interrupt(t: &TestContext) {
        const INTERRUPTS: usize = 32;
        needs_a_second_cpu(t)?;
        needs_memory_above_4_gib()?;
        // Two for the thread in turn, so that each slot changes its frame each time, and one for the handler.
        let take = |_| Ok([Frames::take()?, Frames::take()?, Frames::take()?]);
        let frames: Vec<[Frames; 3]> = (0..t.cpus()).map(take).collect::<Result<_, Stop>>()?;
        let handled = [const { AtomicUsize::new(0) }; NR_CPUS];
        let done = AtomicBool::new(false);
        let handler = || {
            let cpu = percpu::cpu().index();
            let number = handled[cpu].load(Ordering::Relaxed);
            let is_well = frames[cpu][2].are_used(number, || ());
            t.check(is_well, format_args!("cpu {cpu}: an interrupt's frame is another's"));
            handled[cpu].store(number + 1, Ordering::Release);
        };
        crew::run(online(), &|member| {
            if member.index == 0 {
                (0..INTERRUPTS).for_each(|_| call_on(online().without(member.cpu), &handler));
                done.store(true, Ordering::Release);
                return;
            }
            let cpu = member.cpu.index();
            let is_over = || done.load(Ordering::Acquire);
            for round in (0..).take_while(|_| !is_over()) {
                let before = handled[cpu].load(Ordering::Acquire);
                let wait = || {
                    while before % 2 == 1 && handled[cpu].load(Ordering::Acquire) == before && !is_over() {
                        spin_loop();
                    }
                };
                let is_well = frames[cpu][round % 2].are_used(round, wait);
                t.check(is_well, format_args!("cpu {cpu}: a frame is an interrupt's"));
            }
        })?;
    }
}

/// As many frames of high memory as half of the slots of a CPU, each with a mark of its own. Given back when dropped.
struct Frames {
    frames: [Pfn; 4],
    /// The use whose marks they have. Whoever uses them is alone with them, so relaxed.
    marked: AtomicUsize,
}

impl Frames {
    fn take() -> Result<Self, Stop> {
        let mut new = Self { frames: [Pfn(0); 4], marked: AtomicUsize::new(0) };
        for frame in &mut new.frames {
            *frame = memory().frames().alloc_zeroed(X86)?;
        }
        new.use_marked(0, |_| true, || ());
        Ok(new)
    }

    /// Maps all of them and marks each as the `number`-th use; whether they had the marks of the last one, and after `between`
    /// those of this.
    fn are_used(&self, number: usize, between: impl FnOnce()) -> bool {
        let last = self.marked.load(Ordering::Relaxed);
        self.use_marked(number, |(pfn, found)| found == mark(pfn, last), between)
    }

    fn use_marked(&self, number: usize, had: impl Fn((Pfn, Entry)) -> bool, between: impl FnOnce()) -> bool {
        let maps = self.frames.map(|pfn| X86.map_table(pfn, Level::Pte));
        let marks = || self.frames.into_iter().zip(maps.map(|map| &map[0]));
        let had_marks = marks().all(|(pfn, place)| had((pfn, place.swap(mark(pfn, number)))));
        between();
        let has_marks = marks().all(|(pfn, place)| place.load() == mark(pfn, number));
        maps.into_iter().rev().for_each(|map| X86.unmap_table(map));
        self.marked.store(number, Ordering::Relaxed);
        had_marks && has_marks
    }
}

fn mark(pfn: Pfn, number: usize) -> Entry {
    Entry::table(Pfn(pfn.0 ^ (number as u64 & 0xff) << 24))
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.frames.iter().for_each(|pfn| memory().frames().free(X86, *pfn));
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
    let (table, frame) = (pte.pmd().pfn(), pte.load().pfn());
    ktest_assert_eq!(X86.mapped(), usize::from(X86.is_high(table)));
    pte_unmap(pte);
    ktest_assert_eq!(X86.mapped(), 0);
    Ok((table, frame))
}

/// Frames taken away from each zone, to be given back when dropped.
#[derive(Default)]
struct Hoard([Vec<(Pfn, u32)>; Zone::ALL.len()]);

impl Hoard {
    /// Takes every frame but so many of each zone.
    fn all_but(left: [u64; Zone::ALL.len()]) -> Result<Self, Stop> {
        settle();
        memory().frames().drain(X86);
        let mut hoard = Self::default();
        // From the first to be given out to the last, and back: so each allocation meets the zone it is for.
        for zone in Zone::ALL.into_iter().rev() {
            take_all(&mut hoard.0[zone as usize], zone);
        }
        for zone in Zone::ALL {
            leave(&mut hoard.0[zone as usize], zone, left[zone as usize])?;
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
