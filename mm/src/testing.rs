//! What the host tests share: a simulated machine with `mm` on it, and books that must balance at the end.

#[cfg(not(shuttle))]
mod model;
#[cfg(not(shuttle))]
pub mod operations;

use crate::address::{Pfn, VirtAddr, VirtRange};
use crate::address_space::{LoadedMm, Mapping, Mm, MmRef};
use crate::config::PAGE_SIZE;
use crate::cpu::CpuId;
use crate::fault::{FaultError, handle_mm_fault};
use crate::frame::FrameAllocator;
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig, SimMachine, User};
use crate::memory::Memory;
use crate::pgtable::{Entry, Level, Pae, PagingMode, Protection, Slot64, SlotPae, pgd_layout};
use crate::slab::SlabKind;
use crate::vma::Access;

/// A simulated machine that runs `mm`. Dropping it checks that everything taken was given back.
pub struct World<Mode: PagingMode> {
    /// The machine.
    pub machine: SimMachine<Mode>,
    /// Its memory.
    pub memory: &'static Memory<Sim<Mode>>,
    free_at_start: u64,
}

impl<Mode: PagingMode> World<Mode> {
    /// As `config` says, with all its memory free.
    pub fn new(config: SimConfig) -> Self {
        let machine = SimMachine::new(config);
        let handle = machine.handle();
        let (memory, free_at_start) = handle.run_cpu(CpuId(0), || {
            let memmap = handle.memmap();
            let frames = FrameAllocator::new(memmap);
            frames.add_free_range(handle, memmap.first(), memmap.end()).expect("a fresh machine's memory");
            let memory: &'static _ =
                Box::leak(Box::new(Memory::new(handle, frames).expect("a frame for the zero page")));
            memory.slab().shrink(handle, memory.frames());
            (memory, memory.frames().free_frames(handle))
        });
        Self { machine, memory, free_at_start }
    }

    /// Runs `body` as CPU 0 alone.
    pub fn alone<R>(&self, body: impl FnOnce() -> R) -> R {
        self.machine.run_cpu(CpuId(0), body)
    }

    /// An empty address space.
    pub fn mm(&self) -> MmRef<Sim<Mode>> {
        Mm::create(self.memory).expect("memory for an address space")
    }

    /// Tables that `mm` consists of, the top one included where that is a frame of its own (I8).
    pub fn tables_of(&self, mm: &Mm<Sim<Mode>>) -> u64 {
        mm.linked_table_bytes() / PAGE_SIZE as u64 + u64::from(pgd_layout::<Sim<Mode>>().is_none())
    }

    /// Frames that are free.
    pub fn free_frames(&self) -> u64 {
        self.memory.frames().free_frames(self.machine.handle())
    }

    /// Gives back whatever waits or is kept in reserve, so that frames can be counted.
    pub fn settle(&self) {
        self.memory.drain_deferred();
        self.memory.slab().shrink(self.machine.handle(), self.memory.frames());
    }

    /// Fails unless every frame, table and object taken since the start has been given back.
    pub fn assert_books_balance(&self) {
        self.alone(|| {
            self.settle();
            assert_eq!(self.free_frames(), self.free_at_start, "frames leaked");
            assert_eq!(self.memory.page_tables(), 0, "page tables leaked (I5)");
            for kind in SlabKind::ALL {
                assert_eq!(self.memory.slab().objects(self.machine.handle(), kind), 0, "{kind:?} objects leaked");
            }
            for (cpu, local) in self.machine.handle().cpus().iter() {
                assert_eq!(local.held.count(), 0, "{cpu:?} ends with a lock held");
            }
        });
    }
}

impl<Mode: PagingMode> Drop for World<Mode> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_books_balance();
        }
    }
}

/// User code of `mm` on the CPU this thread runs as.
pub struct Process<Mode: PagingMode> {
    loaded: LoadedMm<Sim<Mode>>,
    machine: Sim<Mode>,
}

impl<Mode: PagingMode> Process<Mode> {
    /// Loads `mm` on the current CPU.
    pub fn enter(world: &World<Mode>, mm: &MmRef<Sim<Mode>>) -> Self {
        let machine = world.machine.handle();
        let mut loaded = LoadedMm::none(machine);
        loaded.switch_to(Some(mm.clone()));
        Self { loaded, machine }
    }

    /// A kernel thread runs on the CPU: it keeps what is loaded, unused.
    pub fn enter_lazy(&mut self) {
        self.loaded.enter_lazy();
    }

    /// User code of `mm` runs on the CPU from now on.
    pub fn switch_to(&mut self, mm: &MmRef<Sim<Mode>>) {
        self.loaded.switch_to(Some(mm.clone()));
    }

    fn user(&self) -> User<Mode, impl FnMut(VirtAddr, bool) -> Result<(), FaultError>> {
        let mm = self.loaded.get().expect("entered").clone();
        self.machine.user(move |address, write| {
            let access = if write { Access::Write } else { Access::Read };
            handle_mm_fault(&mm, address, access).map(|_| ())
        })
    }

    /// Loads a word.
    pub fn read(&self, address: VirtAddr) -> Result<u64, FaultError> {
        self.user().read(address)
    }

    /// Stores a word.
    pub fn write(&self, address: VirtAddr, value: u64) -> Result<(), FaultError> {
        self.user().write(address, value)
    }

    /// Adds to a word, and returns what was there.
    pub fn fetch_add(&self, address: VirtAddr, value: u64) -> Result<u64, FaultError> {
        self.user().fetch_add(address, value)
    }
}

/// The address of page `number` of the user half.
pub const fn page(number: u64) -> VirtAddr {
    VirtAddr(number * PAGE_SIZE as u64)
}

/// The pages from `first` up to `end`.
pub fn pages(first: u64, end: u64) -> VirtRange {
    VirtRange::new(page(first).0, page(end).0).expect("a range of pages")
}

/// Maps anonymous memory that may be written.
pub fn map_anonymous<Mode: PagingMode>(mm: &Mm<Sim<Mode>>, range: VirtRange) {
    mm.mmap(range, Protection::READ_WRITE, Mapping::Anonymous).expect("a free range");
}

/// The frame that `address` shows, if any.
pub fn frame_at<Mode: PagingMode>(world: &World<Mode>, mm: &Mm<Sim<Mode>>, address: VirtAddr) -> Option<Pfn> {
    world.machine.handle().peek(mm.pgd(), address).map(|entry| entry.pfn())
}

/// Maps anonymous memory that may be written and be huge.
pub fn map_huge<Mode: PagingMode>(mm: &Mm<Sim<Mode>>, range: VirtRange) {
    mm.mmap(range, Protection::READ_WRITE, Mapping::AnonymousHuge).expect("a free range");
}

/// Has `race` run with each of `seeds`, which take turns in the paging mode.
#[cfg(test)]
macro_rules! in_each_mode {
    ($race:ident, $seeds:expr) => {
        for seed in $seeds {
            match seed % 3 {
                0 => $race::<$crate::pgtable::FourLevel>(seed),
                1 => $race::<$crate::pgtable::Pae>(seed),
                _ => $race::<$crate::pgtable::FiveLevel>(seed),
            }
        }
    };
}

/// The same in the small modes that have huge pages.
#[cfg(test)]
macro_rules! in_each_small_mode {
    ($race:ident, $seeds:expr) => {
        for seed in $seeds {
            match seed % 3 {
                0 => $race::<$crate::testing::SmallPae>(seed),
                _ => $race::<$crate::testing::Small>(seed),
            }
        }
    };
}

#[cfg(test)]
pub(crate) use {in_each_mode, in_each_small_mode};

/// Three levels of four entries: the smallest mode with huge pages of two sizes, of 4 and of 16 small ones.
pub struct Small;

impl PagingMode for Small {
    type Slot = Slot64;
    const NAME: &'static str = "small";
    const TOP: Level = Level::Pud;
    const USER_END: VirtAddr = VirtAddr(1 << 18);

    fn entries(_level: Level) -> usize {
        4
    }

    fn shift(level: Level) -> u32 {
        match level {
            Level::Pte => 12,
            Level::Pmd => 14,
            _ => 16,
        }
    }

    fn below(level: Level) -> Option<Level> {
        match level {
            Level::Pte => None,
            Level::Pmd => Some(Level::Pte),
            _ => Some(Level::Pmd),
        }
    }
}

/// [`Small`] as PAE would be: entries of two words, and a top table that CPUs latch, whose entries map no page.
pub struct SmallPae;

impl PagingMode for SmallPae {
    type Slot = SlotPae;
    const NAME: &'static str = "small PAE";
    const TOP: Level = Level::Pgd;
    const USER_END: VirtAddr = VirtAddr(3 << 16);
    const PREALLOCATED: usize = Pae::PREALLOCATED;
    const LATCHED_TOP: bool = true;

    fn entries(_level: Level) -> usize {
        4
    }

    fn shift(level: Level) -> u32 {
        Small::shift(level)
    }

    fn below(level: Level) -> Option<Level> {
        Pae::below(level)
    }

    fn to_hardware(level: Level, entry: Entry) -> Entry {
        Pae::to_hardware(level, entry)
    }

    fn from_hardware(level: Level, entry: Entry) -> Entry {
        Pae::from_hardware(level, entry)
    }
}
