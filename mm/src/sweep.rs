//! The failure sweep (R34): every operation that allocates, each from a state made for it, and the walk that lets its
//! allocations fail one after the other. For the tests of whatever runs `mm`: the simulated machine and the kernel walk the
//! same scenes.
//!
//! Rules a walk checks (I6, I43): a failure is reported as a lack of memory and as nothing else; an operation that failed has
//! changed neither regions nor pages, and succeeds once there is memory; one failure alone is made good; whatever was taken
//! is given back, tables, frames and objects.

mod life;
mod scenes;

pub use life::live;
pub use scenes::{huge_scenes, scenes};

use crate::address::{VirtAddr, VirtRange};
use crate::address_space::{CollapseError, MapError, Mm, MmRef};
use crate::config::{PAGE_SHIFT, PAGE_SIZE};
use crate::fault::FaultError;
use crate::frame::Site;
use crate::machine::Machine;
use crate::memory::{Memory, OutOfMemory};
use crate::object::ObjectError;
use crate::pgtable::{Level, OutOfTables, PagingMode, TableError, leaf_at};
use crate::slab::SlabKind;
use crate::sync::rcu;

/// Why an operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It says that there is no memory.
    OutOfMemory,
    /// Something else about regions.
    Map(MapError),
    /// Something else about a fault.
    Fault(FaultError),
    /// Something else about an object.
    Object(ObjectError),
    /// Something else about a collapse.
    Collapse(CollapseError),
    /// Something else about a table.
    Table(TableError),
    /// It has not done what it was to do, though it says so.
    Undone,
}

/// Each error says which of its values means "no memory".
macro_rules! failures {
    ($($error:ident: $none:pat => $kind:ident,)+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                match error {
                    $none => Self::OutOfMemory,
                    other => Self::$kind(other),
                }
            }
        }
    )+};
}

failures! {
    MapError: MapError::OutOfMemory => Map,
    FaultError: FaultError::OutOfMemory => Fault,
    ObjectError: ObjectError::OutOfMemory => Object,
    CollapseError: CollapseError::OutOfMemory => Collapse,
    TableError: TableError::OutOfTables => Table,
}

impl From<OutOfMemory> for Failure {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<OutOfTables> for Failure {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfMemory
    }
}

/// What an operation works on.
pub struct Stage<M: Machine> {
    /// The address space.
    mm: MmRef<M>,
    /// Another: its child, or what the operation makes.
    other: Option<MmRef<M>>,
}

/// An operation, from a state made for it.
pub struct Scene<M: Machine> {
    /// What is done.
    pub name: &'static str,
    /// Makes the state.
    prepare: fn(&'static Memory<M>) -> Result<Stage<M>, Failure>,
    /// Does it.
    act: fn(&mut Stage<M>) -> Result<(), Failure>,
    /// Whether it frees what it can and tries again, so that one failure alone is made good.
    tries_again: bool,
}

/// Which allocations a walk lets fail in each of its rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// One.
    Once,
    /// One and all that follow.
    Lasting,
}

/// A rule that was broken.
#[derive(Debug)]
pub struct Finding {
    /// The operation.
    pub scene: &'static str,
    /// Which of its allocations failed, counted from 1.
    pub nth: u32,
    /// Whether others did.
    pub shortage: Shortage,
    /// What happened.
    pub what: Wrong,
}

/// What was wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// The state could not be made, with all the memory there is.
    Unprepared(Failure),
    /// It failed, but not for want of memory; or no allocation had failed.
    Failed(Failure),
    /// One failure was not made good.
    NotMadeGood,
    /// It failed, and regions or pages are not what they were.
    Changed,
    /// It failed, and did again when there was memory.
    FailedAgain(Failure),
    /// Not all was given back, or more.
    Unbalanced {
        /// Frames that are missing.
        frames: i64,
        /// Tables that are left.
        tables: i64,
        /// Objects of the slab that are left, of any kind.
        objects: i64,
        /// Whether a lock is still held.
        locked: bool,
    },
    /// It allocates without an end.
    Endless,
}

/// What must be the same before and after.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Books {
    frames: u64,
    tables: u64,
    objects: [u64; SlabKind::ALL.len()],
    locks: usize,
}

impl Books {
    fn of<M: Machine>(memory: &Memory<M>) -> Self {
        let machine = memory.machine();
        memory.drain_deferred();
        memory.slab().shrink(machine, memory.frames());
        Self {
            frames: memory.frames().free_frames(machine),
            tables: memory.page_tables(),
            objects: SlabKind::ALL.map(|kind| memory.slab().objects(machine, kind)),
            locks: machine.local().held.count(),
        }
    }

    /// What is wrong with `after`, if anything.
    fn compare(&self, after: &Self) -> Option<Wrong> {
        let more = |before: u64, after: u64| after.wrapping_sub(before) as i64;
        (self != after).then(|| Wrong::Unbalanced {
            frames: more(after.frames, self.frames),
            tables: more(self.tables, after.tables),
            objects: self.objects.iter().zip(&after.objects).map(|(before, after)| more(*before, *after)).sum(),
            locked: after.locks != self.locks,
        })
    }
}

/// More allocations than any operation makes.
const MOST: u32 = 200;

/// Plays `scene` again and again, and each time lets its next allocation fail, until none is left to fail; `failed` is told of
/// each. Returns their number. Nobody else allocates or frees meanwhile, and the caller stays on its CPU.
///
/// # Errors
///
/// The first [`Finding`].
pub fn walk<M: Machine>(
    memory: &'static Memory<M>,
    scene: &Scene<M>,
    shortage: Shortage,
    mut failed: impl FnMut(Site),
) -> Result<u32, Finding> {
    let machine = memory.machine();
    let injection = &machine.local().injection;
    for nth in 1..=MOST {
        let finding = |what| Finding { scene: scene.name, nth, shortage, what };
        let before = Books::of(memory);
        let mut stage = (scene.prepare)(memory).map_err(|failure| finding(Wrong::Unprepared(failure)))?;
        let shown = stage.shown();
        match shortage {
            Shortage::Once => injection.fail_nth(nth),
            Shortage::Lasting => injection.fail_from(nth),
        }
        let outcome = (scene.act)(&mut stage);
        let site = injection.stop().failed;
        match (outcome, site) {
            (Ok(()), _) => (),
            (Err(Failure::OutOfMemory), Some(_)) if shortage == Shortage::Once && scene.tries_again => {
                return Err(finding(Wrong::NotMadeGood));
            }
            (Err(Failure::OutOfMemory), Some(_)) => {
                if stage.shown() != shown {
                    return Err(finding(Wrong::Changed));
                }
                (scene.act)(&mut stage).map_err(|failure| finding(Wrong::FailedAgain(failure)))?;
            }
            (Err(failure), _) => return Err(finding(Wrong::Failed(failure))),
        }
        drop(stage);
        if let Some(wrong) = before.compare(&Books::of(memory)) {
            return Err(finding(wrong));
        }
        let Some(site) = site else { return Ok(nth - 1) };
        failed(site);
    }
    Err(Finding { scene: scene.name, nth: MOST, shortage, what: Wrong::Endless })
}

impl<M: Machine> Stage<M> {
    /// A number for what regions and pages the address spaces show: equal for equal.
    fn shown(&self) -> u64 {
        let all = [Some(&self.mm), self.other.as_ref()];
        all.into_iter().flatten().flat_map(|mm| scenes::places::<M>().map(move |range| (mm, range))).fold(
            0,
            |sum, (mm, range)| {
                (0..range.pages()).fold(sum, |sum, number| {
                    shown_at(mm, VirtAddr(range.start.0 + number * PAGE_SIZE as u64)).into_iter().fold(sum, mix)
                })
            },
        )
    }
}

/// The region and the frame that `address` shows.
fn shown_at<M: Machine>(mm: &Mm<M>, address: VirtAddr) -> [u64; 4] {
    let frame = leaf_at(mm, address)
        .map_or(0, |(level, entry)| entry.pfn().0 + ((address.0 & (M::Mode::entry_span(level) - 1)) >> PAGE_SHIFT));
    let rcu = rcu::read_lock(mm.machine());
    match mm.find_vma(&rcu, address) {
        None => [frame, 0, 0, 0],
        Some(vma) => {
            let (range, rights) = (vma.range(), vma.protection());
            let marks = u64::from(rights.write) | u64::from(rights.execute) << 1 | u64::from(vma.is_detached()) << 2;
            [frame, range.start.0, range.end.0, marks]
        }
    }
}

/// One step of FNV-1a, by words.
const fn mix(sum: u64, word: u64) -> u64 {
    (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3)
}

/// Pages of one PTE table.
fn table_pages<M: Machine>() -> u64 {
    M::Mode::entry_span(Level::Pmd) >> PAGE_SHIFT
}

/// A page in the middle of the user half, at the begin of the second PTE table below an entry of the top table: no table of any
/// level is there that a mode does not have from the start.
fn far<M: Machine>() -> u64 {
    let top = M::Mode::entry_span(M::Mode::TOP);
    (((M::Mode::USER_END.0 / 2) & !(top - 1)) >> PAGE_SHIFT) + table_pages::<M>()
}

/// The address of page `number`.
fn page(number: u64) -> VirtAddr {
    VirtAddr(number << PAGE_SHIFT)
}

/// The pages from `first` up to `end`, which is above.
fn pages(first: u64, end: u64) -> VirtRange {
    VirtRange { start: page(first), end: page(end) }
}
