//! `mm`'s hardware trait for this CPU: [`X86`], a handle without a value.
//!
//! Rules. How a frame is reached is the mode's (`64/memory.rs`, `32/memory.rs`). No function here takes a lock or touches the
//! user half. What the hardware cannot do (put a thread to sleep, end the
//! machine) is the kernel's part and comes from it at boot: [`set_kernel`].

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use mm::address::{Pfn, PhysAddr};
use mm::config::PAGE_SIZE;
use mm::cpu::{CpuId, CpuSet, Cpus};
use mm::machine::{LocalFlush, Machine, PgdLoad, SlotOf, WaitingRule};
use mm::pgtable::{Entry, HugeSize, Level, PagingMode};
use mm::sabotaged;
use mm::sync::BuildLock;
use mm::sync::held::HeldLocks;
use mm::tlb::MAX_ASIDS;
use spin::Once;

use crate::bits::{self, memory};
use crate::cpu::Features;
use crate::ipi::{self, Vector};
use crate::paging::Context;
use crate::{cpu, interrupts, kernel_map, layout, paging, percpu, time};

/// The machine the kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X86;

/// Who looks at the `mmap_lock`s a thread holds.
type Look<'a> = &'a mut dyn FnMut(&HeldLocks);

/// What `mm` needs of the kernel; see the functions of the same names in [`Machine`].
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "`Machine` documents the functions of these names")]
pub struct Kernel {
    pub online: fn() -> CpuSet,
    pub block_while: fn(usize, &mut dyn FnMut() -> bool),
    pub wake: fn(usize),
    pub with_mmap_locks: fn(Look),
    pub need_resched: fn() -> bool,
    pub cond_resched: fn(),
    pub stuck: fn(&'static str) -> !,
    pub report_bad_entry: fn(Level, Entry),
}

static KERNEL: Once<Kernel> = Once::new();

/// Registers the kernel's part. Before any lock of `mm` is waited for; only the first call has an effect.
pub fn set_kernel(kernel: Kernel) {
    KERNEL.call_once(|| kernel);
}

fn kernel() -> &'static Kernel {
    match KERNEL.get() {
        Some(kernel) => kernel,
        None => panic!("mm is used before the kernel is ready for it"),
    }
}

static CPUS: Cpus = Cpus::new();

/// Where a hypervisor may take a CPU away from a lock's next owner, waiters stand outside the queue (design decision 2).
/// `pause` leaves the emulated CPU's loop, so it is rare.
const OVERCOMMITTED: WaitingRule = WaitingRule { rounds: 8, polls: 512, polls_per_pause: 64 };
/// The plain ticket lock; a halt is for waits that last.
const DEDICATED: WaitingRule = WaitingRule { rounds: 0, polls: 32_768, polls_per_pause: 1 };

/// The rule that [`set_waiting_rule`] asked for; no polls: none. Relaxed: it is changed while nobody waits.
static ASKED: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

/// Has every CPU wait for `mm`'s locks by `rule`, or again by the machine's own for `None`. For benches and tests, while no CPU
/// waits for a lock.
pub fn set_waiting_rule(rule: Option<WaitingRule>) {
    let rule = rule.unwrap_or(WaitingRule { rounds: 0, polls: 0, polls_per_pause: 0 });
    for (asked, value) in ASKED.iter().zip([rule.rounds, rule.polls, rule.polls_per_pause]) {
        asked.store(value, Ordering::Relaxed);
    }
}

// SAFETY: `percpu::cpu` is the number of the running CPU, which no other shares. RAM of the direct map lies at a fixed place,
// one frame after the other, as long as the kernel runs.
unsafe impl Machine for X86 {
    type Mode = layout::Mode;
    type Lock = BuildLock;

    fn cpus(&self) -> &Cpus {
        &CPUS
    }

    fn cpu(self) -> CpuId {
        percpu::cpu()
    }

    fn online(self) -> CpuSet {
        (kernel().online)()
    }

    fn irqs_enabled(self) -> bool {
        interrupts::enabled()
    }

    fn irq_save(self) -> bool {
        let enabled = interrupts::enabled();
        interrupts::disable();
        enabled
    }

    fn irq_restore(self, enabled: bool) {
        if enabled {
            interrupts::enable();
        }
    }

    fn pause(self) {
        core::hint::spin_loop();
    }

    fn halt_until_kicked(self) {
        interrupts::enable_and_halt();
    }

    fn kick(self, cpu: CpuId) {
        send(cpu, Vector::Kick, "a kick cannot be sent");
    }

    fn waiting_rule(self) -> WaitingRule {
        let [rounds, polls, polls_per_pause] = [0, 1, 2].map(|part: usize| ASKED[part].load(Ordering::Relaxed));
        match polls {
            0 if cpu::features().contains(Features::HYPERVISOR) => OVERCOMMITTED,
            0 => DEDICATED,
            _ => WaitingRule { rounds, polls, polls_per_pause },
        }
    }

    fn now(self) -> u64 {
        time::now_nanos()
    }

    fn block_while(self, key: usize, still: &mut dyn FnMut() -> bool) {
        (kernel().block_while)(key, still);
    }

    fn wake(self, key: usize) {
        (kernel().wake)(key);
    }

    fn with_mmap_locks(self, look: &mut dyn FnMut(&HeldLocks)) {
        (kernel().with_mmap_locks)(look);
    }

    fn need_resched(self) -> bool {
        (kernel().need_resched)()
    }

    fn cond_resched(self) {
        (kernel().cond_resched)();
    }

    fn stuck(self, what: &'static str) -> ! {
        (kernel().stuck)(what)
    }

    fn report_bad_entry(self, level: Level, entry: Entry) {
        (kernel().report_bad_entry)(level, entry);
    }

    fn is_high(self, pfn: Pfn) -> bool {
        memory::is_high(pfn)
    }

    fn walks(self, pfn: Pfn) -> bool {
        memory::walks(pfn)
    }

    fn mapped(self) -> usize {
        memory::mapped()
    }

    fn map_table(&self, pfn: Pfn, level: Level) -> &[SlotOf<Self>] {
        // SAFETY: the frame is RAM, mapped until `unmap_table`, and holds a table; slots are atomics, so the CPU's walker and
        // other CPUs may write them too.
        unsafe { slots(memory::map(pfn), level) }
    }

    fn map_small_top(&self, pgd: PhysAddr) -> &[SlotOf<Self>] {
        // SAFETY: an object of the pgd cache lies within a frame of the direct map; otherwise as in `map_table`.
        unsafe { slots(layout::DIRECT_MAP.start + pgd.0 as usize, Level::Pgd) }
    }

    fn unmap_table(&self, table: &[SlotOf<Self>]) {
        memory::unmap(table.as_ptr().addr());
    }

    fn zero_frame(self, pfn: Pfn) {
        let page = memory::map(pfn);
        // SAFETY: the frame is RAM, mapped until `unmap`, and the caller is the only one to reach it.
        unsafe { memory::clear(page) };
        memory::unmap(page);
    }

    fn copy_frame(self, from: Pfn, to: Pfn) {
        let (from, to) = (memory::map(from), memory::map(to));
        // SAFETY: two different frames of RAM, mapped until `unmap`; the caller is the only one to reach `to`.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, PAGE_SIZE) };
        memory::unmap(to);
        memory::unmap(from);
    }

    fn frame_bytes(&self, pfn: Pfn) -> NonNull<u8> {
        debug_assert!(pfn < layout::DIRECT_END, "{pfn:?} is not in the direct map");
        match NonNull::new(layout::direct(pfn) as *mut u8) {
            Some(bytes) => bytes,
            None => unreachable!("the direct map does not begin at zero"),
        }
    }

    fn fill_kernel_entries(&self, top: &[SlotOf<Self>]) {
        kernel_map::copy_kernel_half(top);
    }

    fn has_huge_pages(self, size: HugeSize) -> bool {
        match size {
            HugeSize::Pmd => true,
            HugeSize::Pud => cpu::features().contains(Features::GIGABYTE_PAGES),
        }
    }

    fn has_no_execute(self) -> bool {
        cpu::has_no_execute()
    }

    fn asids(self) -> usize {
        if cpu::features().contains(Features::PCID) { MAX_ASIDS } else { 1 }
    }

    fn load_pgd(self, load: PgdLoad) {
        let (pgd, context) = match load {
            PgdLoad::Kernel => (kernel_map::top().into(), Context::KERNEL),
            PgdLoad::User { pgd, asid, keep } if self.asids() > 1 => (pgd, Context::of(asid.0, keep)),
            PgdLoad::User { pgd, .. } => (pgd, Context::KERNEL),
        };
        // SAFETY: every top table has the kernel's half; whoever loads one keeps it until another is loaded. `asids` says
        // whether there are contexts.
        unsafe { paging::load_root(pgd.0 as usize, context) }
    }

    fn latched(self, index: usize) -> Option<Entry> {
        bits::paging::latched(index)
    }

    fn flush_local(self, flush: LocalFlush) {
        match flush {
            LocalFlush::Range { .. } if sabotaged!("invlpg") => {}
            LocalFlush::AddressSpace if sabotaged!("cr3-reload") => {}
            LocalFlush::Range { range, stride } => {
                let first = range.start.0 & !(stride - 1);
                (first..range.end.0).step_by(stride as usize).for_each(|at| paging::flush_page(at as usize));
            }
            LocalFlush::AddressSpace => paging::flush_local(),
        }
    }

    fn send_flush_ipi(self, cpu: CpuId) {
        send(cpu, Vector::Flush, "a flush interrupt cannot be sent");
    }
}

/// The slots of a table of `level` at `address`.
///
/// # Safety
/// The table must stay mapped there as long as the slots are used.
unsafe fn slots<'a>(address: usize, level: Level) -> &'a [SlotOf<X86>] {
    // SAFETY: the caller vouches for the table.
    unsafe { core::slice::from_raw_parts(address as *const SlotOf<X86>, layout::Mode::entries(level)) }
}

fn send(cpu: CpuId, vector: Vector, failure: &'static str) {
    if ipi::send(cpu, vector).is_err() {
        (kernel().stuck)(failure);
    }
}
