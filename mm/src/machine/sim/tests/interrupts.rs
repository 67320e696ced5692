//! Interrupts, sleep, time limits and failures of CPUs.

use super::{CPU0, CPU1, Rig, Unhandled, VA, panic_of};
use crate::address::Pfn;
use crate::cpu::CpuId;
use crate::machine::sim::{Sim, SimConfig, SimViolation};
use crate::machine::{FrameUse, LocalFlush, Machine};
use crate::pgtable::{EntrySlot, Level, Tiny};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn an_interrupt_is_taken_only_with_interrupts_on() {
    let rig = Rig::strict();
    rig.on(CPU0, |sim| {
        assert!(sim.irq_save());
        sim.kick(CPU0);
        sim.pause();
        let table = sim.map_table(rig.table, Level::Pte);
        table[0].load();
        sim.unmap_table(table);
        assert_eq!(sim.interrupts_taken(CPU0), 0);
        sim.irq_restore(true);
        assert_eq!(sim.interrupts_taken(CPU0), 1);
        assert!(sim.irqs_enabled());
    });
}

#[test]
fn an_interrupt_may_be_late_but_comes() {
    let late = |seed| {
        let rig = Rig::new(SimConfig { lateness: 2, ..SimConfig::calm(16, 2, seed) });
        rig.on(CPU0, |sim| {
            sim.kick(CPU0);
            (0..1_000).position(|_| {
                sim.pause();
                sim.interrupts_taken(CPU0) == 1
            })
        })
    };
    let late: Vec<_> = (0..20).map(|seed| late(seed).expect("it is lost")).collect();
    assert!(late.contains(&0) && late.iter().any(|points| *points > 1), "always after as long: {late:?}");
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
                    sim.unmap_table(table);
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
fn a_failed_test_can_still_clear_up() {
    struct ClearsUp(Sim<Tiny>, Pfn);
    impl Drop for ClearsUp {
        fn drop(&mut self) {
            self.0.kick(CPU1);
            self.0.flush_local(LocalFlush::AddressSpace);
            self.0.note_frame(self.1, FrameUse::Free);
        }
    }
    let rig = Rig::strict();
    let text = panic_of(|| {
        let _clears_up = ClearsUp(rig.sim(), rig.neighbour);
        rig.sim().run_all(|cpu| {
            rig.sim().irq_save();
            assert_ne!(cpu, CPU1, "the bug under test");
        });
    });
    assert!(text.contains("the bug under test"), "{text}");
    assert_eq!(rig.caught(), [SimViolation::FreedWhileMapped { pfn: rig.neighbour, table: rig.table, index: 2 }]);
}

#[test]
#[should_panic(expected = "runs as no CPU")]
fn machine_calls_from_a_thread_that_is_no_cpu_are_refused() {
    Rig::strict().sim().pause();
}
