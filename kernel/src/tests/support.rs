//! What the tests share: pages by number, accesses as user code makes them, delays that do not repeat.

use core::hint::black_box;

use arch_x86::layout::LEVELS;
use arch_x86::machine::X86;
use arch_x86::user_access::{AccessFault, UserAddr, fetch_add_u64, read_u64, write_u64};
use arch_x86::{apic, percpu};
use mm::address::{Pfn, VirtAddr, VirtRange};
use mm::address_space::MapError;
use mm::config::PAGE_SIZE;
use mm::cpu::CpuSet;
use mm::frame::OutOfFrames;
use mm::pgtable::{Entry, Protection, pte_at};

use crate::harness::Random;
use crate::interrupt::{call_on, start_timer};
use crate::memory::{Mapping, Mm, ObjectRef, memory};
use crate::smp::online;

/// Pages of a PTE table, and of all tables below a PMD table.
pub const TABLE: u64 = 512;
pub const PMD_TABLE: u64 = TABLE * TABLE;

/// Tables above a PTE table, without the top one.
pub const UPPER_TABLES: u64 = LEVELS as u64 - 2;

/// Page 0 is the first of a PMD table, 4 GiB up.
const BASE: u64 = 4 << 30;

/// The address of page `number`.
pub const fn page(number: u64) -> VirtAddr {
    VirtAddr(BASE + number * PAGE_SIZE as u64)
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
