//! The machine that the model checker's lock models run on: a thread is a CPU, a halt is a `park`, a kick an `unpark`.
//!
//! Each handle belongs to one CPU. The machine is created anew in every execution, since loom's atomics must be, and
//! freed at its end by [`Model::run`].

use loom::sync::{Condvar, Mutex};
use loom::thread::{self, Thread};
use mm::address::Pfn;
use mm::cpu::{CpuId, CpuSet, Cpus};
use mm::machine::{LocalFlush, Machine, SlotOf, WaitingRule};
use mm::pgtable::{Level, Tiny};
use mm::sync::rcu;
use mm::sync::ticket::TicketLock;
use std::cell::RefCell;
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
}

struct Hardware {
    model: Model,
    cpus: Cpus,
    threads: RefCell<Vec<Option<Thread>>>,
    /// A kick not taken yet, per CPU. Not loom's: executions run one thread at a time, and a kick is sticky.
    pending: Vec<AtomicBool>,
    sleepers: (Mutex<()>, Condvar),
}

/// A CPU of the machine.
#[derive(Clone, Copy)]
pub struct Cpu {
    id: CpuId,
    hardware: &'static Hardware,
}

// SAFETY: loom runs the threads of an execution one at a time, and `threads` is never borrowed across a switch.
unsafe impl Sync for Hardware {}

impl Model {
    /// A machine that really wakes its CPUs.
    pub fn new(cpus: usize, rounds: u32) -> Self {
        Self { cpus, rounds, kicks: true }
    }

    /// Explores every execution of `work` on all CPUs at once, over what `shared` makes; `check` looks at the end.
    pub fn run<S: Send + Sync + 'static>(
        self,
        shared: impl Fn() -> S + Send + Sync + 'static,
        work: impl Fn(&S, Cpu) + Copy + Send + Sync + 'static,
        check: impl Fn(&S, Cpu) + Send + Sync + 'static,
    ) {
        loom::model(move || {
            let state: *mut (Hardware, S) = Box::into_raw(Box::new((Hardware::new(self), shared())));
            // SAFETY: the box is freed below, after all threads that use it have ended.
            let (hardware, shared): &'static (Hardware, S) = unsafe { &*state };
            let cpu = |number: usize| Cpu { id: CpuId(number as u32), hardware };
            let others: Vec<_> = (1..self.cpus)
                .map(|number| {
                    let cpu = cpu(number);
                    thread::spawn(move || cpu.start(|| work(shared, cpu)))
                })
                .collect();
            cpu(0).start(|| work(shared, cpu(0)));
            others.into_iter().for_each(|other| other.join().unwrap());
            check(shared, cpu(0));
            // SAFETY: from `Box::into_raw` above; the threads have been joined and no reference is used any more.
            drop(unsafe { Box::from_raw(state) });
        });
    }
}

impl Hardware {
    fn new(model: Model) -> Self {
        Self {
            model,
            cpus: Cpus::new(),
            threads: RefCell::new(vec![None; model.cpus]),
            pending: (0..model.cpus).map(|_| AtomicBool::new(false)).collect(),
            sleepers: (Mutex::new(()), Condvar::new()),
        }
    }
}

impl Cpu {
    /// Runs `work` as this CPU.
    fn start(self, work: impl FnOnce()) {
        self.hardware.threads.borrow_mut()[self.id.index()] = Some(thread::current());
        work();
    }

    /// Runs `work` out of idle: what may open read sections.
    pub fn awake(self, work: impl FnOnce()) {
        rcu::exit_idle(self);
        work();
        rcu::enter_idle(self);
    }

    fn take_kick(self) -> bool {
        self.hardware.pending[self.id.index()].swap(false, Ordering::Relaxed)
    }
}

// SAFETY: each handle names one CPU and is used by one thread. No memory is handed out.
unsafe impl Machine for Cpu {
    type Mode = Tiny;
    type Lock = TicketLock;

    fn cpus(&self) -> &Cpus {
        &self.hardware.cpus
    }

    fn cpu(self) -> CpuId {
        self.id
    }

    fn online(self) -> CpuSet {
        CpuSet::first(self.hardware.model.cpus)
    }

    fn irqs_enabled(self) -> bool {
        true
    }

    fn irq_save(self) -> bool {
        true
    }

    fn irq_restore(self, _enabled: bool) {}

    /// The one spinning wait, for a grace period, has to let the others run. Polling a lock needs no switch of its own.
    fn pause(self) {
        thread::yield_now();
    }

    fn halt_until_kicked(self) {
        while !self.take_kick() {
            thread::park();
        }
        rcu::on_interrupt(self);
    }

    fn kick(self, cpu: CpuId) {
        if self.hardware.model.kicks {
            self.hardware.pending[cpu.index()].store(true, Ordering::Relaxed);
            if let Some(thread) = &self.hardware.threads.borrow()[cpu.index()] {
                thread.unpark();
            }
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
            drop(woken.wait(guard).unwrap());
        }
    }

    fn wake(self, _key: usize) {
        let _guard = self.hardware.sleepers.0.lock().unwrap();
        self.hardware.sleepers.1.notify_all();
    }

    fn stuck(self, what: &'static str) -> ! {
        panic!("stuck waiting for {what}")
    }

    fn map_table(&self, _pfn: Pfn, _level: Level) -> &[SlotOf<Self>] {
        unreachable!("the lock models have no tables")
    }

    fn unmap_table(&self, _table: &[SlotOf<Self>]) {}

    fn zero_frame(self, _pfn: Pfn) {}

    fn copy_frame(self, _from: Pfn, _to: Pfn) {}

    fn frame_bytes(&self, _pfn: Pfn) -> NonNull<u8> {
        unreachable!("the lock models have no memory")
    }

    fn fill_kernel_entries(&self, _top: &[SlotOf<Self>]) {}

    fn load_pgd(self, _pgd: Option<Pfn>) {}

    fn flush_local(self, _flush: LocalFlush) {}

    fn send_flush_ipi(self, _cpu: CpuId) {}
}
