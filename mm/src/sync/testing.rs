//! A machine for the tests of this module: threads as CPUs, nothing but waiting. What they need beyond the simulated
//! machine is control over which CPU the running thread is.
//!
//! Interrupts arrive where a CPU with interrupts on pauses, turns them on or halts.

use crate::address::Pfn;
use crate::config::NR_CPUS;
use crate::cpu::{CpuId, CpuSet, Cpus};
use crate::machine::{LocalFlush, Machine, SlotOf, WaitingRule};
use crate::pgtable::{FourLevel, Level};
use crate::sync::rcu;
use crate::sync::ticket::TicketLock;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long a halted CPU waits for its kick before the test is called hung.
const PATIENCE: Duration = Duration::from_secs(20);

thread_local! {
    static CPU: Cell<CpuId> = const { Cell::new(CpuId(0)) };
    static IRQS: Cell<bool> = const { Cell::new(true) };
}

struct Hardware {
    cpus: Cpus,
    online: CpuSet,
    rule: WaitingRule,
    started: Instant,
    /// A kick that has not been taken yet, per CPU.
    pending: [(Mutex<bool>, Condvar); NR_CPUS],
    sleepers: (Mutex<()>, Condvar),
}

/// Handle of one machine; each test has its own.
#[derive(Clone, Copy)]
pub(crate) struct TestMachine(&'static Hardware);

impl TestMachine {
    /// A machine of `cpus` CPUs, all of them out of idle, that waits by `rounds` and `polls`. Lives as long as the tests.
    pub(crate) fn new(cpus: usize, rounds: u32, polls: u32) -> Self {
        let machine = Self(Box::leak(Box::new(Hardware {
            cpus: Cpus::new(),
            online: CpuSet::first(cpus),
            rule: WaitingRule { rounds, polls, polls_per_pause: 1 },
            started: Instant::now(),
            pending: std::array::from_fn(|_| Default::default()),
            sleepers: Default::default(),
        })));
        machine.online().iter().for_each(|cpu| machine.as_cpu(cpu, || rcu::exit_idle(machine)));
        machine
    }

    /// Runs `work` on this thread as `cpu`. No other thread may be that CPU meanwhile.
    pub(crate) fn as_cpu<R>(self, cpu: CpuId, work: impl FnOnce() -> R) -> R {
        let before = CPU.replace(cpu);
        let result = work();
        CPU.set(before);
        result
    }

    /// Runs `work` on every CPU at once.
    pub(crate) fn on_all(self, work: impl Fn(CpuId) + Sync) {
        let work = &work;
        std::thread::scope(|scope| {
            for cpu in self.online().iter() {
                scope.spawn(move || self.as_cpu(cpu, || work(cpu)));
            }
        });
    }

    /// Whether `cpu` has been kicked and has not taken the interrupt.
    pub(crate) fn has_pending_kick(self, cpu: CpuId) -> bool {
        *self.0.pending[cpu.index()].0.lock().unwrap()
    }

    fn take_interrupt(self) {
        let pending = std::mem::take(&mut *self.0.pending[self.cpu().index()].0.lock().unwrap());
        if pending {
            rcu::on_interrupt(self);
        }
    }
}

// SAFETY: the thread says which CPU it is, and `as_cpu` asks callers not to be one twice at a time. No memory is handed out.
#[allow(unsafe_code)]
unsafe impl Machine for TestMachine {
    type Mode = FourLevel;
    type Lock = TicketLock;

    fn cpus(&self) -> &Cpus {
        &self.0.cpus
    }

    fn cpu(self) -> CpuId {
        CPU.get()
    }

    fn online(self) -> CpuSet {
        self.0.online
    }

    fn irqs_enabled(self) -> bool {
        IRQS.get()
    }

    fn irq_save(self) -> bool {
        IRQS.replace(false)
    }

    fn irq_restore(self, enabled: bool) {
        if enabled {
            IRQS.set(true);
            self.take_interrupt();
        }
    }

    fn pause(self) {
        if IRQS.get() {
            self.take_interrupt();
        }
        std::thread::yield_now();
    }

    fn halt_until_kicked(self) {
        assert!(!IRQS.get(), "halts with interrupts on: a kick before the halt is lost");
        let (pending, kicked) = &self.0.pending[self.cpu().index()];
        let (guard, timeout) =
            kicked.wait_timeout_while(pending.lock().unwrap(), PATIENCE, |pending| !*pending).unwrap();
        drop(guard);
        assert!(!timeout.timed_out(), "{:?} was never kicked", self.cpu());
        IRQS.set(true);
        self.take_interrupt();
    }

    fn kick(self, cpu: CpuId) {
        let (pending, kicked) = &self.0.pending[cpu.index()];
        *pending.lock().unwrap() = true;
        kicked.notify_all();
    }

    fn waiting_rule(self) -> WaitingRule {
        self.0.rule
    }

    fn now(self) -> u64 {
        self.0.started.elapsed().as_nanos() as u64
    }

    fn block_while(self, _key: usize, still: &mut dyn FnMut() -> bool) {
        let (lock, woken) = &self.0.sleepers;
        let guard = lock.lock().unwrap();
        if still() {
            let (_guard, timeout) = woken.wait_timeout(guard, PATIENCE).unwrap();
            assert!(!timeout.timed_out(), "{:?} was never woken", self.cpu());
        }
    }

    fn wake(self, _key: usize) {
        let _guard = self.0.sleepers.0.lock().unwrap();
        self.0.sleepers.1.notify_all();
    }

    fn stuck(self, what: &'static str) -> ! {
        panic!("{:?} is stuck waiting for {what}", self.cpu())
    }

    fn map_table(&self, _pfn: Pfn, _level: Level) -> &[SlotOf<Self>] {
        unreachable!("this machine has no memory")
    }

    fn unmap_table(&self, _table: &[SlotOf<Self>]) {}

    fn zero_frame(self, _pfn: Pfn) {}

    fn copy_frame(self, _from: Pfn, _to: Pfn) {}

    fn frame_bytes(&self, _pfn: Pfn) -> NonNull<u8> {
        unreachable!("this machine has no memory")
    }

    fn fill_kernel_entries(&self, _top: &[SlotOf<Self>]) {}

    fn load_pgd(self, _pgd: Option<Pfn>) {}

    fn flush_local(self, _flush: LocalFlush) {}

    fn send_flush_ipi(self, _cpu: CpuId) {}
}
