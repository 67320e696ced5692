//! CPUs that latch the entries of the top table, as PAE has them: only a load of the table makes a changed one known.

use super::{CPU0, CPU1, RW, Unhandled, VA, range};
use crate::address::{Pfn, PhysAddr};
use crate::machine::sim::{Cached, Sim, SimConfig, SimMachine, SimViolation};
use crate::machine::{FrameUse, LocalFlush, Machine, PgdLoad};
use crate::pgtable::{Level, Pae};
use crate::tlb::Asid;

/// A machine whose CPU 0 has loaded hand-made tables in which `VA` maps `page`.
struct Rig {
    machine: SimMachine<Pae>,
    top: PhysAddr,
    pmd: Pfn,
    page: Pfn,
}

impl Rig {
    /// With `entry` of the PMD table, and what a CPU thinks of it, in the top table.
    fn new(entry: impl Fn(Pfn) -> u64) -> Self {
        Self::with(SimConfig { stop_at_violation: false, ..SimConfig::calm(16, 2, 1) }, entry)
    }

    fn with(config: SimConfig, entry: impl Fn(Pfn) -> u64) -> Self {
        let machine = SimMachine::new(config);
        let sim: Sim<Pae> = machine.handle();
        let first = machine.memmap().first().0;
        let [top, pmd, table, page] = [0, 1, 2, 3].map(|n| Pfn(first + n));
        sim.run_cpu(CPU0, || {
            for pfn in [top, pmd, table, page] {
                sim.note_frame(pfn, FrameUse::Free);
                sim.note_frame(pfn, FrameUse::Data);
                sim.zero_frame(pfn);
            }
            [pmd, table].into_iter().for_each(|pfn| sim.note_frame(pfn, FrameUse::Table));
            sim.set_frame_word(top, 4, entry(pmd));
            sim.set_frame_word(pmd, 0, table.address() | RW);
            sim.set_frame_word(table, (VA.0 >> 12) as usize, page.address() | RW);
        });
        // Anywhere in its frame.
        let rig = Self { machine, top: PhysAddr(top.address() + 32), pmd, page };
        rig.on_cpu0(|sim| sim.load_pgd(PgdLoad::User { pgd: rig.top, asid: Asid(0), keep: false }));
        rig
    }

    fn on_cpu0<R>(&self, body: impl FnOnce(Sim<Pae>) -> R) -> R {
        let sim = self.machine.handle();
        sim.run_cpu(CPU0, || body(sim))
    }

    fn set_top(&self, entry: u64) {
        self.machine.set_frame_word(self.top.pfn(), 4, entry);
    }

    fn read(&self) -> Result<u64, Unhandled> {
        self.on_cpu0(|sim| sim.user(|address, write| Err(Unhandled(address, write))).read(VA))
    }

    fn flush(&self, flush: LocalFlush) {
        self.on_cpu0(|sim| sim.flush_local(flush));
    }
}

const fn well_formed(pmd: Pfn) -> u64 {
    pmd.address() | 1
}

/// All rights come from the levels below (spec 6.1).
#[test]
fn an_entry_without_rights_leads_to_pages_with_all() {
    let rig = Rig::new(well_formed);
    rig.on_cpu0(|sim| {
        sim.user(|address, write| Err(Unhandled(address, write))).write(VA, 7).unwrap();
        assert_eq!(sim.translation_of(VA), Some(rig.page));
        assert_eq!(sim.latched(0), Some(crate::pgtable::Entry(well_formed(rig.pmd))));
        sim.assert_coherent();
    });
    assert_eq!(rig.machine.frame_words(rig.top.pfn())[4], well_formed(rig.pmd), "a walker has written the entry");
}

/// Not even a page fault makes a new entry known (R31), nor does INVLPG.
#[test]
fn a_filled_entry_is_unknown_until_the_table_is_loaded_again() {
    let rig = Rig::new(|_| 0);
    rig.set_top(well_formed(rig.pmd));
    assert!(rig.read().is_err() && rig.read().is_err());
    rig.flush(LocalFlush::Range { range: range(0, 0x10_0000), stride: 0x1000 });
    assert!(rig.read().is_err());
    rig.on_cpu0(|sim| sim.assert_coherent());
    assert_eq!(rig.machine.take_violations(), [SimViolation::LatchedStale { cpu: CPU0, index: 0 }]);
    rig.flush(LocalFlush::AddressSpace);
    assert_eq!(rig.read(), Ok(0));
    rig.on_cpu0(|sim| sim.assert_coherent());
}

/// Not every maker's CPUs copy the entries only when the table is loaded.
#[test]
fn a_filled_entry_may_become_known_by_itself() {
    let rig = Rig::with(SimConfig { eviction: 1, ..SimConfig::calm(16, 2, 1) }, |_| 0);
    rig.set_top(well_formed(rig.pmd));
    assert!((0..100).any(|_| rig.read() == Ok(0)));
}

/// An entry that is gone from memory is still walked, so the table it points to may not be freed (I30).
#[test]
fn freeing_a_table_that_is_latched_is_caught() {
    let rig = Rig::new(well_formed);
    rig.set_top(0);
    assert_eq!(rig.read(), Ok(0));
    rig.flush(LocalFlush::Range { range: range(0, 0x1000), stride: 0x1000 });
    let sim = rig.machine.handle();
    sim.run_cpu(CPU1, || sim.note_frame(rig.pmd, FrameUse::Free));
    let cached = Cached::Table(Level::Pgd, crate::address::VirtAddr(0));
    let retired = SimViolation::RetiredWhileCached { pfn: rig.pmd, becomes: FrameUse::Free, cpu: CPU0, cached };
    assert_eq!(rig.machine.take_violations(), [retired]);
}

#[test]
fn a_table_may_be_freed_when_nobody_has_latched_it_any_more() {
    let rig = Rig::new(well_formed);
    assert_eq!(rig.read(), Ok(0));
    rig.set_top(0);
    rig.flush(LocalFlush::AddressSpace);
    let sim = rig.machine.handle();
    sim.run_cpu(CPU1, || sim.note_frame(rig.pmd, FrameUse::Free));
    assert_eq!(rig.machine.take_violations(), []);
}

/// I39: what a CPU answers with a general-protection fault.
#[test]
fn a_reserved_bit_is_caught_at_the_load() {
    for bit in [1, 2, 5, 6, 7, 8, 63] {
        let rig = Rig::new(|pmd| well_formed(pmd) | 1 << bit);
        assert_eq!(rig.machine.take_violations(), [SimViolation::ReservedBits { cpu: CPU0, index: 0 }], "bit {bit}");
        // An entry that is not present has none.
        rig.set_top(1 << bit);
        rig.flush(LocalFlush::AddressSpace);
        assert_eq!(rig.machine.take_violations(), []);
    }
}
