//! An address space on the model's machine, and books that must balance when the threads have ended.
#![allow(dead_code, reason = "no model uses all of it")]

use super::{Cpu, FIRST_FRAME, Model};
use mm::address::Pfn;
use mm::address_space::{Mm, MmRef};
use mm::frame::FrameAllocator;
use mm::machine::Machine;
use mm::memory::Memory;
use mm::page::{MemMap, Page};
use mm::sync::ticket::TicketLock;
use std::cell::UnsafeCell;

/// Memory with one address space in it.
pub struct World {
    memory: *mut Memory<Cpu>,
    pages: *mut [Page<TicketLock>],
    /// Taken out when the threads have ended.
    mm: UnsafeCell<Option<MmRef<Cpu>>>,
    free_at_start: u64,
}

// SAFETY: the pointers are used for shared access alone until the last thread has ended.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

/// Explores every execution of `work` on two CPUs, which it gets the number of, in one address space that `prepare` has
/// made in memory of as many frames; `judge` looks at the end, and all memory must come back.
pub fn explore(
    frames: usize,
    prepare: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
    work: impl Fn(&Mm<Cpu>, usize) + Copy + Send + Sync + 'static,
    judge: impl Fn(&Mm<Cpu>) + Copy + Send + Sync + 'static,
) {
    Model { frames, ..Model::new(2, 0) }.run_on(
        move |cpu| World::new(cpu, frames, prepare),
        move |world, cpu| cpu.awake(|| work(world.mm(), cpu.cpu().index())),
        move |world, cpu| world.balance(cpu, judge),
    );
}

impl World {
    /// Memory of as many frames, and an address space as `prepare` leaves it.
    pub fn new(cpu: Cpu, frames: usize, prepare: impl FnOnce(&Mm<Cpu>)) -> Self {
        let pages = Box::into_raw((0..frames).map(|_| Page::new()).collect::<Box<[_]>>());
        // SAFETY: freed by `drop` when nobody uses it any more.
        let allocator = FrameAllocator::new(MemMap::new(FIRST_FRAME, unsafe { &*pages }));
        allocator.add_free_range(cpu, FIRST_FRAME, Pfn(FIRST_FRAME.0 + frames as u64)).unwrap();
        let memory = Box::into_raw(Box::new(Memory::new(cpu, allocator).unwrap()));
        let mut world = Self { memory, pages, mm: UnsafeCell::new(None), free_at_start: 0 };
        world.free_at_start = world.memory().frames().free_frames(cpu);
        cpu.awake(|| {
            let mm = Mm::create(world.memory()).unwrap();
            prepare(&mm);
            // SAFETY: nobody else has the world yet.
            unsafe { *world.mm.get() = Some(mm) };
        });
        world
    }

    fn memory(&self) -> &'static Memory<Cpu> {
        // SAFETY: freed by `drop` when nobody uses it any more.
        unsafe { &*self.memory }
    }

    /// The address space, kept by `self`.
    pub fn mm(&self) -> &Mm<Cpu> {
        // SAFETY: only `balance` takes it out, when the threads have ended.
        unsafe { &*self.mm.get() }.as_ref().unwrap()
    }

    /// Has `judge` look at the address space, ends it, and fails unless everything has come back.
    pub fn balance(&self, cpu: Cpu, judge: impl FnOnce(&Mm<Cpu>)) {
        cpu.awake(|| {
            judge(self.mm());
            // SAFETY: the threads have ended.
            drop(unsafe { &mut *self.mm.get() }.take().unwrap());
            self.memory().drain_deferred();
            self.memory().slab().shrink(cpu, self.memory().frames());
            assert_eq!(self.memory().page_tables(), 0, "a table is lost");
            assert_eq!(self.memory().frames().free_frames(cpu), self.free_at_start, "a frame is lost");
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: from `Box::into_raw` in `new`; the threads have ended.
        unsafe {
            drop(Box::from_raw(self.memory));
            drop(Box::from_raw(self.pages));
        }
    }
}
