//! Operations of several CPUs on one address space while allocations of each fail now and then (R34): what an operation takes
//! back, it takes back among others that go on.

use crate::address_space::{MapError, MmRef};
use crate::fault::FaultError;
use crate::frame::Injection;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig};
use crate::pgtable::{PagingMode, Protection};
use crate::testing::{Process, World, in_each_mode, map_anonymous, page, pages};

const CPUS: u64 = 4;
/// Pages of each CPU. All of them lie in two tables, and so do those of one place they move to: who is the first there makes them.
const PAGES: u64 = 16;
const HERE: u64 = 0x1e0;
const THERE: u64 = 0x4_01e0;
const PLACES: u64 = 4;
const APART: u64 = 0x400;
const TURNS: u64 = 48;

/// What one CPU has mapped, and what it has stored there.
struct Own<Mode: PagingMode> {
    mm: MmRef<Sim<Mode>>,
    process: Process<Mode>,
    first: u64,
    stored: [u64; PAGES as usize],
}

/// R34, I6 under contention: every CPU maps, stores, discards, protects, moves and forks, in tables that all share, and its
/// allocations fail at random. A failure is a lack of memory, and changes nothing: not what the CPU has mapped, not what it has
/// stored, and nothing of the others'. At the end everything is given back.
///
/// For example: CPU 1 moves its region, has made one table of two, and takes back what it has made, while CPU 2, whose region is
/// there already, faults in the first.
#[test]
fn failures_of_one_are_nothing_to_the_others() {
    in_each_mode!(fail_at_random, 0..3);
}

fn fail_at_random<Mode: PagingMode>(seed: u64) {
    let world: World<Mode> = World::new(SimConfig::racy(2048, CPUS as usize, seed));
    let mm = world.alone(|| {
        let mm = world.mm();
        (0..CPUS).for_each(|cpu| map_anonymous(&mm, pages(HERE + cpu * PAGES, HERE + (cpu + 1) * PAGES)));
        mm
    });
    let failures: std::sync::Mutex<[u64; 6]> = std::sync::Mutex::new([0; 6]);
    world.machine.run_all(|cpu| {
        let base = u64::from(cpu.0) * PAGES;
        let process = Process::enter(&world, &mm);
        let mut own = Own { mm: mm.clone(), process, first: HERE + base, stored: [0; PAGES as usize] };
        let handle = world.machine.handle();
        let injection = &handle.cpus().of(cpu).injection;
        let mut random = seed << 32 | u64::from(cpu.0);
        for turn in 0..TURNS {
            // Knuth's generator; its upper bits are good enough.
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let choice = random >> 33;
            let failed = own.act(injection, base, choice, turn + 1);
            if failed {
                failures.lock().unwrap()[(choice % 6) as usize] += 1;
            }
            own.check();
        }
    });
    // All but discarding may fail, and each has.
    let failures = failures.into_inner().unwrap();
    println!("scarce: {} of {} operations failed, by kind {failures:?}", failures.iter().sum::<u64>(), CPUS * TURNS);
    assert!(failures.iter().filter(|count| **count > 0).count() >= 4, "{failures:?}");
    world.alone(|| drop(mm));
}

impl<Mode: PagingMode> Own<Mode> {
    /// Does what `choice` says while an allocation fails that it says too, and perhaps all after it. Whether it failed.
    fn act(&mut self, injection: &Injection, base: u64, choice: u64, value: u64) -> bool {
        let all = pages(self.first, self.first + PAGES);
        let (nth, number) = ((choice >> 8) as u32 % 6 + 1, (choice >> 16) % PAGES);
        match choice >> 4 & 3 {
            0 => injection.fail_nth(nth),
            _ => injection.fail_from(nth),
        }
        let outcome = match choice % 6 {
            0 => self.process.write(page(self.first + number), value).map_err(|error| match error {
                FaultError::OutOfMemory => MapError::OutOfMemory,
                other => panic!("{other:?}"),
            }),
            1 => self.mm.madvise_dontneed(pages(self.first + number, self.first + PAGES)),
            2 => self.mm.munmap(all),
            3 => self.mm.mprotect(all, Protection::READ),
            4 => {
                let there = THERE + (choice >> 20) % PLACES * APART;
                let other = base + if self.first == HERE + base { there } else { HERE };
                self.mm.mremap(all, pages(other, other + PAGES)).map(|()| self.first = other)
            }
            _ => self.mm.fork().map(drop),
        };
        injection.stop();
        if let Err(error) = outcome {
            assert_eq!(error, MapError::OutOfMemory);
            return true;
        }
        match choice % 6 {
            0 => self.stored[number as usize] = value,
            1 => self.stored[number as usize..].fill(0),
            2 => {
                map_anonymous(&self.mm, all);
                self.stored.fill(0);
            }
            3 => {
                assert_eq!(self.process.write(all.start, 0), Err(FaultError::Forbidden));
                self.mm.mprotect(all, Protection::READ_WRITE).expect("memory, and the region");
            }
            _ => (),
        }
        false
    }

    /// Fails unless what has been stored is there.
    fn check(&self) {
        for (number, stored) in (self.first..).zip(self.stored) {
            assert_eq!(self.process.read(page(number)), Ok(stored), "page {number:#x}");
        }
    }
}
