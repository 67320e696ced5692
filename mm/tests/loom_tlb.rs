//! Models of the TLB protocol: the real code of `mm::tlb`, on CPUs whose TLBs forget nothing, with tables of one level.
//!
//! Each ends in the same check: once a flush has returned, no access finds what the tables said before it. When a flush has
//! returned, `gone` says so at once, outside of what loom may reorder: it stands for the page's frame being used otherwise.
#![cfg(loom)]

mod loom_machine;
#[path = "loom_machine/watched.rs"]
mod watched;

use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use loom_machine::{Cpu, Model};
use mm::address::{Pfn, VirtAddr, VirtRange};
use mm::cpu::CpuId;
use mm::machine::Machine;
use mm::pgtable::Level;
use mm::sync::LockClass;
use mm::sync::spin::SpinLock;
use mm::sync::ticket::TicketLock;
use mm::tlb::{self, MmTlb, TlbFlush};
use std::sync::atomic::AtomicBool;
use watched::Watched;

/// What an entry says while it maps something.
const MAPPED: u64 = 1;

/// An address space of two pages.
struct Space {
    /// In place while the space moves.
    tlb: Box<MmTlb>,
    entries: [AtomicU64; 2],
    gone: [AtomicBool; 2],
    /// CPUs that will send no more flushes.
    done: AtomicUsize,
    lock: SpinLock<(), TicketLock>,
}

fn address(page: usize) -> VirtAddr {
    VirtAddr(page as u64 * 0x1000)
}

impl Space {
    fn new() -> Self {
        Self::with_id(7)
    }

    fn with_id(ctx_id: usize) -> Self {
        Self {
            tlb: Box::new(MmTlb::new(ctx_id, Pfn(0x100).into())),
            entries: [AtomicU64::new(MAPPED), AtomicU64::new(MAPPED)],
            gone: [AtomicBool::new(false), AtomicBool::new(false)],
            done: AtomicUsize::new(0),
            lock: SpinLock::new(()),
        }
    }

    /// One that CPU 0 has loaded, with both pages cached.
    fn loaded(cpu: Cpu) -> Self {
        let space = Self::new();
        space.load(cpu);
        (0..2).for_each(|page| space.access(cpu, page));
        space
    }

    fn load(&self, cpu: Cpu) {
        // SAFETY: the address space outlives the machine's CPUs.
        unsafe { tlb::switch(cpu, Some(&self.tlb)) };
    }

    fn leave(&self, cpu: Cpu) {
        // SAFETY: as above.
        unsafe { tlb::switch(cpu, None) };
    }

    fn access(&self, cpu: Cpu, page: usize) {
        let gone = self.gone[page].load(Ordering::SeqCst);
        let found = cpu.translate(address(page), || self.entries[page].load(Ordering::Relaxed));
        assert!(!(gone && found == Some(MAPPED)), "page {page} is found after its flush");
    }

    fn unmap(&self, cpu: Cpu, page: usize, freed_tables: bool) {
        self.entries[page].store(0, Ordering::Relaxed);
        let range = VirtRange { start: address(page), end: address(page + 1) };
        tlb::flush(cpu, &self.tlb, TlbFlush { range, stride: Level::Pte, freed_tables, top_changed: false });
        self.gone[page].store(true, Ordering::SeqCst);
    }

    /// This CPU sends no more flushes. It answers those of the other, until that sends none either.
    fn answer(&self, cpu: Cpu) {
        self.done.fetch_add(1, Ordering::AcqRel);
        while self.done.load(Ordering::Acquire) < 2 {
            cpu.pause();
        }
    }

    /// As [`Self::answer`]; then it looks at both pages.
    fn finish(&self, cpu: Cpu) {
        self.answer(cpu);
        (0..2).for_each(|page| self.access(cpu, page));
    }
}

/// Two CPUs, whose TLBs have six ASIDs or none.
fn model(tagged: bool) -> Model {
    Model { asids: if tagged { 6 } else { 1 }, ..Model::new(2, 0) }
}

/// CPU 0 does `first`, CPU 1 `second`, over what CPU 0 has made by `begin`.
fn race(
    tagged: bool,
    begin: fn(Cpu) -> Space,
    first: impl Fn(&Space, Cpu) + Copy + Send + Sync + 'static,
    second: impl Fn(&Space, Cpu) + Copy + Send + Sync + 'static,
) {
    model(tagged).run_on(
        begin,
        move |space, cpu| {
            if cpu.cpu().index() == 0 {
                first(space, cpu)
            } else {
                second(space, cpu)
            }
            space.finish(cpu);
        },
        |_, _| (),
    );
}

/// R23, I32: a CPU loads the address space while another flushes it. It comes back to what it had cached, which is kept
/// if nobody has flushed since.
#[test]
fn switch_against_flush() {
    for tagged in [true, false] {
        race(
            tagged,
            |cpu| {
                let space = Space::loaded(cpu);
                space.leave(cpu);
                space
            },
            |space, cpu| {
                space.load(cpu);
                space.access(cpu, 0);
            },
            |space, cpu| space.unmap(cpu, 0, false),
        );
    }
}

/// I29, I32: a CPU loads another address space while the one it has loaded is flushed. Until the load its walker may use what
/// it has cached, so it has to stay in the mask until then. If it left before:
///
/// ```text
///   CPU 0: leaves the mask
///                             CPU 1: clears the entry, raises the generation, sees nobody in the mask; the flush is over
///   CPU 0: still has it loaded and cached
/// ```
#[test]
fn leaving_against_flush() {
    for tagged in [true, false] {
        model(tagged).run_on(
            |cpu| (Space::loaded(cpu), Space::with_id(8)),
            |(space, next), cpu| {
                if cpu.cpu().index() == 0 {
                    next.load(cpu);
                } else {
                    space.unmap(cpu, 0, true);
                    assert!(!cpu.has_cached(CpuId(0), address(0)), "page 0 may be used after its flush");
                }
                space.answer(cpu);
            },
            |_, _| (),
        );
    }
}

/// I29: what a CPU has stored through a translation is there for whoever flushed the translation away (a collapse copies the
/// page then). The stores come before the CPU's flush, and that before its answer; the answer carries them over.
#[test]
fn stores_before_a_flush_against_a_look_after_it() {
    model(false).run_on(
        |cpu| (Space::loaded(cpu), Watched::new()),
        |(space, page), cpu| {
            if cpu.cpu().index() == 0 {
                if cpu.translate(address(0), || space.entries[0].load(Ordering::Relaxed)) == Some(MAPPED) {
                    page.add();
                }
            } else {
                space.unmap(cpu, 0, false);
                page.get();
            }
            space.answer(cpu);
        },
        |_, _| (),
    );
}

/// R24, I31: two flushes reach a CPU in either order, one of them its own.
#[test]
fn generations_out_of_order() {
    let flush = |page| {
        move |space: &Space, cpu| {
            space.unmap(cpu, page, false);
            (0..2).for_each(|page| space.access(cpu, page));
        }
    };
    race(true, Space::loaded, flush(0), flush(1));
}

/// R26: a flush passes a lazy CPU by, which comes back at the same moment.
#[test]
fn return_from_lazy_against_flush() {
    race(
        true,
        Space::loaded,
        |space, cpu| {
            tlb::enter_lazy(cpu);
            space.load(cpu);
            space.access(cpu, 0);
        },
        |space, cpu| space.unmap(cpu, 0, false),
    );
}

/// R25, I33: after a flush that freed tables no CPU has them loaded lazily; what it had cached of them is out of reach.
#[test]
fn lazy_cpu_against_freed_tables() {
    race(
        true,
        Space::loaded,
        |space, cpu| {
            tlb::enter_lazy(cpu);
            cpu.pause();
            // Its walker, not its thread.
            space.access(cpu, 0);
        },
        |space, cpu| space.unmap(cpu, 0, true),
    );
}

/// CPU 1 fills the top table's entry, of which CPU 0 has an old copy or makes one, while CPU 0 does `come`. Once the flush has
/// returned, whoever runs in the address space knows the entry: else its fault would find nothing to do, for ever.
fn top_filled_against(
    begin: impl Fn(Cpu) -> Space + Send + Sync + 'static,
    come: impl Fn(&Space, Cpu) + Copy + Send + Sync + 'static,
) {
    Model { latches: true, ..model(false) }.run_on(
        begin,
        move |space, cpu| {
            if cpu.cpu().index() == 0 {
                come(space, cpu);
                let is_over = space.gone[0].load(Ordering::SeqCst);
                assert!(!is_over || cpu.latched_top() == Some(MAPPED), "a filled entry is unknown after its flush");
            } else {
                cpu.top().store(MAPPED, Ordering::Relaxed);
                let range = VirtRange { start: address(0), end: address(2) };
                let what = TlbFlush { range, stride: Level::Pmd, freed_tables: false, top_changed: true };
                tlb::flush(cpu, &space.tlb, what);
                space.gone[0].store(true, Ordering::SeqCst);
            }
            space.answer(cpu);
            assert!(cpu.latched_top().is_none_or(|top| top == MAPPED), "a filled entry is unknown");
        },
        |_, _| (),
    );
}

/// R31, I38: CPU 0 runs in the address space, loads it, or comes back from laziness while an entry is filled.
#[test]
fn a_top_entry_that_is_filled_is_known_to_whoever_comes() {
    top_filled_against(Space::loaded, |_, cpu| cpu.pause());
    top_filled_against(|_| Space::new(), Space::load);
    top_filled_against(Space::loaded, |space, cpu| {
        tlb::enter_lazy(cpu);
        space.load(cpu);
    });
}

/// R28, I37: two CPUs flush each other at the same moment.
#[test]
fn mutual_shootdown() {
    race(
        false,
        Space::loaded,
        |space, cpu| space.unmap(cpu, 0, false),
        |space, cpu| {
            space.load(cpu);
            space.unmap(cpu, 1, false);
        },
    );
}

/// R27, I24: a CPU waits for a page-table lock whose holder flushes it. It waits with interrupts on, halts included.
#[test]
fn a_waiter_for_a_lock_answers() {
    race(
        false,
        Space::loaded,
        |space, cpu| drop(space.lock.lock(cpu, LockClass::Pte)),
        |space, cpu| {
            let guard = space.lock.lock(cpu, LockClass::Pte);
            space.unmap(cpu, 0, false);
            drop(guard);
        },
    );
}
