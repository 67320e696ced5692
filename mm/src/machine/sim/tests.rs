//! Tests of the simulated machine itself, on hand-made tables.

mod hardware;
mod interrupts;
mod latched;
mod mappings;
mod violations;

use super::{Sim, SimConfig, SimMachine, SimViolation};
use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::cpu::CpuId;
use crate::machine::{FrameUse, Machine, PgdLoad};
use crate::pgtable::Tiny;
use crate::tlb::Asid;
use std::panic::{AssertUnwindSafe, catch_unwind};

const CPU0: CpuId = CpuId(0);
const CPU1: CpuId = CpuId(1);

/// The page the rig maps, and its neighbour in the same table.
const VA: VirtAddr = VirtAddr(0x1000);
const NEIGHBOUR: VirtAddr = VirtAddr(0x2000);

/// Entry bits: present, writable, user.
const RW: u64 = 0b111;
const RO: u64 = 0b101;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// A fault no test expects.
#[derive(PartialEq, Eq, Debug)]
struct Unhandled(VirtAddr, bool);

/// A machine of two CPUs with hand-made tables: `VA` maps `page`, `NEIGHBOUR` maps `neighbour`, CPU 0 has them loaded.
struct Rig {
    machine: SimMachine<Tiny>,
    top: Pfn,
    table: Pfn,
    page: Pfn,
    neighbour: Pfn,
}

impl Rig {
    fn new(config: SimConfig) -> Self {
        let machine = SimMachine::new(config);
        let sim: Sim<Tiny> = machine.handle();
        let first = machine.memmap().first().0;
        let [top, table, page, neighbour] = [0, 1, 2, 3].map(|n| Pfn(first + n));
        sim.run_cpu(CPU0, || {
            for pfn in [top, table, page, neighbour] {
                sim.note_frame(pfn, FrameUse::Free);
                sim.note_frame(pfn, FrameUse::Data);
                sim.zero_frame(pfn);
            }
            sim.note_frame(top, FrameUse::Table);
            sim.note_frame(table, FrameUse::Table);
            load(sim, top);
        });
        let rig = Self { machine, top, table, page, neighbour };
        rig.set_pmd(table.address() | RW);
        rig.set_pte(VA, page.address() | RW);
        rig.set_pte(NEIGHBOUR, neighbour.address() | RW);
        rig
    }

    /// One that stops at the first violation.
    fn strict() -> Self {
        Self::new(SimConfig::calm(16, 2, 1))
    }

    /// One that collects violations for `caught`.
    fn lenient() -> Self {
        Self::new(SimConfig { stop_at_violation: false, ..SimConfig::calm(16, 2, 1) })
    }

    fn sim(&self) -> Sim<Tiny> {
        self.machine.handle()
    }

    fn on<R>(&self, cpu: CpuId, body: impl FnOnce(Sim<Tiny>) -> R) -> R {
        self.sim().run_cpu(cpu, || body(self.sim()))
    }

    fn set_pmd(&self, entry: u64) {
        self.sim().set_frame_word(self.top, 0, entry);
    }

    fn pmd(&self) -> u64 {
        self.sim().frame_words(self.top)[0]
    }

    fn set_pte(&self, address: VirtAddr, entry: u64) {
        self.sim().set_frame_word(self.table, (address.0 >> 12) as usize, entry);
    }

    fn pte(&self, address: VirtAddr) -> u64 {
        self.sim().frame_words(self.table)[(address.0 >> 12) as usize]
    }

    fn read(&self, address: VirtAddr) -> Result<u64, Unhandled> {
        self.on(CPU0, |sim| sim.user(|address, write| Err(Unhandled(address, write))).read(address))
    }

    fn write(&self, address: VirtAddr, value: u64) -> Result<(), Unhandled> {
        self.on(CPU0, |sim| sim.user(|address, write| Err(Unhandled(address, write))).write(address, value))
    }

    fn caught(&self) -> Vec<SimViolation> {
        self.machine.take_violations()
    }
}

/// Loads a top table; drops what was cached.
fn load(sim: Sim<Tiny>, pgd: Pfn) {
    sim.load_pgd(PgdLoad::User { pgd: pgd.into(), asid: Asid(0), keep: false });
}

/// Loads a top table; keeps what was cached.
fn load_kept(sim: Sim<Tiny>, pgd: Pfn) {
    sim.load_pgd(PgdLoad::User { pgd: pgd.into(), asid: Asid(0), keep: true });
}

fn range(start: u64, end: u64) -> VirtRange {
    VirtRange::new(start, end).unwrap()
}

/// What `body` panicked with.
fn panic_of(body: impl FnOnce()) -> String {
    match catch_unwind(AssertUnwindSafe(body)).expect_err("no panic").downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().expect("a message").to_string(),
    }
}
