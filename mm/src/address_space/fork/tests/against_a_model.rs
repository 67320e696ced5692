//! Any sequence of forks, moves, stores and changes against plain maps from page to content and right.

use crate::address_space::{MapError, Mapping, MmRef};
use crate::fault::FaultError;
use crate::machine::sim::Sim;
use crate::pgtable::{FourLevel, Protection};
use crate::testing::{Process, World, page, pages};
use proptest::prelude::{ProptestConfig, Strategy, prop_oneof, proptest};
use std::collections::BTreeMap;
use std::ops::Range;

/// Address spaces alive at once.
const SPACES: usize = 4;

#[derive(Clone, Debug)]
enum Action {
    /// Space number so many becomes a fork of this one; what it was ends.
    Fork(usize),
    Map {
        first: u64,
        count: u64,
        write: bool,
    },
    Unmap {
        first: u64,
        count: u64,
    },
    Protect {
        first: u64,
        count: u64,
        write: bool,
    },
    Remap {
        first: u64,
        count: u64,
        to: u64,
        to_count: u64,
    },
    Write {
        at: u64,
        value: u64,
    },
    Read {
        at: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    // The end of one table, and the beginning of the next.
    let at = || 0x1f8..0x208_u64;
    let range = || (at(), 1..8_u64);
    prop_oneof![
        3 => (0..SPACES).prop_map(Action::Fork),
        3 => (range(), proptest::bool::weighted(0.8)).prop_map(|((first, count), write)| Action::Map { first, count, write }),
        1 => range().prop_map(|(first, count)| Action::Unmap { first, count }),
        2 => (range(), proptest::bool::weighted(0.7)).prop_map(|((first, count), write)| Action::Protect { first, count, write }),
        3 => (range(), proptest::option::of(at()), 1..8_u64).prop_map(|((first, count), to, to_count)| {
            Action::Remap { first, count, to: to.unwrap_or(first), to_count }
        }),
        9 => (at(), 1..1000_u64).prop_map(|(at, value)| Action::Write { at, value }),
        5 => at().prop_map(|at| Action::Read { at }),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Page {
    /// Which region it is in.
    region: u64,
    write: bool,
    value: u64,
}

/// An address space, and what it must show.
struct Space {
    mm: MmRef<Sim<FourLevel>>,
    pages: BTreeMap<u64, Page>,
    /// Regions so far.
    regions: u64,
}

impl Space {
    /// A region that reaches over both sides of page `at` becomes two.
    fn cut(&mut self, at: u64) {
        let (below, above) = (self.pages.get(&(at - 1)), self.pages.get(&at));
        if let (Some(below), Some(above)) = (below, above)
            && below.region == above.region
        {
            let whole = above.region;
            self.regions += 1;
            let right = self.pages.range_mut(at..).filter(|(_, page)| page.region == whole);
            right.for_each(|(_, page)| page.region = self.regions);
        }
    }

    /// What `mremap` must say, and if that is success, do.
    fn remap(&mut self, old: Range<u64>, new: Range<u64>) -> Result<(), MapError> {
        let free = |pages: &BTreeMap<u64, Page>, range: Range<u64>| pages.range(range).next().is_none();
        let first = *self.pages.get(&old.start).ok_or(MapError::NotMapped)?;
        let inside = self.pages.range(old.clone()).filter(|(_, page)| page.region == first.region).count();
        if inside as u64 != old.end - old.start {
            return Err(MapError::NotMapped);
        }
        if new.start == old.start {
            if new.end > old.end {
                if !free(&self.pages, old.end..new.end) {
                    return Err(MapError::Overlap);
                }
                self.pages.extend((old.end..new.end).map(|number| (number, Page { value: 0, ..first })));
            } else if new.end < old.end {
                self.cut(old.end);
                self.pages.retain(|number, _| !(new.end..old.end).contains(number));
            }
            return Ok(());
        }
        if new.start < old.end && old.start < new.end {
            return Err(MapError::BadRange);
        }
        if !free(&self.pages, new.clone()) {
            return Err(MapError::Overlap);
        }
        self.cut(old.end);
        self.regions += 1;
        for (from, to) in old.clone().map(Some).chain(std::iter::repeat(None)).zip(new) {
            let value = from.map_or(0, |from| self.pages[&from].value);
            self.pages.insert(to, Page { region: self.regions, value, ..first });
        }
        self.pages.retain(|number, _| !old.contains(number));
        Ok(())
    }
}

fn rights(write: bool) -> Protection {
    if write { Protection::READ_WRITE } else { Protection::READ }
}

fn perform(space: &mut Space, process: &Process<FourLevel>, action: Action) {
    match action {
        Action::Fork(_) => {}
        Action::Map { first, count, write } => {
            let Space { mm, pages: model, regions } = space;
            let taken = model.range(first..first + count).next().is_some();
            let expected = if taken { Err(MapError::Overlap) } else { Ok(()) };
            assert_eq!(mm.mmap(pages(first, first + count), rights(write), Mapping::Anonymous), expected);
            if !taken {
                *regions += 1;
                let page = Page { region: *regions, write, value: 0 };
                model.extend((first..first + count).map(|number| (number, page)));
            }
        }
        Action::Unmap { first, count } => {
            assert_eq!(space.mm.munmap(pages(first, first + count)), Ok(()));
            space.cut(first + count);
            space.pages.retain(|number, _| !(first..first + count).contains(number));
        }
        Action::Protect { first, count, write } => {
            let whole = space.pages.range(first..first + count).count() as u64 == count;
            let expected = if whole { Ok(()) } else { Err(MapError::NotMapped) };
            assert_eq!(space.mm.mprotect(pages(first, first + count), rights(write)), expected);
            if whole {
                space.cut(first);
                space.cut(first + count);
                space.pages.range_mut(first..first + count).for_each(|(_, page)| page.write = write);
            }
        }
        Action::Remap { first, count, to, to_count } => {
            let outcome = space.mm.mremap(pages(first, first + count), pages(to, to + to_count));
            assert_eq!(outcome, space.remap(first..first + count, to..to + to_count));
        }
        Action::Write { at, value } => {
            let expected = match space.pages.get_mut(&at) {
                None => Err(FaultError::NotMapped),
                Some(page) if !page.write => Err(FaultError::Forbidden),
                Some(page) => {
                    page.value = value;
                    Ok(())
                }
            };
            assert_eq!(process.write(page(at), value), expected);
        }
        Action::Read { at } => {
            let expected = space.pages.get(&at).map(|page| page.value).ok_or(FaultError::NotMapped);
            assert_eq!(process.read(page(at)), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is forked, stored, mapped and protected in whichever order, each address space shows its own contents.
    #[test]
    fn address_spaces_are_isolated(steps in proptest::collection::vec((0..SPACES, 1..6_usize, action()), 1..50)) {
        let world = super::calm();
        world.alone(|| run(&world, steps));
    }
}

fn run(world: &World<FourLevel>, steps: Vec<(usize, usize, Action)>) {
    let mut spaces: Vec<_> =
        (0..SPACES).map(|_| Space { mm: world.mm(), pages: BTreeMap::new(), regions: 0 }).collect();
    let mut process = Process::enter(world, &spaces[0].mm);
    let mut current = 0;
    for (index, (turn, hold, action)) in steps.into_iter().enumerate() {
        // Mostly the same space goes on, with what its CPU has cached.
        if index % hold == 0 && turn != current {
            current = turn;
            drop(process);
            process = Process::enter(world, &spaces[current].mm);
        }
        if let Action::Fork(to) = action {
            if to != current {
                let Space { mm, pages, regions } = &spaces[current];
                spaces[to] = Space { mm: mm.fork().unwrap(), pages: pages.clone(), regions: *regions };
            }
        } else {
            perform(&mut spaces[current], &process, action);
        }
        world.machine.assert_coherent();
    }
    drop(process);
    for space in &spaces {
        let process = Process::enter(world, &space.mm);
        for (number, expected) in &space.pages {
            assert_eq!(process.read(page(*number)), Ok(expected.value));
        }
    }
}
