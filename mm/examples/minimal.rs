//! `mm` embedded in a program of its own: a machine of two CPUs, which are threads, with memory in a vector and no TLB.
//!
//! Both CPUs add to the same pages of one address space. Each first touch of a page is a fault, which `mm` serves; where both
//! touch one at once, they meet at the lock of its table. What came of it is checked, and everything must be given back.
//! `docs/embedding.md` goes through the machine step by step.
//!
//!     cargo run --package mm --example minimal

use std::cell::{Cell, RefCell};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use mm::address::{Pfn, VirtAddr, VirtRange};
use mm::address_space::{LoadedMm, Mapping, Mm, MmRef};
use mm::config::PAGE_SIZE;
use mm::cpu::{CpuId, CpuSet, Cpus};
use mm::fault::{FaultError, handle_mm_fault};
use mm::frame::FrameAllocator;
use mm::machine::{LocalFlush, Machine, PgdLoad, SlotOf, WaitingRule};
use mm::memory::Memory;
use mm::page::{MemMap, Page};
use mm::pgtable::{Entry, EntrySlot, FourLevel, Level, PagingMode, Protection, Slot64};
use mm::stats::{LockCounter, StatsSnapshot};
use mm::sync::{BuildLock, LockClass, rcu};
use mm::tlb;
use mm::vma::Access;

const CPUS: usize = 2;
const FRAMES: u64 = 1024;
const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// A frame of memory: words, which are the entries of a table if it holds one.
#[repr(align(4096))]
struct Frame([Slot64; WORDS]);

/// Everything the CPUs share.
struct Board {
    cpus: Cpus,
    memory: Vec<Frame>,
    /// What a CPU has been interrupted for and has not looked at yet.
    kicked: [AtomicBool; CPUS],
    flush: [AtomicBool; CPUS],
    /// Top table a CPU has loaded; frame 0 is none.
    loaded: [AtomicU64; CPUS],
    asleep: Mutex<()>,
    woken: Condvar,
    started: Instant,
}

thread_local! {
    static NUMBER: Cell<u32> = const { Cell::new(0) };
    static INTERRUPTS: Cell<bool> = const { Cell::new(true) };
}

/// The machine, as the CPU sees it that this thread is.
#[derive(Clone, Copy)]
struct Cpu(&'static Board);

impl Cpu {
    fn frame(&self, pfn: Pfn) -> &'static [Slot64; WORDS] {
        &self.0.memory[pfn.0 as usize].0
    }

    fn loaded(self) -> Pfn {
        Pfn(self.0.loaded[self.cpu().index()].load(Ordering::SeqCst))
    }

    fn lock(self) -> MutexGuard<'static, ()> {
        self.0.asleep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(self, cpu: CpuId, cause: &[AtomicBool; CPUS]) {
        // Under the mutex, so that whoever is about to sleep either sees it or is woken.
        let _guard = self.lock();
        cause[cpu.index()].store(true, Ordering::SeqCst);
        self.0.woken.notify_all();
    }

    fn is_interrupted(self) -> bool {
        let me = self.cpu().index();
        self.0.kicked[me].load(Ordering::SeqCst) || self.0.flush[me].load(Ordering::SeqCst)
    }

    /// Takes what has come, as hardware would between two instructions; these CPUs do so where they say.
    fn take_interrupts(self) {
        let me = self.cpu().index();
        while INTERRUPTS.get() && self.is_interrupted() {
            INTERRUPTS.set(false);
            self.0.kicked[me].store(false, Ordering::SeqCst);
            if self.0.flush[me].swap(false, Ordering::SeqCst) {
                tlb::service(self);
            }
            rcu::on_interrupt(self);
            INTERRUPTS.set(true);
        }
    }

    /// What the MMU does: from the top table down to the page. `None` is a fault.
    fn translate(self, top: Pfn, address: VirtAddr, write: bool) -> Option<&'static Slot64> {
        let (mut table, mut level) = (top, Some(FourLevel::TOP));
        while let Some(at) = level {
            let entry = self.frame(table)[FourLevel::index(at, address)].load();
            if !entry.is_present() || at == Level::Pte && !entry.allows(write, false) {
                return None;
            }
            (table, level) = (entry.pfn(), FourLevel::below(at));
        }
        Some(&self.frame(table)[address.0 as usize % PAGE_SIZE / size_of::<u64>()])
    }

    /// User code that adds to a word: faults, and tries again, until the MMU lets it.
    fn add(self, mm: &Mm<Self>, address: VirtAddr, value: u64) -> Result<(), FaultError> {
        loop {
            self.take_interrupts();
            // No interrupt comes between translation and access: a page is not freed before this CPU has answered one.
            let Some(word) = self.translate(self.loaded(), address, true) else {
                handle_mm_fault(mm, address, Access::Write)?;
                continue;
            };
            let seen = word.load();
            if word.compare_exchange(seen, Entry(seen.0 + value)).is_ok() {
                return Ok(());
            }
        }
    }
}

// SAFETY: a CPU is one thread, which set its number when it began; each frame is an element of a vector that is never freed.
unsafe impl Machine for Cpu {
    type Mode = FourLevel;
    type Lock = BuildLock;

    fn cpus(&self) -> &Cpus {
        &self.0.cpus
    }

    fn cpu(self) -> CpuId {
        CpuId(NUMBER.get())
    }

    fn online(self) -> CpuSet {
        CpuSet::first(CPUS)
    }

    fn irqs_enabled(self) -> bool {
        INTERRUPTS.get()
    }

    fn irq_save(self) -> bool {
        INTERRUPTS.replace(false)
    }

    fn irq_restore(self, enabled: bool) {
        INTERRUPTS.set(enabled);
        self.take_interrupts();
    }

    fn pause(self) {
        self.take_interrupts();
        thread::yield_now();
    }

    fn halt_until_kicked(self) {
        let awake = self.0.woken.wait_while(self.lock(), |()| !self.is_interrupted());
        drop(awake);
        self.irq_restore(true);
    }

    fn kick(self, cpu: CpuId) {
        self.interrupt(cpu, &self.0.kicked);
    }

    fn waiting_rule(self) -> WaitingRule {
        WaitingRule { rounds: 8, polls: 64, polls_per_pause: 16 }
    }

    fn now(self) -> u64 {
        self.0.started.elapsed().as_nanos() as u64
    }

    fn block_while(self, _key: usize, still: &mut dyn FnMut() -> bool) {
        // The only thread of its CPU: whatever wakes it up, it takes its interrupts and looks again.
        while {
            self.take_interrupts();
            let guard = self.lock();
            let blocked = still();
            if blocked && !self.is_interrupted() {
                drop(self.0.woken.wait(guard));
            }
            blocked
        } {}
    }

    fn wake(self, _key: usize) {
        let _guard = self.lock();
        self.0.woken.notify_all();
    }

    fn stuck(self, what: &'static str) -> ! {
        panic!("waited for {what} beyond any reason")
    }

    fn map_table(&self, pfn: Pfn, level: Level) -> &[SlotOf<Self>] {
        &self.frame(pfn)[..FourLevel::entries(level)]
    }

    fn unmap_table(&self, _table: &[SlotOf<Self>]) {}

    fn zero_frame(self, pfn: Pfn) {
        self.frame(pfn).iter().for_each(|word| word.store(Entry::NONE));
    }

    fn copy_frame(self, from: Pfn, to: Pfn) {
        self.frame(to).iter().zip(self.frame(from)).for_each(|(to, from)| to.store(from.load()));
    }

    fn frame_bytes(&self, pfn: Pfn) -> std::ptr::NonNull<u8> {
        std::ptr::NonNull::from(self.frame(pfn)).cast()
    }

    fn fill_kernel_entries(&self, _top: &[SlotOf<Self>]) {}

    fn load_pgd(self, load: PgdLoad) {
        let pgd = match load {
            PgdLoad::Kernel => 0,
            PgdLoad::User { pgd, .. } => pgd.pfn().0,
        };
        self.0.loaded[self.cpu().index()].store(pgd, Ordering::SeqCst);
    }

    /// There is no TLB.
    fn flush_local(self, _flush: LocalFlush) {}

    fn send_flush_ipi(self, cpu: CpuId) {
        self.interrupt(cpu, &self.0.flush);
    }
}

/// Runs `work` as each CPU, all at once, and returns what each returned. Meanwhile the caller is not CPU 0.
///
/// A CPU that has done its work answers until all have. Else one might wait for its answer for ever:
///
/// ```text
///   CPU 0: mprotect: finds CPU 1 among those that use the address space
///                                             CPU 1: faults, is refused, leaves the address space, and ends
///   CPU 0: interrupts CPU 1, waits
/// ```
fn on_all_cpus<T: Send>(board: &'static Board, work: impl Fn(Cpu) -> T + Sync) -> Vec<T> {
    rcu::enter_idle(Cpu(board));
    let at_work = AtomicUsize::new(CPUS);
    let as_cpu = |number: u32| {
        NUMBER.set(number);
        let cpu = Cpu(board);
        // A CPU without work is idle: no grace period waits for it.
        rcu::exit_idle(cpu);
        let result = work(cpu);
        at_work.fetch_sub(1, Ordering::SeqCst);
        while at_work.load(Ordering::SeqCst) > 0 {
            cpu.pause();
        }
        rcu::enter_idle(cpu);
        result
    };
    let results = thread::scope(|scope| {
        let threads: Vec<_> = (0..CPUS as u32).map(|number| scope.spawn(move || as_cpu(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a CPU panicked")).collect()
    });
    rcu::exit_idle(Cpu(board));
    results
}

/// Prints a property and whether it holds, and counts those that do not.
struct Checks(RefCell<u32>);

impl Checks {
    fn check(&self, what: &str, holds: bool) {
        println!("{:<6} {what}", if holds { "ok" } else { "FAILED" });
        *self.0.borrow_mut() += u32::from(!holds);
    }
}

fn main() -> ExitCode {
    let board: &'static Board = Box::leak(Box::new(Board {
        cpus: Cpus::new(),
        memory: (0..FRAMES).map(|_| Frame(std::array::from_fn(|_| Slot64::new(Entry::NONE)))).collect(),
        kicked: Default::default(),
        flush: Default::default(),
        loaded: Default::default(),
        asleep: Mutex::new(()),
        woken: Condvar::new(),
        started: Instant::now(),
    }));
    let checks = Checks(RefCell::new(0));
    match run(board, &checks) {
        Ok(()) if *checks.0.borrow() == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mm cannot go on: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says in words what `mm` refused.
fn refused<E: std::fmt::Debug>(what: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error:?}")
}

fn run(board: &'static Board, checks: &Checks) -> Result<(), String> {
    // This thread is CPU 0 until others run, and after.
    const PAGES: u64 = 128;
    const BASE: u64 = 1 << 30;
    let cpu = Cpu(board);
    rcu::exit_idle(cpu);

    // A descriptor for each frame; frame 0 stays unused, since that number means none.
    let descriptors: &'static [Page<BuildLock>] = (0..FRAMES).map(|_| Page::new()).collect::<Vec<_>>().leak();
    let frames = FrameAllocator::new(MemMap::new(Pfn(0), descriptors));
    frames.add_free_range(cpu, Pfn(1), Pfn(FRAMES)).map_err(refused("the memory"))?;
    let memory: &'static Memory<Cpu> = Box::leak(Box::new(Memory::new(cpu, frames).map_err(refused("the memory"))?));
    let free_at_start = memory.frames().free_frames(cpu);

    let mm = Mm::create(memory).map_err(refused("an address space"))?;
    let page = |number: u64| VirtAddr(BASE + number * PAGE_SIZE as u64);
    let range = VirtRange::new(page(0).0, page(PAGES).0).ok_or("not a range of pages")?;
    mm.mmap(range, Protection::READ_WRITE, Mapping::Anonymous).map_err(refused("mmap"))?;
    checks.check("mmap installs nothing", mm.linked_table_bytes() == 0);

    let touch = |cpu: Cpu, mm: &MmRef<Cpu>| -> Result<(), FaultError> {
        let mut loaded = LoadedMm::none(cpu);
        loaded.switch_to(Some(mm.clone()));
        (0..PAGES).try_for_each(|number| cpu.add(mm, page(number), u64::from(cpu.cpu().0) + 1))
    };
    let outcomes = on_all_cpus(board, |cpu| touch(cpu, &mm));
    checks.check("every access succeeds", outcomes.iter().all(Result::is_ok));

    let sum: u64 = (1..=CPUS as u64).sum();
    let all_there = (0..PAGES)
        .all(|number| cpu.translate(mm.pgd().pfn(), page(number), false).is_some_and(|word| word.load().0 == sum));
    checks.check("every page has what both CPUs added", all_there);
    let counted = StatsSnapshot::sum(&board.cpus);
    println!(
        "       {} locks of PTE tables taken, {} waited for; {} tables",
        counted.locks(&[LockClass::Pte], LockCounter::Acquired),
        counted.locks(&[LockClass::Pte], LockCounter::Waited),
        memory.page_tables(),
    );

    // Other CPUs read the page while this one takes the right to store to it away, and then the pages themselves.
    let removed = on_all_cpus(board, |cpu| match cpu.cpu() {
        CpuId(0) => mm.mprotect(range, Protection::READ).and_then(|()| mm.munmap(range)).is_ok(),
        _ => loop {
            if let Err(error) = touch(cpu, &mm) {
                break matches!(error, FaultError::Forbidden | FaultError::NotMapped);
            }
        },
    });
    checks.check("mprotect and munmap reach a CPU that uses the pages", removed.iter().all(|&well| well));
    checks.check("nothing is mapped any more", cpu.translate(mm.pgd().pfn(), page(0), false).is_none());

    drop(mm);
    memory.drain_deferred();
    memory.slab().shrink(cpu, memory.frames());
    checks.check("every table is given back", memory.page_tables() == 0);
    checks.check("every frame is given back", memory.frames().free_frames(cpu) == free_at_start);
    Ok(())
}
