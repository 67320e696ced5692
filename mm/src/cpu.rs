//! CPU numbers, sets of CPUs, and the block of per-CPU state that `mm` keeps.
//!
//! Rule: whatever a fault counts or caches lives here, on lines only its own CPU writes. A counter shared by all CPUs in
//! the fault path would undo the split of the locks.

use crate::config::NR_CPUS;
use crate::frame::CpuFrames;
use crate::frame::Injection;
use crate::stats::CpuStats;
use crate::sync::atomic::{AtomicUsize, Ordering, array_of, const_new};
use crate::sync::held::HeldLocks;
use crate::sync::mcs::QueueNode;
use crate::sync::parking::ParkingSlot;
use crate::sync::rcu::RcuCpu;
use crate::tlb::TlbCpu;

/// Number of a CPU, below [`NR_CPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct CpuId(pub u32);

impl CpuId {
    /// As an index into a per-CPU array.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

const WORDS: usize = NR_CPUS.div_ceil(usize::BITS as usize);

/// A set of CPUs that CPUs join and leave on their own. It is as many words as it needs: each CPU's bit is changed and read in
/// one access, which is all that anybody relies on.
pub struct CpuMask([AtomicUsize; WORDS]);

impl CpuMask {
    const_new! {
        /// The empty set.
        pub fn new() -> Self {
            Self(array_of![AtomicUsize::new(0); WORDS])
        }
    }

    /// Adds `cpu`; a full barrier (spec 8.4: the joiner's later table reads must not pass it).
    pub fn insert(&self, cpu: CpuId) {
        // Pairs with the SeqCst read in `snapshot`: joiner and flusher, at least one sees the other (I32).
        self.add(cpu, Ordering::SeqCst);
    }

    /// Removes `cpu`.
    pub fn remove(&self, cpu: CpuId) {
        // SeqCst, of which release is what counts: this CPU has loaded another table before a flusher can see it gone.
        self.take_out(cpu, Ordering::SeqCst);
    }

    /// The members. Of each CPU whether it is one is said as of some instant in the call.
    pub fn snapshot(&self) -> CpuSet {
        self.load(Ordering::SeqCst)
    }

    /// Adds `cpu`, in the order that the caller names and pairs.
    pub fn add(&self, cpu: CpuId, order: Ordering) {
        let (word, bit) = Self::place(cpu);
        self.0[word].fetch_or(bit, order);
    }

    /// Removes `cpu`, in the order that the caller names and pairs.
    pub fn take_out(&self, cpu: CpuId, order: Ordering) {
        let (word, bit) = Self::place(cpu);
        self.0[word].fetch_and(!bit, order);
    }

    /// The members, as [`snapshot`](Self::snapshot) says them.
    pub fn load(&self, order: Ordering) -> CpuSet {
        self.gather(|word| word.load(order))
    }

    /// Removes all members and says which they were.
    pub fn take_all(&self, order: Ordering) -> CpuSet {
        self.gather(|word| word.swap(0, order))
    }

    /// Makes `set` the members, while nobody else changes them.
    pub fn store(&self, set: CpuSet, order: Ordering) {
        for (index, word) in self.0.iter().enumerate() {
            word.store((set.0 >> (index as u32 * usize::BITS)) as usize, order);
        }
    }

    fn gather(&self, read: impl Fn(&AtomicUsize) -> usize) -> CpuSet {
        let words = self.0.iter().enumerate();
        CpuSet(words.fold(0, |set, (index, word)| set | (read(word) as u64) << (index as u32 * usize::BITS)))
    }

    fn place(cpu: CpuId) -> (usize, usize) {
        (cpu.index() / usize::BITS as usize, 1 << (cpu.0 % usize::BITS))
    }
}

impl Default for CpuMask {
    fn default() -> Self {
        Self::new()
    }
}

/// A set of CPUs as a value.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuSet(pub u64);

impl CpuSet {
    /// Only `cpu`.
    pub const fn only(cpu: CpuId) -> Self {
        Self(1 << cpu.0)
    }

    /// The first `count` CPUs.
    pub const fn first(count: usize) -> Self {
        if count >= 64 { Self(u64::MAX) } else { Self((1 << count) - 1) }
    }

    /// Whether `cpu` is in it.
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 >> cpu.0 & 1 == 1
    }

    /// Without `cpu`.
    #[must_use]
    pub const fn without(self, cpu: CpuId) -> Self {
        Self(self.0 & !(1 << cpu.0))
    }

    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, in rising order.
    pub fn iter(self) -> impl Iterator<Item = CpuId> {
        (0..NR_CPUS as u32).map(CpuId).filter(move |cpu| self.contains(*cpu))
    }
}

/// What `mm` keeps for one CPU. Written by that CPU alone unless a field says otherwise.
#[repr(align(128))]
pub struct CpuLocal {
    /// What this CPU waits for, read by whoever might have to wake it and by the watchdog.
    pub parking: ParkingSlot,
    /// This CPU's place in the queue of a queued lock; stored to by its neighbours there.
    pub queue: QueueNode,
    /// The locks this CPU holds, for the panic report and the leak check.
    pub held: HeldLocks,
    /// Of a CPU that runs one thread: the `mmap_lock`s that thread holds.
    pub mmap_locks: HeldLocks,
    /// Read-section nesting and quiescent states.
    pub rcu: RcuCpu,
    /// The address space this CPU has loaded, and its flush requests.
    pub tlb: TlbCpu,
    /// This CPU's reserve of free frames of low memory.
    pub frames: CpuFrames,
    /// The same of high memory.
    pub high_frames: CpuFrames,
    /// The same of what is only for pages.
    pub far_frames: CpuFrames,
    /// Allocation failures to inject on this CPU.
    pub injection: Injection,
    /// Event counts.
    pub stats: CpuStats,
}

impl CpuLocal {
    const_new! {
        fn new() -> Self {
            Self {
                parking: ParkingSlot::new(),
                queue: QueueNode::new(),
                held: HeldLocks::new(),
                mmap_locks: HeldLocks::new(),
                rcu: RcuCpu::new(),
                tlb: TlbCpu::new(),
                frames: CpuFrames::new(),
                high_frames: CpuFrames::new(),
                far_frames: CpuFrames::new(),
                injection: Injection::new(),
                stats: CpuStats::new(),
            }
        }
    }
}

/// The per-CPU blocks of one machine. The machine owns them, since a lock's slow path knows nothing but the machine.
pub struct Cpus {
    locals: [CpuLocal; NR_CPUS],
}

impl Cpus {
    const_new! {
        /// Blocks for [`NR_CPUS`] CPUs, none of which has done anything yet.
        pub fn new() -> Self {
            Self { locals: array_of![CpuLocal::new(); NR_CPUS] }
        }
    }

    /// The block of `cpu`.
    pub fn of(&self, cpu: CpuId) -> &CpuLocal {
        &self.locals[cpu.index()]
    }

    /// All blocks in CPU order.
    pub fn iter(&self) -> impl Iterator<Item = (CpuId, &CpuLocal)> {
        self.locals.iter().enumerate().map(|(index, local)| (CpuId(index as u32), local))
    }
}

impl Default for Cpus {
    fn default() -> Self {
        Self::new()
    }
}
