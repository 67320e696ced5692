//! Runs operations on a simulated machine and on the model at once.

use super::{Action, Backing, CPUS, OBJECT_PAGES, OBJECTS, SPACES, Shortage, Step, border, table};
use crate::address_space::{CollapseError, MapError, Mapping, MmRef};
use crate::config::{PAGE_SIZE, USE_SPLIT_PMD_PTLOCKS};
use crate::cpu::CpuId;
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::Sim;
use crate::object::{Object, ObjectRef};
use crate::pgtable::{Level, PagingMode, Protection, deposited_tables, leaf_at, pmd_offset, span_of};
use crate::sync::rcu;
use crate::testing::model::{Kind, Model, Objects};
use crate::testing::{Process, World, page, pages};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

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

    /// Whether an operation that ended in `outcome` is excused for want of memory: then nothing may have changed. `mm` makes one
    /// failure good, by giving up its reserves and trying again; blocks of frames may be missing in any case.
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
                if self.is_starved(cpu, &child, MapError::OutOfMemory, false) {
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
