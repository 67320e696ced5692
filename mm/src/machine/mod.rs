//! The one trait between `mm` and the hardware it runs on.
//!
//! The same source runs on the 64-bit kernel, on the simulated machine of the host tests and under `loom`; each
//! implements [`Machine`]. The handle is `Copy` and zero-sized in the kernel. Rule: `mm` reaches CPUs, tables and TLBs
//! only through this trait, and no implementation calls back into `mm` while it holds a lock of its own.

use crate::address::{Pfn, PhysAddr, VirtRange};
use crate::cpu::{CpuId, CpuLocal, CpuSet, Cpus};
use crate::pgtable::{Entry, HugeSize, Level, PagingMode};
use crate::sync::RawLock;
use crate::sync::held::HeldLocks;
use crate::tlb::Asid;

#[cfg(all(any(test, feature = "sim"), not(loom)))]
pub mod sim;

/// How long to wait in which way for a page-table lock (design decision 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitingRule {
    /// Rounds of spin-then-halt a waiter stands outside the queue before it takes a ticket; 0 where every CPU really
    /// runs, which makes the plain ticket lock.
    pub rounds: u32,
    /// Polls of the lock word in one round, and between two halts once a ticket is held.
    pub polls: u32,
    /// Polls between two `pause`s; under an emulator `pause` is dear.
    pub polls_per_pause: u32,
}

/// What a CPU drops from its own TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalFlush {
    /// The translations of a range of the loaded address space, with one instruction every `stride` bytes from a multiple
    /// of it on, each of which drops the whole leaf it meets; and every paging-structure entry of the address space.
    Range {
        /// Which addresses.
        range: VirtRange,
        /// Bytes that the smallest leaf in the range maps.
        stride: u64,
    },
    /// Everything of the loaded address space, what is latched of its top table included: the table is loaded again.
    AddressSpace,
}

/// Which top table a CPU loads, and what becomes of what its TLB holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PgdLoad {
    /// The kernel's own. What is cached of an address space cannot be used until that is loaded again.
    Kernel,
    /// An address space's.
    User {
        /// Its top table.
        pgd: PhysAddr,
        /// The tag of its translations, below [`Machine::asids`].
        asid: Asid,
        /// Keep what is cached under the tag; else drop it. Never with one ASID.
        keep: bool,
    },
}

/// What a frame is from now on. The kernel ignores it; the simulated machine checks every later use against it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameUse {
    /// On a free list. Nobody may name it any more.
    Free,
    /// Holds a page table.
    Table,
    /// Holds anything else.
    Data,
}

/// The slot type of a machine's paging mode.
pub type SlotOf<M> = <<M as Machine>::Mode as PagingMode>::Slot;

/// The hardware, as `mm` sees it.
///
/// # Safety
///
/// `cpu` must name the CPU that runs the caller and no two contexts may run as the same CPU at once; `frame_bytes` and
/// `map_table` must return memory of exactly that frame, valid for as long as the machine exists, disjoint for different
/// frames. `mm`'s per-CPU data and its typed view of frames rely on both.
#[allow(unsafe_code)]
pub unsafe trait Machine: Copy + Send + Sync + 'static {
    /// The format of page tables.
    type Mode: PagingMode;
    /// The algorithm of every page-table lock.
    type Lock: RawLock;

    // CPUs

    /// The per-CPU blocks of this machine.
    fn cpus(&self) -> &Cpus;
    /// The CPU this runs on. Stable between two voluntary points: kernel mode is not preemptible.
    fn cpu(self) -> CpuId;
    /// The CPUs that take part; the set only grows.
    fn online(self) -> CpuSet;
    /// Whether this CPU takes interrupts.
    fn irqs_enabled(self) -> bool;
    /// Turns interrupts off and says whether they were on.
    fn irq_save(self) -> bool;
    /// Turns interrupts on if `enabled`.
    fn irq_restore(self, enabled: bool);
    /// A hint that this CPU polls.
    fn pause(self);
    /// With interrupts off: enables them and halts in one step until the next interrupt, and returns with interrupts
    /// on. An interrupt that arrived since they were turned off is not lost.
    fn halt_until_kicked(self);
    /// Interrupts `cpu`, so that its `halt_until_kicked` returns, or that its next one does. The interrupt also runs
    /// [`rcu::on_interrupt`](crate::sync::rcu::on_interrupt).
    fn kick(self, cpu: CpuId);
    /// How this machine's CPUs wait.
    fn waiting_rule(self) -> WaitingRule;
    /// Nanoseconds since some fixed moment, the same on all CPUs; for statistics and time limits only.
    fn now(self) -> u64;
    /// Sleeps as long as `still` says so and until `wake(key)`. `still` is evaluated with whatever excludes `wake`, so no
    /// wake-up between the two is lost. Other threads of this CPU run meanwhile. Not under a lock or a read section.
    fn block_while(self, key: usize, still: &mut dyn FnMut() -> bool);
    /// Wakes every sleeper on `key`.
    fn wake(self, key: usize);
    /// Shows `look` which `mmap_lock`s the running thread holds. Where other threads run while one sleeps, each has a record of
    /// its own.
    fn with_mmap_locks(self, look: &mut dyn FnMut(&HeldLocks)) {
        look(&self.local().mmap_locks);
    }
    /// Whether another thread of this CPU should run soon. Cheap: long loops ask under a lock, and then let go of it.
    fn need_resched(self) -> bool {
        false
    }
    /// Lets other threads of this CPU run if they should. Not under a lock or in a read section.
    fn cond_resched(self) {}
    /// Reports a wait that has gone on for so long that it can only be a bug, and does not return.
    fn stuck(self, what: &'static str) -> !;

    /// Reports that a table of `level` held `entry`, which is neither none, nor a table, nor a page, and has been cleared.
    /// Any lock of `mm` may be held. [`Counter::BadEntries`](crate::stats::Counter::BadEntries) counts it in any case.
    fn report_bad_entry(self, _level: Level, _entry: Entry) {}

    // Memory

    /// Whether `pfn` is high memory: a frame that [`frame_bytes`](Self::frame_bytes) cannot reach. There is one boundary: each
    /// frame above a high one is high.
    fn is_high(self, _pfn: Pfn) -> bool {
        false
    }
    /// Whether this machine's walkers find a table in `pfn`. There is one boundary, in high memory: each frame above one that
    /// they do not find is another.
    fn walks(self, _pfn: Pfn) -> bool {
        true
    }
    /// Maps the table in frame `pfn` for access: `Mode::entries(level)` slots. A mapping of a high frame is one of few that the
    /// CPU has: it is ended on the same CPU, last in, first out, and before the CPU sleeps or changes threads.
    fn map_table(&self, pfn: Pfn, level: Level) -> &[SlotOf<Self>];
    /// Maps a top table that is smaller than a frame: `Mode::entries(Mode::TOP)` slots from `pgd` on. The machines of modes
    /// that have such tables implement it.
    fn map_small_top(&self, pgd: PhysAddr) -> &[SlotOf<Self>] {
        unreachable!("top table at {pgd:?}: this machine's are frames")
    }
    /// Ends a `map_table` or `map_small_top`. A no-op where all memory is mapped for good.
    fn unmap_table(&self, table: &[SlotOf<Self>]);
    /// Mappings of this CPU, made by [`map_table`](Self::map_table), that have not been ended; 0 where all memory is mapped for
    /// good.
    fn mapped(self) -> usize {
        0
    }
    /// Fills a frame nobody else can reach with zeroes.
    fn zero_frame(self, pfn: Pfn);
    /// Copies a frame onto one nobody else can reach.
    fn copy_frame(self, from: Pfn, to: Pfn);
    /// The bytes of a frame of low memory, for `mm`'s own small objects.
    fn frame_bytes(&self, pfn: Pfn) -> core::ptr::NonNull<u8>;
    /// Says what frame `pfn` is from now on.
    fn note_frame(self, _pfn: Pfn, _use: FrameUse) {}
    /// Says it of all frames of the block of 2^`order` that begins at `first`.
    fn note_block(self, first: Pfn, order: u32, frame_use: FrameUse) {
        (first.0..first.0 + (1 << order)).for_each(|frame| self.note_frame(Pfn(frame), frame_use));
    }
    /// Writes the kernel's entries into a new top table that nobody can reach yet.
    fn fill_kernel_entries(&self, top: &[SlotOf<Self>]);

    /// Whether this machine's walkers take a huge entry of `size`, one the paging mode has. Some CPUs refuse 1 GiB: the bit that
    /// marks such an entry is a reserved one to them.
    fn has_huge_pages(self, _size: HugeSize) -> bool {
        true
    }

    /// Whether this machine's walkers know the bit that forbids execution. To those of others it is a reserved one: it is in no
    /// entry there, and whatever may be read may be executed.
    fn has_no_execute(self) -> bool {
        true
    }

    // TLB

    /// ASIDs the TLB of a CPU tells apart, up to [`MAX_ASIDS`](crate::tlb::MAX_ASIDS); 1 where every load of a top table
    /// drops all of them.
    fn asids(self) -> usize {
        1
    }
    /// Loads a top table on this CPU.
    fn load_pgd(self, load: PgdLoad);
    /// Drops translations of the loaded address space on this CPU only.
    fn flush_local(self, flush: LocalFlush);
    /// What this CPU holds of entry `index` of the top table it has loaded, as that table had it then, without what the
    /// hardware adds; `None` where CPUs read the top table's entries from memory when they need them
    /// ([`LATCHED_TOP`](PagingMode::LATCHED_TOP)), or nobody keeps a record.
    fn latched(self, _index: usize) -> Option<Entry> {
        None
    }
    /// Interrupts `cpu` to have it run [`tlb::service`](crate::tlb::service). The sender waits for that, whatever `cpu` does: it
    /// may be idle by now, or have left the address space.
    fn send_flush_ipi(self, cpu: CpuId);

    /// This CPU's block.
    fn local(&self) -> &CpuLocal {
        self.cpus().of(self.cpu())
    }
}
