//! The storm: all CPUs fault in one address space at once, in three phases, and everything they leave is checked.
//!
//! A phase is repeated in rounds. Each round maps its region, lets the CPUs loose on it (only this is measured), checks what
//! they wrote and which frames show where, unmaps, and counts frames and tables.

mod figures;
mod oracle;
mod phase;
mod report;
mod round;

use linkme::distributed_slice;
use mm::address_space::MapError;
use mm::memory::OutOfMemory;
use mm::object::ObjectError;

use crate::harness::{Job, Name, Random, Tally, WORKLOADS, Workload};
use crate::memory::{Mm, memory};
use crate::smp;
use crate::thread::SpawnError;

pub use figures::Figures;
pub use oracle::Findings;
pub use phase::Phase;
pub use round::run as run_round;

/// Rounds of each phase unless the command line says otherwise.
const ROUNDS: u64 = 20;

#[distributed_slice(WORKLOADS)]
static STORM: Workload = Workload { name: Name::new("storm"), run };

/// Why a round could not be run at all.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "shown by its debug form")]
pub enum StormError {
    /// A region.
    Map(MapError),
    /// The shared object.
    Object(ObjectError),
    /// The address space.
    Memory(OutOfMemory),
    /// A thread.
    Spawn(SpawnError),
}

macro_rules! storm_error_from {
    ($($variant:ident: $error:ty),+) => {$(
        impl From<$error> for StormError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )+};
}

storm_error_from!(Map: MapError, Object: ObjectError, Memory: OutOfMemory, Spawn: SpawnError);

fn run(job: &Job) -> Tally {
    let mut tally = Tally::default();
    if let Err(error) = phases(job, &mut tally) {
        log::error!("the storm cannot go on: {error:?}");
        tally.failed += 1;
    }
    tally
}

fn phases(job: &Job, tally: &mut Tally) -> Result<(), StormError> {
    let mut random = Random::new(job.seed);
    let mm = Mm::create(memory())?;
    for phase in Phase::full_size(job.cpus as u64) {
        let (mut figures, mut findings) = (Figures::new(), Findings::new());
        for _ in 0..job.rounds.unwrap_or(ROUNDS) {
            run_round(&mm, &phase, smp::online(), random.next_u64(), &mut figures, &mut findings)?;
        }
        report::figures(&phase, &figures, findings.frames());
        for oracle in findings.oracles() {
            report::oracle(&phase, oracle);
            *if oracle.holds() { &mut tally.passed } else { &mut tally.failed } += 1;
        }
    }
    Ok(())
}
