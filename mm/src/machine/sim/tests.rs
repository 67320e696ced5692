//! The simulated machine itself: that it does what hardware may do, and catches what it is there to catch.

use super::{Cached, Sim, SimConfig, SimMachine, SimViolation};
use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::cpu::CpuId;
use crate::machine::{FrameUse, LocalFlush, Machine};
use crate::pgtable::{EntrySlot, Level, Tiny};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

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
            sim.load_pgd(Some(top));
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

// What hardware does

#[test]
fn accesses_go_where_the_tables_say() {
    let rig = Rig::strict();
    rig.write(VirtAddr(VA.0 + 16), 7).unwrap();
    assert_eq!(rig.sim().frame_words(rig.page)[2], 7);
    assert_eq!(rig.read(VirtAddr(VA.0 + 16)), Ok(7));
    assert_eq!(rig.read(NEIGHBOUR), Ok(0));
}

#[test]
fn a_load_sets_accessed_at_every_level_and_a_store_sets_dirty_in_the_leaf() {
    let rig = Rig::strict();
    rig.read(VA).unwrap();
    assert_eq!(rig.pmd(), rig.table.address() | RW | ACCESSED);
    assert_eq!(rig.pte(VA), rig.page.address() | RW | ACCESSED);
    rig.write(VA, 1).unwrap();
    assert_eq!(rig.pmd(), rig.table.address() | RW | ACCESSED);
    assert_eq!(rig.pte(VA), rig.page.address() | RW | ACCESSED | DIRTY);
}

#[test]
fn an_access_that_the_tables_do_not_allow_faults_with_its_address_and_kind() {
    let rig = Rig::strict();
    assert_eq!(rig.read(VirtAddr(0x3000)), Err(Unhandled(VirtAddr(0x3000), false)));
    rig.set_pte(VA, rig.page.address() | RO);
    assert_eq!(rig.write(VA, 1), Err(Unhandled(VA, true)));
    assert_eq!(rig.read(VA), Ok(0));
    // A page of the kernel.
    rig.set_pte(NEIGHBOUR, rig.neighbour.address() | 0b011);
    assert_eq!(rig.read(NEIGHBOUR), Err(Unhandled(NEIGHBOUR, false)));
    // Beyond the user half.
    assert_eq!(rig.read(VirtAddr(1 << 16)), Err(Unhandled(VirtAddr(1 << 16), false)));
}

#[test]
fn a_level_above_can_take_rights_away() {
    let rig = Rig::strict();
    rig.set_pmd(rig.table.address() | RO);
    assert_eq!(rig.write(VA, 1), Err(Unhandled(VA, true)));
    assert_eq!(rig.read(VA), Ok(0));
}

#[test]
fn the_fault_handler_is_asked_until_the_access_succeeds() {
    let rig = Rig::strict();
    rig.set_pte(VA, 0);
    let faults = Cell::new(0);
    let value = rig.on(CPU0, |sim| {
        let mut user = sim.user(|address, _| -> Result<(), Unhandled> {
            faults.set(faults.get() + 1);
            if faults.get() == 3 {
                rig.set_pte(address, rig.page.address() | RW);
            }
            Ok(())
        });
        user.fetch_add(VA, 5).unwrap();
        user.read(VA)
    });
    assert_eq!((value, faults.get()), (Ok(5), 3));
}

#[test]
fn a_cached_translation_outlives_its_entry_until_it_is_flushed() {
    let rig = Rig::strict();
    rig.write(VA, 7).unwrap();
    rig.set_pte(VA, 0);
    assert_eq!(rig.read(VA), Ok(7), "hardware need not look at the table again");
    rig.on(CPU0, |sim| sim.flush_local(LocalFlush::Range(range(0x1000, 0x2000))));
    assert_eq!(rig.read(VA), Err(Unhandled(VA, false)));
}

#[test]
fn a_cached_table_outlives_its_entry_until_any_page_is_flushed() {
    let rig = Rig::strict();
    rig.read(VA).unwrap();
    rig.set_pmd(0);
    assert_eq!(rig.read(NEIGHBOUR), Ok(0), "the walk starts at the cached table");
    // INVLPG drops the whole paging-structure cache, and of translations only its own page's (spec 8.5).
    rig.on(CPU0, |sim| sim.flush_local(LocalFlush::Range(range(0x2000, 0x3000))));
    assert_eq!(rig.read(NEIGHBOUR), Err(Unhandled(NEIGHBOUR, false)));
    assert_eq!(rig.read(VA), Ok(0));
}

#[test]
fn a_flush_of_the_address_space_or_a_load_of_the_top_table_drops_everything() {
    for flush in [true, false] {
        let rig = Rig::strict();
        rig.read(VA).unwrap();
        rig.set_pmd(0);
        rig.on(CPU0, |sim| if flush { sim.flush_local(LocalFlush::AddressSpace) } else { sim.load_pgd(Some(rig.top)) });
        assert_eq!(rig.read(VA), Err(Unhandled(VA, false)));
    }
}

#[test]
fn a_right_granted_without_a_flush_costs_one_spurious_fault() {
    let rig = Rig::strict();
    rig.set_pte(VA, rig.page.address() | RO);
    rig.read(VA).unwrap();
    rig.set_pte(VA, rig.page.address() | RW);
    let faults = Cell::new(0);
    rig.on(CPU0, |sim| {
        let handler = |_, _| -> Result<(), Unhandled> {
            faults.set(faults.get() + 1);
            Ok(())
        };
        sim.user(handler).write(VA, 1)
    })
    .unwrap();
    assert_eq!(faults.get(), 1);
}

#[test]
fn hardware_walks_on_its_own_account_and_marks_what_it_uses() {
    let rig = Rig::new(SimConfig { speculation: 1, ..SimConfig::calm(16, 2, 1) });
    for _ in 0..100 {
        rig.read(VA).unwrap();
    }
    assert_eq!(rig.pte(NEIGHBOUR), rig.neighbour.address() | RW | ACCESSED, "never wanted by anybody, and never dirty");
    rig.set_pte(NEIGHBOUR, 0);
    assert_eq!(rig.read(NEIGHBOUR), Ok(0), "and cached");
}

#[test]
fn evictions_lose_translations_and_nothing_else() {
    let rig = Rig::new(SimConfig { eviction: 2, ..SimConfig::calm(16, 2, 1) });
    for value in 0..100 {
        rig.write(VA, value).unwrap();
        assert_eq!(rig.read(VA), Ok(value));
    }
    rig.set_pte(VA, 0);
    // Sooner or later the translation that nobody flushed is gone all the same.
    assert!((0..100).any(|_| rig.read(VA).is_err()));
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| {
        let rig = Rig::new(SimConfig::racy(16, 2, seed));
        rig.set_pte(VirtAddr(0x3000), rig.page.address() | RW);
        // How long until hardware has looked at the page nobody touches.
        (0..10_000).position(|_| {
            rig.read(VA).unwrap();
            rig.pte(VirtAddr(0x3000)) & ACCESSED != 0
        })
    };
    assert_eq!(run(7), run(7));
    assert!((1..20).any(|seed| run(seed) != run(7)), "the seed changes nothing");
}

#[test]
fn increments_of_all_cpus_arrive() {
    let rig = Rig::new(SimConfig::racy(16, 2, 3));
    rig.sim().run_all(|_| {
        let sim = rig.sim();
        sim.load_pgd(Some(rig.top));
        let mut user = sim.user(|address, write| Err(Unhandled(address, write)));
        for _ in 0..2_000 {
            user.fetch_add(VA, 1).unwrap();
        }
    });
    assert_eq!(rig.read(VA), Ok(4_000));
}

#[test]
fn a_freed_frame_does_not_keep_its_contents() {
    let rig = Rig::strict();
    rig.set_pte(VA, 0);
    rig.on(CPU0, |sim| sim.note_frame(rig.page, FrameUse::Free));
    assert!(rig.sim().frame_words(rig.page).iter().all(|word| *word != 0));
}

#[test]
fn copying_a_frame_copies_all_of_it() {
    let rig = Rig::strict();
    rig.write(VirtAddr(VA.0 + 4088), 9).unwrap();
    rig.on(CPU0, |sim| sim.copy_frame(rig.page, rig.neighbour));
    assert_eq!(rig.sim().frame_words(rig.neighbour), rig.sim().frame_words(rig.page));
    assert_eq!(rig.read(VirtAddr(NEIGHBOUR.0 + 4088)), Ok(9));
}

// What is caught

#[test]
fn freeing_a_frame_before_its_flush_is_caught_and_its_later_use_too() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.set_pte(VA, 0);
    rig.on(CPU0, |sim| sim.note_frame(rig.page, FrameUse::Free));
    let cached = Cached::Translation(VA);
    let retired = SimViolation::RetiredWhileCached { pfn: rig.page, becomes: FrameUse::Free, cpu: CPU0, cached };
    assert_eq!(rig.caught(), [retired]);
    rig.read(VA).unwrap();
    assert_eq!(rig.caught(), [SimViolation::StaleTranslation { cpu: CPU0, address: VA, pfn: rig.page }]);
}

#[test]
fn freeing_a_table_before_its_flush_is_caught_and_a_walk_through_it_too() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.set_pmd(0);
    rig.on(CPU0, |sim| sim.note_frame(rig.table, FrameUse::Free));
    let cached = Cached::Table(Level::Pmd, VirtAddr(0));
    let retired = SimViolation::RetiredWhileCached { pfn: rig.table, becomes: FrameUse::Free, cpu: CPU0, cached };
    assert_eq!(rig.caught(), [retired]);
    assert_eq!(rig.read(NEIGHBOUR), Err(Unhandled(NEIGHBOUR, false)));
    assert_eq!(rig.caught(), [SimViolation::WalkThroughNonTable { cpu: CPU0, address: NEIGHBOUR, pfn: rig.table }]);
}

#[test]
fn freeing_the_loaded_top_table_is_caught() {
    let rig = Rig::lenient();
    rig.on(CPU1, |sim| sim.note_frame(rig.top, FrameUse::Free));
    let becomes = FrameUse::Free;
    let retired = SimViolation::RetiredWhileCached { pfn: rig.top, becomes, cpu: CPU0, cached: Cached::Top };
    assert_eq!(rig.caught(), [retired]);
}

#[test]
fn freeing_a_frame_that_a_table_still_names_is_caught() {
    let rig = Rig::lenient();
    rig.on(CPU0, |sim| sim.note_frame(rig.page, FrameUse::Free));
    assert_eq!(rig.caught(), [SimViolation::FreedWhileMapped { pfn: rig.page, table: rig.table, index: 1 }]);
}

#[test]
fn nothing_is_caught_when_a_table_is_unhooked_flushed_and_freed_in_that_order() {
    let rig = Rig::strict();
    rig.write(VA, 1).unwrap();
    rig.read(NEIGHBOUR).unwrap();
    rig.on(CPU0, |sim| {
        rig.set_pte(VA, 0);
        rig.set_pte(NEIGHBOUR, 0);
        rig.set_pmd(0);
        sim.flush_local(LocalFlush::Range(range(0x1000, 0x3000)));
        for pfn in [rig.page, rig.neighbour, rig.table] {
            sim.note_frame(pfn, FrameUse::Free);
        }
        sim.assert_no_translation(rig.top, range(0, 0x4000));
        sim.assert_coherent();
    });
}

#[test]
fn a_wrong_life_of_a_frame_is_caught() {
    let rig = Rig::lenient();
    let fresh = Pfn(rig.page.0 + 8);
    let wrong = |pfn, from, to| SimViolation::WrongTransition { pfn, from, to };
    rig.on(CPU0, |sim| {
        sim.note_frame(fresh, FrameUse::Data);
        assert_eq!(rig.caught(), [wrong(fresh, None, FrameUse::Data)], "never given to the allocator");
        sim.note_frame(rig.page, FrameUse::Data);
        assert_eq!(rig.caught(), [wrong(rig.page, Some(FrameUse::Data), FrameUse::Data)], "handed out twice");
        rig.set_pte(VA, 0);
        sim.note_frame(rig.page, FrameUse::Free);
        assert_eq!(rig.caught(), []);
        sim.note_frame(rig.page, FrameUse::Free);
        assert_eq!(rig.caught(), [wrong(rig.page, Some(FrameUse::Free), FrameUse::Free)], "freed twice");
        sim.note_frame(rig.page, FrameUse::Table);
        assert_eq!(rig.caught(), [wrong(rig.page, Some(FrameUse::Free), FrameUse::Table)], "never allocated");
    });
}

#[test]
fn a_frame_used_as_what_it_is_not_is_caught() {
    let rig = Rig::lenient();
    let (page, table) = (rig.page, rig.table);
    rig.on(CPU0, |sim| {
        sim.map_table(page, Level::Pte);
        assert_eq!(rig.caught(), [SimViolation::NotATable { pfn: page }]);
        sim.load_pgd(Some(page));
        assert_eq!(rig.caught(), [SimViolation::NotATable { pfn: page }]);
        sim.load_pgd(None);
        sim.copy_frame(table, page);
        assert_eq!(rig.caught(), [SimViolation::NotData { pfn: table }]);
        sim.zero_frame(table);
        assert_eq!(rig.caught(), [SimViolation::NotData { pfn: table }]);
    });
}

#[test]
fn a_translation_left_after_an_unmapping_is_caught() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.set_pte(VA, 0);
    let sim = rig.sim();
    sim.assert_no_translation(rig.top, range(0x2000, 0x3000));
    sim.assert_no_translation(rig.page, range(0x1000, 0x2000));
    assert_eq!(rig.caught(), [], "another range, another address space");
    sim.assert_no_translation(rig.top, range(0x1000, 0x2000));
    assert_eq!(rig.caught(), [SimViolation::TranslationLeft { cpu: CPU0, address: VA, pfn: rig.page }]);
}

#[test]
fn a_right_taken_away_without_a_flush_is_caught_and_one_granted_is_not() {
    let rig = Rig::lenient();
    rig.set_pte(NEIGHBOUR, rig.neighbour.address() | RO);
    rig.write(VA, 1).unwrap();
    rig.read(NEIGHBOUR).unwrap();
    rig.set_pte(NEIGHBOUR, rig.neighbour.address() | RW);
    rig.sim().assert_coherent();
    assert_eq!(rig.caught(), []);
    rig.set_pte(VA, rig.page.address() | RO);
    rig.sim().assert_coherent();
    assert_eq!(rig.caught(), [SimViolation::Incoherent { cpu: CPU0, address: VA, pfn: rig.page }]);
}

#[test]
fn a_handler_that_never_resolves_its_fault_is_caught() {
    let rig = Rig::strict();
    let handler = |_, _| Ok::<(), ()>(());
    let text = panic_of(|| rig.on(CPU0, |sim| sim.user(handler).write(VirtAddr(0x3000), 1)).unwrap());
    assert!(text.contains("EndlessFault"), "{text}");
    rig.caught();
}

#[test]
fn a_violation_stops_the_machine_by_name_unless_it_is_to_collect_them() {
    let text = panic_of(|| {
        let rig = Rig::strict();
        rig.on(CPU0, |sim| sim.zero_frame(rig.table));
    });
    assert!(text.contains("NotData"), "{text}");
    let text = panic_of(|| {
        let rig = Rig::lenient();
        rig.on(CPU0, |sim| sim.zero_frame(rig.table));
        drop(rig);
    });
    assert!(text.contains("NotData"), "not told at the end: {text}");
}

// Interrupts, sleep and time

#[test]
fn an_interrupt_is_taken_only_with_interrupts_on() {
    let rig = Rig::strict();
    rig.on(CPU0, |sim| {
        assert!(sim.irq_save());
        sim.kick(CPU0);
        sim.pause();
        let _ = sim.map_table(rig.table, Level::Pte)[0].load();
        assert_eq!(sim.interrupts_taken(CPU0), 0);
        sim.irq_restore(true);
        assert_eq!(sim.interrupts_taken(CPU0), 1);
        assert!(sim.irqs_enabled());
    });
}

#[test]
fn an_access_to_an_entry_and_a_user_access_each_take_interrupts() {
    for user in [true, false] {
        let rig = Rig::new(SimConfig::calm(16, 2, 1));
        let ready = AtomicBool::new(false);
        let sim = rig.sim();
        sim.run(vec![
            (
                CPU0,
                Box::new(|| {
                    let table = sim.map_table(rig.table, Level::Pte);
                    ready.store(true, Ordering::Release);
                    while sim.interrupts_taken(CPU0) == 0 {
                        if user {
                            sim.user(|address, write| Err(Unhandled(address, write))).read(VA).unwrap();
                        } else {
                            table[1].load();
                        }
                    }
                }),
            ),
            (
                CPU1,
                Box::new(|| {
                    while !ready.load(Ordering::Acquire) {
                        sim.pause();
                    }
                    sim.kick(CPU0);
                }),
            ),
        ]);
    }
}

#[test]
fn an_interrupt_that_came_before_the_halt_ends_it() {
    let rig = Rig::strict();
    rig.on(CPU0, |sim| {
        sim.irq_save();
        sim.kick(CPU0);
        sim.halt_until_kicked();
        assert!(sim.irqs_enabled());
        assert_eq!(sim.interrupts_taken(CPU0), 1);
    });
}

#[test]
fn halting_with_interrupts_on_is_caught() {
    let rig = Rig::lenient();
    rig.on(CPU0, |sim| {
        sim.irq_save();
        sim.kick(CPU0);
        sim.me().set_irqs(true);
        sim.halt_until_kicked();
    });
    assert_eq!(rig.caught(), [SimViolation::HaltWithInterruptsOn { cpu: CPU0 }]);
}

#[test]
fn a_cpu_that_nobody_runs_takes_its_interrupts_on_the_senders_thread() {
    let rig = Rig::strict();
    rig.on(CPU0, |sim| {
        sim.kick(CPU1);
        sim.send_flush_ipi(CPU1);
        assert_eq!(sim.cpu(), CPU0);
        assert_eq!((sim.interrupts_taken(CPU0), sim.interrupts_taken(CPU1)), (0, 2));
    });
}

#[test]
fn an_interrupt_for_a_cpu_that_stopped_deaf_is_caught() {
    let rig = Rig::lenient();
    rig.on(CPU1, |sim| sim.irq_save());
    rig.on(CPU0, |sim| sim.kick(CPU1));
    assert_eq!(rig.caught(), [SimViolation::InterruptToDeafCpu { cpu: CPU1 }]);
}

#[test]
fn halted_cpus_that_kick_each_other_lose_no_kick() {
    const ROUNDS: u64 = 2_000;
    let rig = Rig::new(SimConfig::racy(16, 2, 5));
    let (sim, turn) = (rig.sim(), AtomicU64::new(0));
    sim.run_all(|cpu| {
        for round in 0..ROUNDS {
            let mine = round * 2 + u64::from(cpu.0);
            loop {
                sim.irq_save();
                if turn.load(Ordering::SeqCst) == mine {
                    sim.irq_restore(true);
                    break;
                }
                sim.halt_until_kicked();
            }
            turn.store(mine + 1, Ordering::SeqCst);
            sim.kick(CpuId(1 - cpu.0));
        }
    });
    assert_eq!(turn.load(Ordering::SeqCst), 2 * ROUNDS);
}

#[test]
fn sleepers_that_wake_each_other_lose_no_wake_up() {
    const ROUNDS: u64 = 2_000;
    const KEY: usize = 0x77;
    let rig = Rig::new(SimConfig::racy(16, 2, 6));
    let (sim, turn) = (rig.sim(), AtomicU64::new(0));
    sim.run_all(|cpu| {
        for round in 0..ROUNDS {
            let mine = round * 2 + u64::from(cpu.0);
            sim.block_while(KEY, &mut || turn.load(Ordering::SeqCst) != mine);
            turn.store(mine + 1, Ordering::SeqCst);
            sim.wake(KEY);
        }
    });
    assert_eq!(turn.load(Ordering::SeqCst), 2 * ROUNDS);
}

#[test]
fn a_sleeper_takes_interrupts_but_wakes_only_for_its_key() {
    const KEY: usize = 0x77;
    let rig = Rig::strict();
    let (sim, awake, asked) = (rig.sim(), AtomicBool::new(false), AtomicU64::new(0));
    let sleeper = || {
        let mut first = true;
        sim.block_while(KEY, &mut || {
            asked.fetch_add(1, Ordering::SeqCst);
            std::mem::take(&mut first)
        });
        awake.store(true, Ordering::SeqCst);
    };
    let waker = || {
        while asked.load(Ordering::SeqCst) == 0 {
            sim.pause();
        }
        sim.kick(CPU0);
        while sim.interrupts_taken(CPU0) == 0 {
            sim.pause();
        }
        sim.wake(KEY + 1);
        assert!(!awake.load(Ordering::SeqCst));
        assert_eq!(asked.load(Ordering::SeqCst), 1, "neither interrupt nor another key is a wake-up");
        sim.wake(KEY);
    };
    sim.run(vec![(CPU0, Box::new(sleeper)), (CPU1, Box::new(waker))]);
    assert!(awake.load(Ordering::SeqCst));
}

#[test]
fn a_run_that_gets_nowhere_ends_with_a_verdict_on_every_cpu() {
    let text = panic_of(|| {
        let rig = Rig::new(SimConfig { time_limit: Duration::from_millis(200), ..SimConfig::calm(16, 2, 1) });
        let sim = rig.sim();
        sim.run_all(|cpu| {
            if cpu == CPU0 {
                sim.irq_save();
                sim.halt_until_kicked();
            } else {
                sim.block_while(0x5eed, &mut || true);
            }
        });
    });
    for part in ["time limit passed", "cpu 0: Halted", "cpu 1: Sleeping(24301)"] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn a_spinning_cpu_is_stopped_by_the_time_limit_too() {
    let text = panic_of(|| {
        let rig = Rig::new(SimConfig { time_limit: Duration::from_millis(100), ..SimConfig::calm(16, 2, 1) });
        rig.on(CPU0, |sim| {
            loop {
                sim.pause();
            }
        });
    });
    assert!(text.contains("time limit passed"), "{text}");
}

#[test]
fn a_wait_given_up_tells_what_every_cpu_was_doing() {
    let text = panic_of(|| {
        let rig = Rig::strict();
        rig.on(CPU0, |sim| sim.stuck("a lock"));
    });
    assert!(text.contains("stuck: a lock") && text.contains("cpu 0") && text.contains("cpu 1"), "{text}");
}

#[test]
fn a_panic_on_one_cpu_ends_the_run_with_its_message() {
    let text = panic_of(|| {
        let rig = Rig::strict();
        let sim = rig.sim();
        sim.run_all(|cpu| {
            assert_ne!(cpu, CPU1, "the bug under test");
            loop {
                sim.pause();
            }
        });
    });
    assert!(text.contains("the bug under test"), "{text}");
}

#[test]
#[should_panic(expected = "runs as no CPU")]
fn machine_calls_from_a_thread_that_is_no_cpu_are_refused() {
    Rig::strict().sim().pause();
}
