//! The machine that the models run on: a thread is a CPU, a halt is a `park`, a kick an `unpark`.
//!
//! A CPU has a TLB that forgets nothing by itself. Interrupts to flush arrive at once, and are taken where the CPU turns
//! interrupts on, pauses or halts: [`Cpu::take_interrupts`].
//!
//! Which CPU a thread is, it knows itself. The machine is created anew in every execution, since loom's atomics must be, and
//! freed at its end by [`Model::run`].

#![allow(dead_code, reason = "each file of models uses its own part of the machine")]

pub mod world;

use loom::model::Builder;
use loom::sync::atomic::{AtomicU64, AtomicUsize};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, Thread};
use mm::address::{Pfn, VirtAddr};
use mm::cpu::{CpuId, CpuSet, Cpus};
use mm::machine::{FrameUse, LocalFlush, Machine, PgdLoad, SlotOf, WaitingRule};
use mm::pgtable::{Entry, EntrySlot, Level, Slot64, Tiny};
use mm::sync::rcu;
use mm::sync::ticket::TicketLock;
use mm::tlb::Asid;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a model varies about its machine.
#[derive(Clone, Copy)]
pub struct Model {
    pub cpus: usize,
    /// [`WaitingRule::rounds`]; one poll in each.
    pub rounds: u32,
    /// Whether kicks arrive. Without them a waiter must sleep for ever in some execution.
    pub kicks: bool,
    /// ASIDs of a CPU's TLB.
    pub asids: usize,
    /// Whether a CPU copies the one entry of the top table, [`Cpu::top`], when it loads the table, and goes by the copy.
    pub latches: bool,
    /// Frames of memory. Each is a table of the tiny mode and, apart from that, a page of bytes.
    pub frames: usize,
}

struct Hardware {
    model: Model,
    cpus: Box<Cpus>,
    threads: RefCell<Vec<Option<Thread>>>,
    /// A kick not taken yet, per CPU. Not loom's: executions run one thread at a time, and a kick is sticky.
    pending: Vec<AtomicBool>,
    /// Whether the CPU is parked in a halt. A kick may come when it has gone on, and loom takes no `unpark` of a thread that
    /// waits for something else.
    halted: Vec<AtomicBool>,
    sleepers: (Mutex<()>, Condvar),
    memory: Vec<Frame>,
    tlbs: Vec<CpuTlb>,
    top: AtomicU64,
}

/// What a CPU has cached, and whether it is to flush. Not loom's: only its own thread uses the former, and an interrupt is
/// there as soon as it is sent.
struct CpuTlb {
    /// Out of idle: read sections may be open.
    is_awake: AtomicBool,
    irqs: AtomicBool,
    flush_pending: AtomicBool,
    asid: Cell<Option<Asid>>,
    /// Counts loads. Loom's, so that it tries a load before and after another CPU's [`Cpu::has_cached`].
    loads: AtomicUsize,
    /// Of which ASID, at which address, what was found there.
    cached: RefCell<Vec<(Asid, VirtAddr, u64)>>,
    /// The copy of the top table's entry.
    latched: Cell<u64>,
}

impl CpuTlb {
    fn new() -> Self {
        Self {
            is_awake: AtomicBool::new(false),
            irqs: AtomicBool::new(true),
            flush_pending: AtomicBool::new(false),
            asid: Cell::new(None),
            loads: AtomicUsize::new(0),
            cached: RefCell::new(Vec::new()),
            latched: Cell::new(0),
        }
    }
}

/// A frame. What it is used for is not loom's: it is a check, not part of the model.
struct Frame {
    slots: [Slot64; 4],
    bytes: Box<Page>,
    is_table: AtomicBool,
    is_free: AtomicBool,
}

#[repr(align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

/// The first frame: not 0, so that a frame number that was never set is caught.
pub const FIRST_FRAME: Pfn = Pfn(0x100);

loom::thread_local! {
    static CURRENT: Cell<u32> = Cell::new(0);
}

/// The machine, as the CPU sees it that the thread is.
#[derive(Clone, Copy)]
pub struct Cpu {
    hardware: &'static Hardware,
}

// SAFETY: loom runs the threads of an execution one at a time, and `threads` is never borrowed across a switch.
unsafe impl Sync for Hardware {}

impl Model {
    /// A machine that really wakes its CPUs.
    pub fn new(cpus: usize, rounds: u32) -> Self {
        Self { cpus, rounds, kicks: true, asids: 1, latches: false, frames: 0 }
    }

    /// Explores the executions of `work` on all CPUs at once, over what `shared` makes; `check` looks at the end.
    pub fn run<S: Send + Sync + 'static>(
        self,
        shared: impl Fn() -> S + Send + Sync + 'static,
        work: impl Fn(&S, Cpu) + Copy + Send + Sync + 'static,
        check: impl Fn(&S, Cpu) + Send + Sync + 'static,
    ) {
        self.run_on(move |_| shared(), work, check);
    }

    /// Explores all executions with so few preemptions, or with as many as `LOOM_MAX_PREEMPTIONS` says.
    fn explorer(&self) -> Builder {
        let mut explorer = Builder::new();
        // Whole operations pass so many points that one more takes minutes.
        let bound = if self.frames == 0 { 3 } else { 2 };
        explorer.preemption_bound = explorer.preemption_bound.or(Some(bound));
        // An end for models that would not end.
        explorer.max_branches = 5000;
        explorer
    }

    /// As [`Self::run`], where `shared` is made by CPU 0.
    pub fn run_on<S: Send + Sync + 'static>(
        self,
        shared: impl Fn(Cpu) -> S + Send + Sync + 'static,
        work: impl Fn(&S, Cpu) + Copy + Send + Sync + 'static,
        check: impl Fn(&S, Cpu) + Send + Sync + 'static,
    ) {
        self.explorer().check(move || {
            let hardware_box = Box::into_raw(Box::new(Hardware::new(self)));
            // SAFETY: both boxes are freed below, after all threads that use them have ended.
            let hardware: &'static Hardware = unsafe { &*hardware_box };
            let cpu = Cpu { hardware };
            let shared_box = Box::into_raw(Box::new(shared(cpu)));
            // SAFETY: as above.
            let shared: &'static S = unsafe { &*shared_box };
            let others: Vec<_> = (1..self.cpus)
                .map(|number| thread::spawn(move || cpu.start(number as u32, || work(shared, cpu))))
                .collect();
            cpu.start(0, || work(shared, cpu));
            others.into_iter().for_each(|other| other.join().unwrap());
            check(shared, cpu);
            // SAFETY: from `Box::into_raw` above; the threads have been joined and no reference is used any more.
            unsafe {
                drop(Box::from_raw(shared_box));
                drop(Box::from_raw(hardware_box));
            }
        });
    }
}

impl Hardware {
    fn new(model: Model) -> Self {
        Self {
            model,
            cpus: cpus(),
            threads: RefCell::new(vec![None; model.cpus]),
            pending: (0..model.cpus).map(|_| AtomicBool::new(false)).collect(),
            halted: (0..model.cpus).map(|_| AtomicBool::new(false)).collect(),
            sleepers: (Mutex::new(()), Condvar::new()),
            memory: (0..model.frames).map(|_| Frame::new()).collect(),
            tlbs: (0..model.cpus).map(|_| CpuTlb::new()).collect(),
            top: AtomicU64::new(0),
        }
    }

    fn frame(&self, pfn: Pfn) -> &Frame {
        &self.memory[(pfn.0 - FIRST_FRAME.0) as usize]
    }
}

/// In a frame of its own and then on the heap: a model's stack has little more room than for one copy of them.
#[inline(never)]
fn cpus() -> Box<Cpus> {
    Box::new(Cpus::new())
}

impl Frame {
    fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot64::new(Entry::NONE)),
            bytes: Box::new(Page(UnsafeCell::new([0; 4096]))),
            is_table: AtomicBool::new(false),
            is_free: AtomicBool::new(false),
        }
    }
}

impl Cpu {
    /// Runs `work` as CPU `number`.
    fn start(self, number: u32, work: impl FnOnce()) {
        CURRENT.with(|current| current.set(number));
        self.hardware.threads.borrow_mut()[number as usize] = Some(thread::current());
        work();
    }

    /// Runs `work` out of idle: what may open read sections.
    #[allow(dead_code, reason = "models of locks open none")]
    pub fn awake(self, work: impl FnOnce()) {
        rcu::exit_idle(self);
        self.tlb().is_awake.store(true, Ordering::Relaxed);
        work();
        self.tlb().is_awake.store(false, Ordering::Relaxed);
        rcu::enter_idle(self);
    }

    fn tlb(self) -> &'static CpuTlb {
        &self.hardware.tlbs[self.cpu().index()]
    }

    /// Takes a flush interrupt, if one is there and interrupts are on.
    pub fn take_interrupts(self) {
        let tlb = self.tlb();
        while tlb.irqs.load(Ordering::Relaxed) && tlb.flush_pending.swap(false, Ordering::Acquire) {
            tlb.irqs.store(false, Ordering::Relaxed);
            mm::tlb::service(self);
            tlb.irqs.store(true, Ordering::Relaxed);
        }
    }

    /// What an access to `address` finds: what is cached of the loaded address space, or else what `walk` says, which is
    /// cached unless it is 0. `None` with nothing loaded.
    pub fn translate(self, address: VirtAddr, walk: impl FnOnce() -> u64) -> Option<u64> {
        let asid = self.tlb().asid.get()?;
        let mut cached = self.tlb().cached.borrow_mut();
        if let Some((.., found)) = cached.iter().find(|(of, at, _)| *of == asid && *at == address) {
            self.assert_in_use(*found);
            return Some(*found);
        }
        drop(cached);
        let found = walk();
        if found != 0 {
            self.assert_in_use(found);
            cached = self.tlb().cached.borrow_mut();
            cached.push((asid, address, found));
        }
        Some(found)
    }

    /// Whether `cpu` has a translation of `address` cached that it may use as it is.
    pub fn has_cached(self, cpu: CpuId, address: VirtAddr) -> bool {
        let tlb = &self.hardware.tlbs[cpu.index()];
        tlb.loads.load(Ordering::SeqCst);
        tlb.cached.borrow().iter().any(|(asid, at, _)| Some(*asid) == tlb.asid.get() && *at == address)
    }

    /// I30: what an access finds is no free frame. What is found is an entry where the model has frames.
    fn assert_in_use(self, found: u64) {
        if !self.hardware.memory.is_empty() {
            let pfn = Entry(found).pfn();
            let is_free = self.hardware.frame(pfn).is_free.load(Ordering::Relaxed);
            assert!(!is_free, "{pfn:?} is accessed and free");
        }
    }

    /// I30: no TLB leads to a frame that is freed.
    fn assert_in_no_tlb(self, pfn: Pfn) {
        for (number, tlb) in self.hardware.tlbs.iter().enumerate() {
            let cached = tlb.cached.borrow();
            let found =
                cached.iter().find(|(asid, _, found)| Some(*asid) == tlb.asid.get() && Entry(*found).pfn() == pfn);
            assert!(found.is_none(), "{pfn:?} is freed and CPU {number} has it cached");
        }
    }

    /// The entry of the top table.
    pub fn top(self) -> &'static AtomicU64 {
        &self.hardware.top
    }

    /// What this CPU believes of that entry; `None` with nothing loaded.
    pub fn latched_top(self) -> Option<u64> {
        self.tlb().asid.get().map(|_| self.tlb().latched.get())
    }

    fn latch(self) {
        if self.hardware.model.latches {
            // Relaxed: the hardware's copy orders nothing.
            self.tlb().latched.set(self.hardware.top.load(Ordering::Relaxed));
        }
    }

    fn end_halt(self, cpu: CpuId) {
        let threads = self.hardware.threads.borrow();
        if let (true, Some(thread)) = (self.hardware.halted[cpu.index()].load(Ordering::Relaxed), &threads[cpu.index()])
        {
            thread.unpark();
        }
    }

    fn take_kick(self) -> bool {
        self.hardware.pending[self.cpu().index()].swap(false, Ordering::Relaxed)
    }
}

// SAFETY: a CPU is one thread, and a thread one CPU; frames are disjoint and live as long as the machine.
unsafe impl Machine for Cpu {
    type Mode = Tiny;
    type Lock = TicketLock;

    fn cpus(&self) -> &Cpus {
        &self.hardware.cpus
    }

    fn cpu(self) -> CpuId {
        CpuId(CURRENT.with(Cell::get))
    }

    fn online(self) -> CpuSet {
        CpuSet::first(self.hardware.model.cpus)
    }

    fn irqs_enabled(self) -> bool {
        self.tlb().irqs.load(Ordering::Relaxed)
    }

    fn irq_save(self) -> bool {
        self.tlb().irqs.swap(false, Ordering::Relaxed)
    }

    fn irq_restore(self, enabled: bool) {
        self.tlb().irqs.store(enabled, Ordering::Relaxed);
        self.take_interrupts();
    }

    /// The one spinning wait, for a grace period, has to let the others run. Polling a lock needs no switch of its own.
    fn pause(self) {
        thread::yield_now();
        self.take_interrupts();
    }

    fn halt_until_kicked(self) {
        let halted = &self.hardware.halted[self.cpu().index()];
        while !self.take_kick() && !self.tlb().flush_pending.load(Ordering::Relaxed) {
            halted.store(true, Ordering::Relaxed);
            thread::park();
            halted.store(false, Ordering::Relaxed);
        }
        self.tlb().irqs.store(true, Ordering::Relaxed);
        self.take_interrupts();
        rcu::on_interrupt(self);
    }

    fn kick(self, cpu: CpuId) {
        if self.hardware.model.kicks {
            self.hardware.pending[cpu.index()].store(true, Ordering::Relaxed);
            self.end_halt(cpu);
        }
    }

    fn waiting_rule(self) -> WaitingRule {
        WaitingRule { rounds: self.hardware.model.rounds, polls: 1, polls_per_pause: 2 }
    }

    fn now(self) -> u64 {
        0
    }

    fn block_while(self, _key: usize, still: &mut dyn FnMut() -> bool) {
        let (lock, woken) = &self.hardware.sleepers;
        let guard = lock.lock().unwrap();
        if still() {
            // Nobody waits for read sections of a CPU that sleeps.
            let is_awake = self.tlb().is_awake.load(Ordering::Relaxed);
            if is_awake {
                rcu::enter_idle(self);
            }
            drop(woken.wait(guard).unwrap());
            if is_awake {
                rcu::exit_idle(self);
            }
        }
    }

    fn wake(self, _key: usize) {
        let _guard = self.hardware.sleepers.0.lock().unwrap();
        self.hardware.sleepers.1.notify_all();
    }

    fn stuck(self, what: &'static str) -> ! {
        panic!("stuck waiting for {what}")
    }

    fn report_bad_entry(self, level: Level, entry: Entry) {
        panic!("{entry:?} in a table of level {level:?}")
    }

    fn map_table(&self, pfn: Pfn, _level: Level) -> &[SlotOf<Self>] {
        let frame = self.hardware.frame(pfn);
        assert!(frame.is_table.load(Ordering::Relaxed), "{pfn:?} is walked and no table");
        &frame.slots
    }

    fn unmap_table(&self, _table: &[SlotOf<Self>]) {}

    fn zero_frame(self, pfn: Pfn) {
        self.hardware.frame(pfn).slots.iter().for_each(|slot| slot.store(Entry::NONE));
    }

    fn copy_frame(self, _from: Pfn, _to: Pfn) {}

    fn frame_bytes(&self, pfn: Pfn) -> NonNull<u8> {
        NonNull::new(self.hardware.frame(pfn).bytes.0.get().cast()).unwrap()
    }

    fn note_frame(self, pfn: Pfn, frame_use: FrameUse) {
        if frame_use == FrameUse::Free {
            self.assert_in_no_tlb(pfn);
        }
        self.hardware.frame(pfn).is_free.store(frame_use == FrameUse::Free, Ordering::Relaxed);
        self.hardware.frame(pfn).is_table.store(frame_use == FrameUse::Table, Ordering::Relaxed);
    }

    fn fill_kernel_entries(&self, _top: &[SlotOf<Self>]) {}

    fn asids(self) -> usize {
        self.hardware.model.asids
    }

    fn load_pgd(self, load: PgdLoad) {
        let tlb = self.tlb();
        tlb.loads.fetch_add(1, Ordering::SeqCst);
        match load {
            PgdLoad::Kernel => tlb.asid.set(None),
            PgdLoad::User { asid, keep, .. } => {
                tlb.asid.set(Some(asid));
                self.latch();
                if !keep {
                    self.flush_local(LocalFlush::AddressSpace);
                }
            }
        }
    }

    fn flush_local(self, flush: LocalFlush) {
        let tlb = self.tlb();
        let Some(current) = tlb.asid.get() else { return };
        if matches!(flush, LocalFlush::AddressSpace) {
            self.latch();
        }
        tlb.cached.borrow_mut().retain(|(asid, address, _)| {
            let hit = match flush {
                LocalFlush::Range { range, .. } => range.contains(*address),
                LocalFlush::AddressSpace => true,
            };
            *asid != current || !hit
        });
    }

    fn send_flush_ipi(self, cpu: CpuId) {
        // Release: whoever takes an interrupt sees what was stored before it was sent; pairs with `take_interrupts`.
        self.hardware.tlbs[cpu.index()].flush_pending.store(true, Ordering::Release);
        self.end_halt(cpu);
    }
}
