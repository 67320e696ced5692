//! User code on a simulated CPU: loads and stores of 64-bit words through TLB, walker and fault handler.

use super::Sim;
use super::memory::SLOTS;
use super::slot::SimSlot;
use super::violation::SimViolation;
use super::walk::{self, WalkError};
use crate::address::{Pfn, VirtAddr};
use crate::config::PAGE_SIZE;
use crate::machine::FrameUse;
use crate::pgtable::PagingMode;
use std::sync::atomic::{AtomicU64, Ordering};

/// A fault handler that claims success this often in a row for one access is wrong.
const FAULT_LIMIT: usize = 10_000;

/// User code on the CPU this thread runs as. `handler` is what the kernel does on a page fault: it is told the address and
/// whether it was a store, and says whether to try again.
pub struct User<Mode: PagingMode, Handler> {
    machine: Sim<Mode>,
    handler: Handler,
}

impl<Mode: PagingMode> Sim<Mode> {
    /// User code whose page faults go to `handler`.
    pub fn user<E, Handler>(self, handler: Handler) -> User<Mode, Handler>
    where
        Handler: FnMut(VirtAddr, bool) -> Result<(), E>,
    {
        User { machine: self, handler }
    }
}

impl<Mode: PagingMode, Handler, E> User<Mode, Handler>
where
    Handler: FnMut(VirtAddr, bool) -> Result<(), E>,
{
    /// Loads the word at `address`.
    ///
    /// # Errors
    ///
    /// Those of the fault handler, here and below.
    pub fn read(&mut self, address: VirtAddr) -> Result<u64, E> {
        self.access(address, false, |word| word.load(Ordering::Acquire))
    }

    /// Stores to the word at `address`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn write(&mut self, address: VirtAddr, value: u64) -> Result<(), E> {
        self.access(address, true, |word| word.store(value, Ordering::Release))
    }

    /// Adds to the word at `address` in one step and returns what was there.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn fetch_add(&mut self, address: VirtAddr, value: u64) -> Result<u64, E> {
        self.access(address, true, |word| word.fetch_add(value, Ordering::AcqRel))
    }

    /// Does `operation` on the word at `address`, once a translation that allows it is found.
    fn access<R>(&mut self, address: VirtAddr, write: bool, operation: impl Fn(&AtomicU64) -> R) -> Result<R, E> {
        assert_eq!(address.0 % 8, 0, "a word lies at a multiple of its size");
        let state = self.machine.state;
        let cpu = self.machine.me();
        let mut done_again = false;
        for _ in 0..FAULT_LIMIT {
            self.machine.passes();
            cpu.touched(address);
            let pause = || state.pause_walk(cpu);
            let whim = cpu.whim(&state.config, &pause);
            let mut mmu = cpu.mmu();
            let outcome = walk::translate(&state.memory, &mut mmu, address, write, &whim);
            let is_stale = mmu.is_stale(&state.memory, address);
            if outcome.is_err() {
                mmu.drop_faulting(&state.memory, address);
            }
            drop(mmu);
            match outcome {
                // D is set, and the store has not happened: an interrupt came first, or another page of it faulted.
                Ok(_) if write && !done_again && cpu.chance(state.config.speculation) => {
                    done_again = true;
                    continue;
                }
                // No interrupt is taken between translation and access, so no flush can come between them either.
                Ok(pfn) => return Ok(operation(self.word(pfn, address, is_stale).word())),
                Err(WalkError::NotATable(pfn)) => {
                    state.report(SimViolation::WalkThroughNonTable { cpu: cpu.id(), address, pfn });
                }
                Err(WalkError::MixedSizes(cached, found)) => {
                    state.report(SimViolation::MixedSizes { cpu: cpu.id(), address, cached, found });
                }
                Err(WalkError::PageFault) => {}
            }
            (self.handler)(address, write)?;
        }
        state.report(SimViolation::EndlessFault { cpu: cpu.id(), address });
        panic!("{address:?} still faults after {FAULT_LIMIT} rounds");
    }

    fn word(&self, pfn: Pfn, address: VirtAddr, is_stale: bool) -> &'static SimSlot<Mode::Slot> {
        let state = self.machine.state;
        if is_stale || state.memory.frame_use(pfn) != Some(FrameUse::Data) {
            let cpu = self.machine.me().id();
            state.report(SimViolation::StaleTranslation { cpu, address, pfn });
        }
        &state.memory.slots_of(pfn)[address.0 as usize % PAGE_SIZE / (PAGE_SIZE / SLOTS)]
    }
}
