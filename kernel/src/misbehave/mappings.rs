//! Mappings of high memory used wrongly, one way each: the report must name the CPU and the rule. A kernel without high memory
//! knows none of these.

use alloc::vec::Vec;
use core::hint::black_box;
use core::mem;

use arch_x86::machine::X86;
use arch_x86::{interrupts, percpu};
use mm::fault::handle_mm_fault;
use mm::machine::Machine;
use mm::pgtable::{EntrySlot, Level, PteMap, pmd_offset, pte_offset_map, pte_unmap};
use mm::sync::rcu;
use mm::vma::Access;

use crate::harness::Stop;
use crate::interrupt::call_on;
use crate::memory::{Mm, memory};
use crate::tests::support::{TABLE, map_anonymous, page, pages};
use crate::{smp, thread};

/// A way to use mappings wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingMisuse {
    /// Of two mappings the first is ended first.
    Order,
    /// One is ended twice.
    Twice,
    /// There is one more than a CPU has slots.
    Depth,
    /// A table is read after its mapping has been ended.
    Stale,
    /// A thread ends without ending one.
    Leak,
    /// A thread sleeps with one.
    Sleep,
    /// An interrupt's handler leaves one.
    Interrupt,
}

/// Their words on the command line.
pub const KINDS: &[(&str, MappingMisuse)] = if cfg!(target_arch = "x86") {
    &[
        ("kmap-order", MappingMisuse::Order),
        ("kmap-twice", MappingMisuse::Twice),
        ("kmap-depth", MappingMisuse::Depth),
        ("kmap-stale", MappingMisuse::Stale),
        ("kmap-leak", MappingMisuse::Leak),
        ("kmap-sleep", MappingMisuse::Sleep),
        ("kmap-interrupt", MappingMisuse::Interrupt),
    ]
} else {
    &[]
};

/// Mappings a CPU has slots for.
const SLOTS: usize = 8;

/// Uses mappings so; returns if nobody noticed.
pub fn misuse(how: MappingMisuse) {
    interrupts::enable();
    if let Err(Stop::Failed(why) | Stop::Skipped(why)) = attempt(how) {
        panic!("mappings cannot be misused: {why}");
    }
}

fn attempt(how: MappingMisuse) -> Result<(), Stop> {
    let mm = Mm::create(memory())?;
    map_anonymous(&mm, pages(0, 2 * TABLE))?;
    for number in [0, TABLE] {
        handle_mm_fault(&mm, page(number), Access::Write)?;
    }
    let table = map(&mm, 0)?.pmd().pfn();
    if !X86.is_high(table) {
        return Err("no table is in high memory".into());
    }
    match how {
        MappingMisuse::Order => {
            let (first, second) = (map(&mm, 0)?, map(&mm, TABLE)?);
            pte_unmap(first);
            pte_unmap(second);
        }
        MappingMisuse::Twice => {
            let slots = X86.map_table(table, Level::Pte);
            X86.unmap_table(slots);
            X86.unmap_table(slots);
        }
        MappingMisuse::Depth => {
            let _all = (0..=SLOTS).map(|_| map(&mm, 0)).collect::<Result<Vec<_>, _>>()?;
        }
        MappingMisuse::Stale => {
            let slots = X86.map_table(table, Level::Pte);
            X86.unmap_table(slots);
            black_box(slots[0].load());
        }
        MappingMisuse::Leak => {
            let mm = mm.clone();
            let leaker = move || map(&mm, 0).map(mem::forget);
            thread::spawn_on(percpu::cpu(), "leaker", leaker)?.join()?;
        }
        MappingMisuse::Sleep => {
            let _map = map(&mm, 0)?;
            thread::block_while(0, &mut || false);
        }
        MappingMisuse::Interrupt => call_on(smp::online().without(percpu::cpu()), &|| {
            X86.map_table(table, Level::Pte);
        }),
    }
    Ok(())
}

/// The entry of page `number`, mapped.
fn map(mm: &Mm, number: u64) -> Result<PteMap<'_, X86>, Stop> {
    let rcu = rcu::read_lock(X86);
    let pmds = pmd_offset(mm, &rcu, page(number)).ok_or("no PMD table")?;
    Ok(pte_offset_map(mm, pmds.slot(page(number)), page(number)).ok_or("no PTE table")?)
}
