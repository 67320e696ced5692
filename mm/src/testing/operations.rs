//! Sequences of operations on address spaces, by two CPUs in turn, held against the reference model: whatever the paging mode,
//! the sizes of pages, what CPUs have cached and where memory runs out, memory is a plain map from page to content and right.

use super::model::{Kind, Model, Objects};
use super::{Process, World, page, pages};
use crate::address_space::{CollapseError, MapError, Mapping, MmRef};
use crate::config::{PAGE_SIZE, USE_SPLIT_PMD_PTLOCKS};
use crate::cpu::CpuId;
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::object::{Object, ObjectRef};
use crate::pgtable::{HugeSize, Level, PagingMode, Protection, deposited_tables, leaf_at, pmd_offset, span_of};
use crate::sync::rcu;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// CPUs that take turns.
pub const CPUS: usize = 2;
/// Address spaces that CPUs take turns in. One that is replaced lives on where it is loaded.
pub const SPACES: usize = 3;
/// Memory objects that can be mapped.
pub const OBJECTS: usize = 2;
/// Pages of each: enough for a tree of two levels.
pub const OBJECT_PAGES: u64 = 70;

/// A step: who does what, and which of its allocations fail.
pub type Step = (usize, Option<Shortage>, Action);

/// Which of an operation's allocations fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// The one of this number.
    Once(u32),
    /// That and all after it.
    ForGood(u32),
}

/// What a CPU does. Addresses are numbers of pages.
#[derive(Clone, Debug)]
pub enum Action {
    /// It runs in address space number so many from now on.
    Enter(usize),
    /// It runs a kernel thread and keeps what it has loaded.
    Lazy,
    /// It loads the kernel's own table.
    Idle,
    /// Stores a word.
    Write(u64, u64),
    /// Loads it.
    Read(u64),
    /// Maps memory.
    Map {
        /// Where.
        range: Range<u64>,
        /// In place of what is there, or only where nothing is.
        instead: bool,
        /// Whether it may be written.
        write: bool,
        /// What it consists of.
        backing: Backing,
    },
    /// `munmap`
    Unmap(Range<u64>),
    /// `mprotect`: whether it may be written.
    Protect(Range<u64>, bool),
    /// `mremap`: from where to where.
    Remap(Range<u64>, Range<u64>),
    /// `madvise(MADV_DONTNEED)`
    Discard(Range<u64>),
    /// Makes small pages one huge page.
    Collapse(u64),
    /// Makes a huge page small ones.
    Split(u64),
    /// Number so many becomes a fork of the address space it runs in.
    Fork(usize),
    /// Number so many becomes an empty one.
    Replace(usize),
}

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Anonymous memory in small pages.
    Anonymous,
    /// Anonymous memory, huge where that goes.
    AnonymousHuge,
    /// Explicit huge pages.
    Huge(HugeSize),
    /// The object of this number, from this page on.
    Object(usize, u64),
}

/// Pages of a PTE table.
pub fn table<Mode: PagingMode>() -> u64 {
    Mode::entries(Level::Pte) as u64
}

/// The page where tables of every level but the top begin.
pub fn border<Mode: PagingMode>() -> u64 {
    Mode::entry_span(Mode::TOP) / PAGE_SIZE as u64
}

/// A page near a border of tables: `reach` pages before it to as many after it, by `at`. The middle one of the three borders, by
/// `side`, is that of tables of all levels.
pub fn near<Mode: PagingMode>(side: u64, reach: u64, at: u64) -> u64 {
    border::<Mode>() + side % 3 * table::<Mode>() + at % (2 * reach) - table::<Mode>() - reach
}

/// Walks ahead and forgets at random, dawdles never: one CPU runs at a time.
pub fn config(frames: usize, asids: usize) -> SimConfig {
    SimConfig {
        delay: 0,
        speculation: 8,
        eviction: 256,
        asids,
        gigabyte_pages: false,
        ..SimConfig::racy(frames, CPUS, 1)
    }
}

/// Runs the operations in a world of [`CPUS`], whose hardware does by `seed` what it is free to do, and closes its books.
///
/// # Panics
///
/// If anything but what the model foresees comes of them.
pub fn run<Mode: PagingMode>(world: &World<Mode>, seed: u64, steps: impl IntoIterator<Item = Step>) {
    world.machine.reseed(seed);
    let mut run = world.alone(|| Run::new(world));
    steps.into_iter().for_each(|step| run.step(step));
    run.finish();
    world.assert_books_balance();
}

/// An address space, and what it must show.
struct Space<Mode: PagingMode> {
    mm: MmRef<Sim<Mode>>,
    model: RefCell<Model>,
}

/// A CPU, and the address space it has loaded for use.
struct Cpu<Mode: PagingMode> {
    process: Option<Process<Mode>>,
    space: Option<Rc<Space<Mode>>>,
    /// Where it goes when it has none.
    home: usize,
}

struct Run<'w, Mode: PagingMode> {
    world: &'w World<Mode>,
    spaces: Vec<Rc<Space<Mode>>>,
    cpus: [Cpu<Mode>; CPUS],
    objects: Vec<ObjectRef<Sim<Mode>>>,
    contents: Objects,
    /// An allocation of this step was made to fail, by its kind.
    short: Option<Shortage>,
}

fn rights(write: bool) -> Protection {
    if write { Protection::READ_WRITE } else { Protection::READ }
}

fn of(range: &Range<u64>) -> crate::address::VirtRange {
    pages(range.start, range.end)
}

impl<'w, Mode: PagingMode> Run<'w, Mode> {
    /// Call as CPU 0.
    fn new(world: &'w World<Mode>) -> Self {
        let cpu = || Cpu { process: None, space: None, home: 0 };
        let around = border::<Mode>() - table::<Mode>()..border::<Mode>() + table::<Mode>();
        let space = |number: usize| {
            let (mm, mut model) = (world.mm(), Model::default());
            let mapping = if number == 0 { Mapping::AnonymousHuge } else { Mapping::Anonymous };
            mm.mmap(of(&around), rights(true), mapping).unwrap();
            model.map(around.clone(), true, Kind::Private, OBJECT_PAGES).unwrap();
            Self::space(mm, model)
        };
        Self {
            world,
            spaces: (0..SPACES).map(space).collect(),
            cpus: std::array::from_fn(|_| cpu()),
            objects: (0..OBJECTS).map(|_| Object::create(world.memory, OBJECT_PAGES).unwrap()).collect(),
            contents: vec![Default::default(); OBJECTS],
            short: None,
        }
    }

    fn space(mm: MmRef<Sim<Mode>>, model: Model) -> Rc<Space<Mode>> {
        Rc::new(Space { mm, model: RefCell::new(model) })
    }

    fn step(&mut self, (cpu, shortage, action): Step) {
        let id = CpuId(cpu as u32);
        let world = self.world;
        world.machine.run_cpu(id, || {
            let injection = &world.machine.cpus().of(id).injection;
            match shortage {
                None => (),
                Some(Shortage::Once(nth)) => injection.fail_nth(nth),
                Some(Shortage::ForGood(nth)) => injection.fail_from(nth),
            }
            self.short = shortage;
            self.perform(cpu, action);
            injection.stop();
        });
        world.machine.assert_coherent();
    }

    /// Whether an operation that ended in `outcome` is excused for want of memory: then nothing may have changed. One failure
    /// is made good; blocks of frames may be missing in any case.
    fn is_starved<T, E: PartialEq>(&self, cpu: usize, outcome: &Result<T, E>, out_of_memory: E, block: bool) -> bool {
        if !outcome.as_ref().is_err_and(|error| *error == out_of_memory) {
            return false;
        }
        let failed = self.world.machine.cpus().of(CpuId(cpu as u32)).injection.stop().failed;
        let excused = block || (failed.is_some() && matches!(self.short, Some(Shortage::ForGood(_))));
        assert!(excused || self.world.free_frames() < 64, "no memory, with {:?} injected: {failed:?}", self.short);
        true
    }

    /// The address space that `cpu`, which runs this, works in.
    fn enter(&mut self, cpu: usize) -> Rc<Space<Mode>> {
        let Cpu { process, space, home } = &mut self.cpus[cpu];
        let space = space.get_or_insert_with(|| {
            let space = self.spaces[*home].clone();
            match process {
                Some(process) => process.switch_to(&space.mm),
                None => *process = Some(Process::enter(self.world, &space.mm)),
            }
            space
        });
        space.clone()
    }

    fn leave(&mut self, cpu: usize) {
        self.cpus[cpu].process = None;
        self.cpus[cpu].space = None;
    }

    fn perform(&mut self, cpu: usize, action: Action) {
        match action {
            Action::Enter(to) => {
                self.cpus[cpu].home = to;
                self.cpus[cpu].space = None;
            }
            Action::Lazy => {
                self.enter(cpu);
                self.cpus[cpu].process.iter_mut().for_each(Process::enter_lazy);
                self.cpus[cpu].space = None;
            }
            Action::Idle => self.leave(cpu),
            Action::Fork(to) => {
                let space = self.enter(cpu);
                let child = space.mm.fork();
                if self.is_starved(
                    cpu,
                    &child.as_ref().map(|_| ()).map_err(|error| *error),
                    MapError::OutOfMemory,
                    false,
                ) {
                    return;
                }
                let model = space.model.borrow().fork();
                self.spaces[to] = Self::space(child.expect("memory for a fork"), model);
            }
            Action::Replace(to) => {
                self.world.machine.cpus().of(CpuId(cpu as u32)).injection.stop();
                self.spaces[to] = Self::space(self.world.mm(), Model::default());
            }
            Action::Write(at, value) => {
                let space = self.enter(cpu);
                let outcome = self.process(cpu).write(page(at), value);
                let is_huge = space.model.borrow().page(at).is_some_and(|page| matches!(page.kind, Kind::Huge(_)));
                if !self.is_starved(cpu, &outcome, FaultError::OutOfMemory, is_huge) {
                    assert_eq!(outcome, space.model.borrow_mut().write(at, value, &mut self.contents));
                }
            }
            Action::Read(at) => {
                let space = self.enter(cpu);
                let outcome = self.process(cpu).read(page(at));
                let is_huge = space.model.borrow().page(at).is_some_and(|page| matches!(page.kind, Kind::Huge(_)));
                if !self.is_starved(cpu, &outcome, FaultError::OutOfMemory, is_huge) {
                    assert_eq!(outcome, space.model.borrow().read(at, &self.contents));
                }
            }
            Action::Collapse(at) => {
                let space = self.enter(cpu);
                let outcome = space.mm.collapse_huge_page(page(at));
                let span = span_of::<Mode>(Level::Pmd, page(at));
                let span = span.start.0 / PAGE_SIZE as u64..span.end.0 / PAGE_SIZE as u64;
                let expected = space.model.borrow().is_one_private_region(span);
                match outcome {
                    Ok(()) => {
                        assert!(expected);
                        assert!(matches!(leaf_at(&space.mm, page(at)), Some((Level::Pmd, _))), "not collapsed");
                    }
                    Err(CollapseError::NotAnonymous) => assert!(!expected),
                    // What is there, and who shares it, depends on more than the model knows.
                    Err(CollapseError::NoSmallPages | CollapseError::Shared) => assert!(expected),
                    Err(CollapseError::OutOfMemory) => (),
                }
            }
            Action::Split(at) => {
                self.enter(cpu).mm.split_huge_page(page(at));
            }
            regions => {
                if let Action::Map { range, instead: true, .. } = &regions {
                    self.perform(cpu, Action::Unmap(range.clone()));
                }
                let space = self.enter(cpu);
                let outcome = self.change(&space.mm, &regions);
                if !self.is_starved(cpu, &outcome, MapError::OutOfMemory, false) {
                    assert_eq!(outcome, self.expect(&mut space.model.borrow_mut(), regions));
                }
            }
        }
    }

    fn process(&self, cpu: usize) -> &Process<Mode> {
        self.cpus[cpu].process.as_ref().expect("entered")
    }

    fn change(&self, mm: &MmRef<Sim<Mode>>, action: &Action) -> Result<(), MapError> {
        match action {
            Action::Map { range, write, backing, .. } => {
                let mapping = match *backing {
                    Backing::Anonymous => Mapping::Anonymous,
                    Backing::AnonymousHuge => Mapping::AnonymousHuge,
                    Backing::Huge(size) => Mapping::Huge(size),
                    Backing::Object(number, first_page) => {
                        Mapping::Object { object: self.objects[number].clone(), first_page }
                    }
                };
                mm.mmap(of(range), rights(*write), mapping)
            }
            Action::Unmap(range) => mm.munmap(of(range)),
            Action::Protect(range, write) => mm.mprotect(of(range), rights(*write)),
            Action::Remap(old, new) => mm.mremap(of(old), of(new)),
            Action::Discard(range) => mm.madvise_dontneed(of(range)),
            other => unreachable!("{other:?} changes no regions"),
        }
    }

    fn expect(&self, model: &mut Model, action: Action) -> Result<(), MapError> {
        match action {
            Action::Map { range, write, backing, .. } => {
                let kind = match backing {
                    Backing::Anonymous | Backing::AnonymousHuge => Kind::Private,
                    Backing::Huge(size)
                        if !size.exists_in::<Mode>() || !self.world.machine.handle().has_huge_pages(size) =>
                    {
                        return Err(MapError::NoSuchPageSize);
                    }
                    Backing::Huge(size) => Kind::Huge(size.bytes::<Mode>() / PAGE_SIZE as u64),
                    Backing::Object(number, page) => Kind::Object { number, page },
                };
                model.map(range, write, kind, OBJECT_PAGES)
            }
            Action::Unmap(range) => model.unmap(range),
            Action::Protect(range, write) => model.protect(range, write),
            Action::Remap(old, new) => model.remap(old, new, OBJECT_PAGES),
            Action::Discard(range) => model.discard(range),
            other => unreachable!("{other:?} changes no regions"),
        }
    }

    /// Compares all there is with the models, and ends it.
    fn finish(mut self) {
        for cpu in 0..CPUS {
            self.world.machine.run_cpu(CpuId(cpu as u32), || self.leave(cpu));
        }
        self.world.alone(|| {
            for space in std::mem::take(&mut self.spaces) {
                let model = space.model.borrow();
                self.check_deposits(&space.mm);
                self.check_regions(&space.mm, &model);
                let process = Process::enter(self.world, &space.mm);
                for number in model.written().chain(window::<Mode>()) {
                    let (shown, expected) = (process.read(page(number)), model.read(number, &self.contents));
                    let has_no_block = shown == Err(FaultError::OutOfMemory)
                        && matches!(model.page(number).map(|page| page.kind), Some(Kind::Huge(_)));
                    assert!(shown == expected || has_no_block, "page {number:#x}: {shown:?} instead of {expected:?}");
                }
            }
            self.objects.clear();
        });
    }

    fn check_regions(&self, mm: &MmRef<Sim<Mode>>, model: &Model) {
        let section = rcu::read_lock(mm.machine());
        for number in window::<Mode>() {
            let region = mm.find_vma(&section, page(number)).map(|vma| vma.protection());
            assert_eq!(region, model.page(number).map(|page| rights(page.write)), "page {number:#x}");
        }
    }

    /// As many tables are deposited as there are transparent huge entries (I14).
    fn check_deposits(&self, mm: &MmRef<Sim<Mode>>) {
        let (table, border) = (table::<Mode>(), border::<Mode>());
        let is_transparent =
            |at: &u64| matches!(leaf_at(mm, page(*at)), Some((Level::Pmd, entry)) if !entry.is_explicit());
        let huge = (0..6).map(|number| border + number * table - 2 * table).filter(is_transparent).count();
        let section = rcu::read_lock(mm.machine());
        let lists = [border - 1, border]
            .map(|at| pmd_offset(mm, &section, page(at)).map_or(0, |pmds| deposited_tables(mm, pmds.slot(page(at)))));
        let deposited = if USE_SPLIT_PMD_PTLOCKS { lists[0] + lists[1] } else { lists[0].max(lists[1]) };
        assert_eq!(deposited, huge, "deposits and huge entries differ");
    }
}

/// The pages near borders of tables.
fn window<Mode: PagingMode>() -> impl Iterator<Item = u64> {
    let (table, border) = (table::<Mode>(), border::<Mode>());
    (0..5).flat_map(move |side| {
        let middle = border + side * table - 2 * table;
        middle.saturating_sub(5)..middle + 5
    })
}
