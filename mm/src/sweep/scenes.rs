//! The scenes. Each acts on what was mapped before, in [`places`], by one operation.

use super::{Failure, Scene, Stage, far, page, pages, table_pages};
use crate::address::{VirtAddr, VirtRange};
use crate::address_space::{Mapping, Mm, MmRef};
use crate::config::PAGE_SIZE;
use crate::fault::{Resolution, handle_mm_fault};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::object::Object;
use crate::pgtable::{
    HugeSize, Protection, get_locked_pte, pmd_alloc, pmd_alloc_one, pmd_free, pte_alloc_map, pte_alloc_one, pte_free,
};
use crate::sync::rcu;
use crate::vma::Access;

/// Small pages are mapped on both sides of a border of two PTE tables, this many on each: more than a gather has room for
/// without a frame for them, if a table has so many.
fn around<M: Machine>() -> u64 {
    table_pages::<M>().min(12)
}

/// What a scene maps at first, or moves things to.
pub(super) fn places<M: Machine>() -> [VirtRange; 3] {
    [small::<M>(), huge::<M>(), pages(far::<M>() - around::<M>(), far::<M>() + 3 * around::<M>())]
}

fn small<M: Machine>() -> VirtRange {
    pages(table_pages::<M>() - around::<M>(), table_pages::<M>() + around::<M>())
}

fn huge<M: Machine>() -> VirtRange {
    pages(2 * table_pages::<M>(), 3 * table_pages::<M>())
}

/// The first of the pages around the border, and those that are `number` after it.
fn small_page<M: Machine>(number: u64) -> VirtAddr {
    page(table_pages::<M>() - around::<M>() + number)
}

/// The middle half of `range`.
fn middle(range: VirtRange) -> VirtRange {
    let quarter = (range.end.0 - range.start.0) / 4;
    VirtRange { start: VirtAddr(range.start.0 + quarter), end: VirtAddr(range.end.0 - quarter) }
}

/// Nothing is mapped.
fn empty<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    Ok(Stage { mm: Mm::create(memory)?, other: None })
}

fn mapped<M: Machine>(memory: &'static Memory<M>, range: VirtRange, mapping: Mapping<M>) -> Result<Stage<M>, Failure> {
    let stage = empty(memory)?;
    stage.mm.mmap(range, Protection::READ_WRITE, mapping)?;
    Ok(stage)
}

/// Small pages are mapped, none is there.
fn untouched<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    mapped(memory, small::<M>(), Mapping::Anonymous)
}

/// Small pages are mapped and written, in two tables.
fn written<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    let stage = untouched(memory)?;
    (0..2 * around::<M>()).try_for_each(|number| touch(&stage.mm, small_page::<M>(number), Access::Write))?;
    Ok(stage)
}

/// Memory is mapped, and a page of it read: it shows the zero page.
fn zero<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    let stage = untouched(memory)?;
    touch(&stage.mm, small_page::<M>(0), Access::Read)?;
    Ok(stage)
}

/// Memory is mapped that may be huge.
fn huge_if_possible<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    mapped(memory, huge::<M>(), Mapping::AnonymousHuge)
}

/// Memory is mapped that is huge.
fn huge_only<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    mapped(memory, huge::<M>(), Mapping::Huge(HugeSize::Pmd))
}

/// A huge page is mapped and written.
fn one_huge<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    let stage = huge_if_possible(memory)?;
    match handle_mm_fault(&stage.mm, huge::<M>().start, Access::Write)? {
        Resolution::HugePage => Ok(stage),
        _ => Err(Failure::Undone),
    }
}

/// A child shares what was written.
fn shared<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    let mut stage = written(memory)?;
    stage.other = Some(stage.mm.fork()?);
    Ok(stage)
}

/// A span fit for a huge page is mapped, and a few of its pages are there, small ones.
fn scattered<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    let stage = mapped(memory, huge::<M>(), Mapping::Anonymous)?;
    for address in [huge::<M>().start, middle(huge::<M>()).end] {
        touch(&stage.mm, address, Access::Write)?;
    }
    Ok(stage)
}

/// An object is mapped whose tree has three levels.
fn object<M: Machine>(memory: &'static Memory<M>) -> Result<Stage<M>, Failure> {
    let object = Object::create(memory, OBJECT_PAGES)?;
    mapped(memory, small::<M>(), Mapping::Object { object, first_page: 0 })
}

/// Pages of an object with a tree of three levels.
const OBJECT_PAGES: u64 = 1 << 13;

fn touch<M: Machine>(mm: &MmRef<M>, address: VirtAddr, access: Access) -> Result<(), Failure> {
    handle_mm_fault(mm, address, access)?;
    Ok(())
}

/// Every operation that allocates, in each way that allocates otherwise, but for those that need a block of frames.
pub fn scenes<M: Machine>() -> impl Iterator<Item = Scene<M>> {
    let helpers = helpers::<M>().map(|scene| Scene { tries_again: false, ..scene });
    regions::<M>().into_iter().chain(moves()).chain(address_spaces()).chain(faults()).chain(helpers)
}

const fn scene<M: Machine>(
    name: &'static str,
    prepare: fn(&'static Memory<M>) -> Result<Stage<M>, Failure>,
    act: fn(&mut Stage<M>) -> Result<(), Failure>,
) -> Scene<M> {
    Scene { name, prepare, act, tries_again: true }
}

/// Regions come, go and change, and what is mapped in them with them.
fn regions<M: Machine>() -> [Scene<M>; 7] {
    [
        scene("map anonymous memory", empty, |stage| {
            Ok(stage.mm.mmap(small::<M>(), Protection::READ_WRITE, Mapping::Anonymous)?)
        }),
        scene("map it anywhere", written, |stage| {
            let length = around::<M>() * PAGE_SIZE as u64;
            stage.mm.mmap_anywhere(small::<M>().start, length, Protection::READ_WRITE, Mapping::Anonymous)?;
            Ok(())
        }),
        scene("unmap the middle of a region", written, |stage| Ok(stage.mm.munmap(middle(small::<M>()))?)),
        scene("unmap more than a gather has room for", written, |stage| Ok(stage.mm.munmap(small::<M>())?)),
        scene("protect the middle of a region", written, |stage| {
            Ok(stage.mm.mprotect(middle(small::<M>()), Protection::READ)?)
        }),
        scene("discard more than a gather has room for", written, |stage| {
            Ok(stage.mm.madvise_dontneed(small::<M>())?)
        }),
        scene("make an object", empty, |stage| {
            Object::create(stage.mm.memory(), OBJECT_PAGES)?;
            Ok(())
        }),
    ]
}

/// A mapping moves, grows, or shrinks.
fn moves<M: Machine>() -> [Scene<M>; 4] {
    [
        // Out of two tables and into two others.
        scene("move the middle of a region", written, |stage| {
            let there = pages(far::<M>() - around::<M>() / 2, far::<M>() + around::<M>() / 2);
            Ok(stage.mm.mremap(middle(small::<M>()), there)?)
        }),
        scene("grow where there is room", written, |stage| {
            let end = VirtAddr(small::<M>().end.0 + around::<M>() * PAGE_SIZE as u64);
            Ok(stage.mm.mremap(small::<M>(), VirtRange { end, ..small::<M>() })?)
        }),
        scene("grow where there is none", written, |stage| {
            let length = 3 * around::<M>() * PAGE_SIZE as u64;
            stage.mm.mremap_anywhere(small::<M>(), length, page(far::<M>()))?;
            Ok(())
        }),
        scene("shrink", written, |stage| {
            Ok(stage.mm.mremap(small::<M>(), VirtRange { end: middle(small::<M>()).end, ..small::<M>() })?)
        }),
    ]
}

/// Address spaces come and go.
fn address_spaces<M: Machine>() -> [Scene<M>; 4] {
    [
        scene("make an address space", empty, |stage| {
            stage.other = Some(Mm::create(stage.mm.memory())?);
            Ok(())
        }),
        scene("fork small pages", written, fork),
        scene("fork a mapping of an object", object, fork),
        scene("end an address space", shared, |stage| {
            stage.other = None;
            Ok(())
        }),
    ]
}

fn fork<M: Machine>(stage: &mut Stage<M>) -> Result<(), Failure> {
    stage.other = Some(stage.mm.fork()?);
    Ok(())
}

/// Faults of every kind that takes memory.
fn faults<M: Machine>() -> [Scene<M>; 5] {
    [
        scene("write where nothing is", untouched, |stage| touch(&stage.mm, small_page::<M>(0), Access::Write)),
        scene("read where nothing is", untouched, |stage| touch(&stage.mm, small_page::<M>(0), Access::Read)),
        scene("write to the zero page", zero, |stage| touch(&stage.mm, small_page::<M>(0), Access::Write)),
        scene("write to a shared page", shared, |stage| touch(&stage.mm, small_page::<M>(0), Access::Write)),
        scene("write to an object", object, |stage| touch(&stage.mm, small_page::<M>(0), Access::Write)),
    ]
}

/// What is left to its caller to try again.
fn helpers<M: Machine>() -> [Scene<M>; 4] {
    [
        scene("a PTE table of nobody", empty, |stage| {
            pte_free(pte_alloc_one(stage.mm.memory())?);
            Ok(())
        }),
        scene("a PMD table of nobody", empty, |stage| {
            pmd_free(pmd_alloc_one(stage.mm.memory())?);
            Ok(())
        }),
        scene("reach a PTE", untouched, |stage| {
            let (mm, address) = (&stage.mm, small_page::<M>(0));
            let rcu = rcu::read_lock(mm.machine());
            let vma = mm.find_vma(&rcu, address).ok_or(Failure::Undone)?;
            let table = pmd_alloc(mm, &rcu, vma, address)?;
            pte_alloc_map(mm, table.slot(address), vma, address)?;
            Ok(())
        }),
        scene("reach a PTE and lock it", untouched, |stage| {
            let (mm, address) = (&stage.mm, small_page::<M>(0));
            let rcu = rcu::read_lock(mm.machine());
            let vma = mm.find_vma(&rcu, address).ok_or(Failure::Undone)?;
            get_locked_pte(mm, vma, address)?;
            Ok(())
        }),
    ]
}

/// The others, which need blocks of the size of a huge page: faults, collapse, and whatever cuts a huge page. To split it must
/// not take memory.
pub fn huge_scenes<M: Machine>() -> impl Iterator<Item = Scene<M>> {
    let scenes: [Scene<M>; 9] = [
        scene("write where a huge page fits", huge_if_possible, |stage| {
            touch(&stage.mm, huge::<M>().start, Access::Write)
        }),
        scene("write where a huge page is wanted", huge_only, |stage| {
            touch(&stage.mm, huge::<M>().start, Access::Write)
        }),
        scene("collapse small pages", scattered, |stage| Ok(stage.mm.collapse_huge_page(huge::<M>().start)?)),
        scene("split a huge page", one_huge, |stage| {
            if stage.mm.split_huge_page(huge::<M>().start) { Ok(()) } else { Err(Failure::Undone) }
        }),
        scene("unmap a part of a huge page", one_huge, |stage| Ok(stage.mm.munmap(middle(huge::<M>()))?)),
        scene("protect a part of a huge page", one_huge, |stage| {
            Ok(stage.mm.mprotect(middle(huge::<M>()), Protection::READ)?)
        }),
        scene("discard a part of a huge page", one_huge, |stage| Ok(stage.mm.madvise_dontneed(middle(huge::<M>()))?)),
        scene("move a part of a huge page", one_huge, |stage| {
            let there = pages(far::<M>(), far::<M>() + middle(huge::<M>()).pages());
            Ok(stage.mm.mremap(middle(huge::<M>()), there)?)
        }),
        scene("fork a huge page", one_huge, fork),
    ];
    scenes.into_iter()
}
