//! Any sequence of operations on address spaces, by two CPUs in turn, against the reference model: whatever the paging mode,
//! the sizes of pages, what CPUs have cached and where memory runs out, memory is a plain map from page to content and right.
//!
//! The number of cases scales with `PROPTEST_CASES`, 256 standing for what a test run does by itself.

use super::model::{Kind, Model, Objects};
use crate::address_space::{CollapseError, MapError, Mapping, MmRef};
use crate::config::{PAGE_SIZE, USE_SPLIT_PMD_PTLOCKS};
use crate::cpu::CpuId;
use crate::fault::FaultError;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::object::{Object, ObjectRef};
use crate::pgtable::{
    FiveLevel, FourLevel, HugeSize, Level, Pae, PagingMode, Protection, deposited_tables, leaf_at, pmd_offset, span_of,
};
use crate::stats::{Counter, StatsSnapshot};
use crate::sync::rcu;
use crate::testing::{Process, Small, World, page, pages};
use proptest::prelude::{BoxedStrategy, ProptestConfig, Strategy, prop_oneof};
use proptest::test_runner::TestRunner;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

const CPUS: usize = 2;
/// Address spaces that CPUs take turns in. One that is replaced lives on where it is loaded.
const SPACES: usize = 3;
const OBJECTS: usize = 2;
/// Enough for a tree of two levels.
const OBJECT_PAGES: u64 = 70;

/// A step: who does what, and which of its allocations fail.
type Step = (usize, Option<Shortage>, Action);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shortage {
    /// The one of this number.
    Once(u32),
    /// That and all after it.
    ForGood(u32),
}

#[derive(Clone, Debug)]
enum Action {
    // What the CPU does.
    /// It runs in address space number so many from now on.
    Enter(usize),
    /// It runs a kernel thread and keeps what it has loaded.
    Lazy,
    /// It loads the kernel's own table.
    Idle,
    // What is done to the address space it runs in.
    Write(u64, u64),
    Read(u64),
    /// In place of what is there, or only where nothing is.
    Map {
        range: Range<u64>,
        instead: bool,
        write: bool,
        backing: Backing,
    },
    Unmap(Range<u64>),
    Protect(Range<u64>, bool),
    Remap(Range<u64>, Range<u64>),
    Discard(Range<u64>),
    Collapse(u64),
    Split(u64),
    /// Number so many becomes a fork of it.
    Fork(usize),
    /// Number so many becomes an empty one.
    Replace(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backing {
    Anonymous,
    AnonymousHuge,
    Huge(HugeSize),
    Object(usize, u64),
}

/// Pages of a PTE table.
fn table<Mode: PagingMode>() -> u64 {
    Mode::entries(Level::Pte) as u64
}

/// The page where tables of every level but the top begin.
fn border<Mode: PagingMode>() -> u64 {
    Mode::entry_span(Mode::TOP) / PAGE_SIZE as u64
}

/// A page near a border of tables, seldom another one of the two tables around that of all levels.
fn place<Mode: PagingMode>() -> BoxedStrategy<u64> {
    let (table, border) = (table::<Mode>(), border::<Mode>());
    let near = move |reach: u64| {
        (0..3_u64, 0..2 * reach).prop_map(move |(side, at)| border + side * table + at - table - reach)
    };
    // Mostly the same few pages, so that steps have to do with each other.
    prop_oneof![4 => near(1), 3 => near(4), 1 => border - table..border + table].boxed()
}

fn range<Mode: PagingMode>() -> BoxedStrategy<Range<u64>> {
    let (table, border) = (table::<Mode>(), border::<Mode>());
    let short = (place::<Mode>(), 1..9_u64).prop_map(|(first, count)| first..first + count);
    let long = (place::<Mode>(), place::<Mode>()).prop_map(|(one, other)| one.min(other)..one.max(other) + 1);
    let whole = (0..4_u64, 1..3_u64).prop_map(move |(first, count)| {
        let first = border + first * table - 2 * table;
        first..first + count * table
    });
    prop_oneof![5 => short, 1 => long, 2 => whole].boxed()
}

fn backing() -> impl Strategy<Value = Backing> {
    prop_oneof![
        3 => proptest::strategy::Just(Backing::Anonymous),
        3 => proptest::strategy::Just(Backing::AnonymousHuge),
        2 => proptest::bool::weighted(0.3).prop_map(|large| Backing::Huge(if large { HugeSize::Pud } else { HugeSize::Pmd })),
        2 => (0..OBJECTS, 0..OBJECT_PAGES).prop_map(|(number, first)| Backing::Object(number, first)),
    ]
}

fn action<Mode: PagingMode>() -> impl Strategy<Value = Action> {
    let place = place::<Mode>;
    let range = range::<Mode>;
    prop_oneof![
        3 => (0..SPACES).prop_map(Action::Enter),
        3 => proptest::strategy::Just(Action::Lazy),
        1 => proptest::strategy::Just(Action::Idle),
        16 => (place(), 1..1000_u64).prop_map(|(at, value)| Action::Write(at, value)),
        6 => place().prop_map(Action::Read),
        6 => (range(), proptest::bool::weighted(0.7), proptest::bool::weighted(0.85), backing())
            .prop_map(|(range, instead, write, backing)| Action::Map { range, instead, write, backing }),
        2 => range().prop_map(Action::Unmap),
        2 => (range(), proptest::bool::weighted(0.7)).prop_map(|(range, write)| Action::Protect(range, write)),
        3 => (range(), proptest::option::weighted(0.7, place()), 1..9_u64).prop_map(|(old, to, count)| {
            let first = to.unwrap_or(old.start);
            Action::Remap(old, first..first + count)
        }),
        2 => range().prop_map(Action::Discard),
        3 => place().prop_map(Action::Collapse),
        1 => place().prop_map(Action::Split),
        3 => (0..SPACES).prop_map(Action::Fork),
        1 => (0..SPACES).prop_map(Action::Replace),
    ]
}

fn shortage() -> impl Strategy<Value = Option<Shortage>> {
    prop_oneof![
        6 => proptest::strategy::Just(None),
        1 => (1..12_u32).prop_map(|nth| Some(Shortage::Once(nth))),
        1 => (1..12_u32).prop_map(|nth| Some(Shortage::ForGood(nth))),
    ]
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

/// Runs `share` of every 256 cases that are asked for, and says what happened in them.
fn check<Mode: PagingMode>(share: u32, config: SimConfig) -> StatsSnapshot {
    let asked = ProptestConfig::default();
    let cases = (asked.cases * share).div_ceil(256);
    let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..asked });
    let strategy = proptest::collection::vec((0..CPUS, shortage(), action::<Mode>()), 1..160);
    // A machine's memory is never freed, so one serves until a case fails; its books balance after each.
    let spare = Cell::new(None);
    let outcome = runner.run(&strategy, |steps| {
        let world: World<Mode> = spare.take().unwrap_or_else(|| World::new(config));
        world.machine.reseed(config.seed);
        let mut run = world.alone(|| Run::new(&world));
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
        world.assert_books_balance();
        spare.set(Some(world));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let world = spare.take().expect("the last case has passed");
    StatsSnapshot::sum(world.machine.cpus())
}

/// Walks ahead and forgets at random, dawdles never: one CPU runs at a time.
fn config(frames: usize, asids: usize) -> SimConfig {
    SimConfig {
        delay: 0,
        speculation: 8,
        eviction: 256,
        asids,
        gigabyte_pages: false,
        ..SimConfig::racy(frames, CPUS, 1)
    }
}

#[test]
fn four_levels_behave_as_a_map() {
    check::<FourLevel>(16, config(8192, 6));
}

#[test]
fn pae_behaves_as_a_map() {
    check::<Pae>(16, config(8192, 1));
}

#[test]
fn five_levels_behave_as_a_map() {
    check::<FiveLevel>(4, config(8192, 2));
}

/// Tables of four entries: huge pages of two sizes, and far more of everything in as many steps. So this is where to see that
/// the cases come by all that makes a difference.
#[test]
fn small_tables_behave_as_a_map() {
    let happened = check::<Small>(192, SimConfig { gigabyte_pages: true, ..config(512, 6) });
    // Not when fewer cases are asked for.
    if ProptestConfig::default().cases >= 256 {
        for event in [
            Counter::PageCopied,
            Counter::PageReused,
            Counter::ZeroPageUpgrade,
            Counter::ObjectFault,
            Counter::HugeFault,
            Counter::HugeSplits,
            Counter::HugeCollapses,
            Counter::LazyLeft,
            Counter::AsidCurrent,
            Counter::AsidBehind,
            Counter::FlushesRanged,
            Counter::FlushesServed,
        ] {
            assert!(happened[event] > 0, "no case of {}", event.name());
        }
    }
}
