//! What the tests share: pages by number, accesses as user code makes them, delays that do not repeat.

use core::hint::{black_box, spin_loop};

use arch_x86::layout::{LEVELS, Mode, TEST_BASE};
use arch_x86::machine::X86;
use arch_x86::user_access::{AccessFault, UserAddr, fetch_add_u64, read_u64, write_u64};
use arch_x86::{apic, percpu, time};
use mm::address::{Pfn, VirtAddr, VirtRange};
use mm::address_space::MapError;
use mm::config::PAGE_SIZE;
use mm::cpu::CpuSet;
use mm::frame::OutOfFrames;
use mm::pgtable::{Entry, PagingMode, Protection, pte_at};

use crate::harness::{Random, Stop, TestContext, TestResult};
use crate::interrupt::{call_on, start_timer};
use crate::memory::{Mapping, Mm, MmRef, ObjectRef, memory};
use crate::smp::online;

/// How long a CPU is given for what it does at once where it runs, in nanoseconds; host threads may not run for a while.
pub const PATIENCE_NANOS: u64 = 10_000_000_000;

/// For so long a CPU does without interrupts what others must wait for, in nanoseconds: long enough for them not to wait, if they
/// get that wrong and the host lets them run.
pub const DEAF_NANOS: u64 = 100_000_000;

/// Pages of a PTE table, and of all tables below a PMD table.
pub const TABLE: u64 = 512;
pub const PMD_TABLE: u64 = TABLE * TABLE;

/// PMD tables an address space has from the start.
const FROM_THE_START: u64 = Mode::PREALLOCATED as u64;

/// Tables that the first fault of an address space makes above its PTE table, the top one not among them.
pub const MADE_UPPER: u64 = LEVELS as u64 - 2 - if FROM_THE_START == 0 { 0 } else { 1 };

/// Tables that an address space with pages in one PMD table has linked above its PTE tables.
pub const LINKED_UPPER: u64 = MADE_UPPER + FROM_THE_START;

/// Tables that stay linked when an address space with pages in one PMD table has unmapped them: those it has had from the
/// start where it mapped nothing.
pub const LEFT_TABLES: u64 = FROM_THE_START.saturating_sub(1);

/// The address of page `number`. Page 0 is the first of a PMD table; with PAE there is one more after that, and no third.
pub const fn page(number: u64) -> VirtAddr {
    VirtAddr(TEST_BASE + number * PAGE_SIZE as u64)
}

/// A page far from page 0, with room for two tables: in PMD table `number` from there, or with PAE in the second one.
pub const fn far(number: u64) -> u64 {
    let beyond = page((number + 1) * PMD_TABLE);
    if beyond.0 <= Mode::USER_END.0 { number * PMD_TABLE } else { PMD_TABLE + number * 2 * TABLE % PMD_TABLE }
}

/// An address space that has no table where page 0 and its neighbours are, not even one from the start.
pub fn mm_without_tables() -> Result<MmRef, Stop> {
    let mm = Mm::create(memory())?;
    come_and_go(&mm, pages(0, 1))?;
    Ok(mm)
}

/// Maps anonymous memory and takes it away: a PMD table goes with it if nothing else needs it.
pub fn come_and_go(mm: &Mm, range: VirtRange) -> Result<(), Stop> {
    map_anonymous(mm, range)?;
    Ok(mm.munmap(range)?)
}

/// The pages from `first` up to `end`.
pub const fn pages(first: u64, end: u64) -> VirtRange {
    VirtRange { start: page(first), end: page(end) }
}

/// Reads the first word of page `number`.
pub fn read(number: u64) -> Result<u64, AccessFault> {
    read_u64(user(number)?)
}

/// Writes the first word of page `number`.
pub fn write(number: u64, value: u64) -> Result<(), AccessFault> {
    write_u64(user(number)?, value)
}

/// Adds to the first word of page `number` and returns what was there.
pub fn add(number: u64, value: u64) -> Result<u64, AccessFault> {
    fetch_add_u64(user(number)?, value)
}

/// Page `number` as an address for the accessors.
pub fn user(number: u64) -> Result<UserAddr, AccessFault> {
    UserAddr::new(page(number).0 as usize).ok_or(AccessFault::NotUser)
}

/// Maps anonymous memory that may be written.
pub fn map_anonymous(mm: &Mm, range: VirtRange) -> Result<(), MapError> {
    mm.mmap(range, Protection::READ_WRITE, Mapping::Anonymous)
}

/// Maps `object` from its page `first_page` on; it may be written.
pub fn map_object(mm: &Mm, range: VirtRange, object: &ObjectRef, first_page: u64) -> Result<(), MapError> {
    mm.mmap(range, Protection::READ_WRITE, Mapping::Object { object: object.clone(), first_page })
}

/// The frame page `number` shows, if any.
pub fn frame_at(mm: &Mm, number: u64) -> Option<Pfn> {
    pte_at(mm, page(number)).filter(|entry| entry.is_present()).map(Entry::pfn)
}

/// Sees that this CPU's reserve of frames is not empty, so that the next fault needs no other lock for its frame.
pub fn stock_a_frame() -> Result<(), OutOfFrames> {
    let frame = memory().frames().alloc(X86)?;
    memory().frames().free(X86, frame);
    Ok(())
}

/// The first `count` CPUs, or as many as there are.
pub fn first_cpus(count: usize) -> CpuSet {
    CpuSet(online().iter().take(count).fold(0, |set, cpu| set | CpuSet::only(cpu).0))
}

/// Skips a test that needs a second CPU.
pub fn needs_a_second_cpu(t: &TestContext) -> TestResult {
    if t.cpus() < 2 { Err(Stop::skipped(format_args!("needs two CPUs"))) } else { Ok(()) }
}

/// Waits until `so`, but no longer than `nanos`; whether it came to it.
pub fn await_within(nanos: u64, so: impl Fn() -> bool) -> bool {
    let give_up = time::now_nanos().saturating_add(nanos);
    while !so() {
        if time::now_nanos() >= give_up {
            return false;
        }
        spin_loop();
    }
    true
}

/// Passes the time of up to `most` turns of a loop. Without a `pause`, which gives the turn away where virtual CPUs run one
/// after the other.
pub fn dawdle(random: &mut Random, most: u64) {
    for turn in 0..random.below(most) {
        black_box(turn);
    }
}

/// As long as this lives no CPU but the one that made it has a tick, which would hide a lost wake-up by ending the halt.
/// The one CPU keeps it for the watchdog.
pub struct NoTicks;

impl NoTicks {
    /// Stops the ticks.
    pub fn new() -> Self {
        call_on(online().without(percpu::cpu()), &apic::stop_timer);
        Self
    }
}

impl Drop for NoTicks {
    fn drop(&mut self) {
        call_on(online().without(percpu::cpu()), &start_timer);
    }
}
