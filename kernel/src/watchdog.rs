//! Ends a run in which a test outlives its time limit, and names what it hangs on.
//!
//! Every CPU's timer tick looks at the limit the harness has published, so any CPU that still takes interrupts can end
//! the run. Each tick also notes the time: a CPU whose note stands still has had interrupts off since.

use core::fmt::{self, Write};

use arch_x86::{percpu, time};
use mm::config::NR_CPUS;
use mm::cpu::CpuId;
use mm::sync::atomic::plain::Solo64;

use crate::exit::{ExitCode, exit};
use crate::harness::{Name, deadline};
use crate::line::Line;
use crate::record::Record;
use crate::report::{self, LockUse, Snapshot, Standstill};
use crate::{smp, thread};

/// How long a CPU's note may be old before the CPU counts as one with interrupts off: many ticks, since the host may
/// leave a vCPU waiting.
const STANDSTILL_NANOS: u64 = 1_000_000_000;

/// When a CPU ticked last, in nanoseconds. Written by that CPU alone.
#[repr(align(64))]
struct LastTick(Solo64);

static LAST_TICKS: [LastTick; NR_CPUS] = [const { LastTick(Solo64::new(0)) }; NR_CPUS];

/// To be called in every timer interrupt.
pub fn tick() {
    let now = time::now_nanos();
    LAST_TICKS[percpu::cpu().index()].0.set(now);
    if let Some((name, due)) = deadline::current()
        && now / 1000 >= due
    {
        fire(name, now);
    }
}

/// When `cpu` ticked last, in nanoseconds.
pub fn last_tick(cpu: CpuId) -> u64 {
    LAST_TICKS[cpu.index()].0.get()
}

/// Why a CPU is the one that hangs.
enum Culprit {
    /// It has interrupts off, and has not ticked for so many nanoseconds.
    Deaf(u64),
    /// It waits for a lock.
    Waits(LockUse),
    /// It runs a thread.
    Busy,
    /// It runs nothing.
    Idle,
}

impl Culprit {
    fn of(cpu: CpuId, snapshot: Option<&Snapshot>, now: u64) -> Self {
        let mut awaited = None;
        report::for_each_lock(cpu, &mut |lock| {
            if lock.waits {
                awaited = Some(lock);
            }
        });
        let silence = now.saturating_sub(last_tick(cpu));
        // One that does not even answer a non-maskable interrupt takes no other either.
        let is_deaf = match snapshot.and_then(|snapshot| snapshot.frame) {
            Some(frame) => !frame.interrupts_enabled(),
            None => cpu != percpu::cpu(),
        };
        match awaited {
            Some(lock) => Self::Waits(lock),
            None if is_deaf && silence > STANDSTILL_NANOS => Self::Deaf(silence),
            None if snapshot.is_some_and(|snapshot| snapshot.idle) => Self::Idle,
            None => Self::Busy,
        }
    }

    /// The larger, the more telling.
    fn rank(&self) -> u8 {
        match self {
            Self::Idle => 0,
            Self::Busy => 1,
            Self::Waits(_) => 2,
            Self::Deaf(_) => 3,
        }
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Deaf(nanos) => {
                write!(out, "has had interrupts off for {}.{} s", nanos / 1_000_000_000, nanos / 100_000_000 % 10)
            }
            Self::Waits(lock) => write!(out, "{lock}"),
            Self::Busy => out.write_str("still runs"),
            Self::Idle => out.write_str("is idle: every thread sleeps"),
        }
    }
}

fn fire(test: Name, now: u64) -> ! {
    let own = Snapshot::here();
    if !report::claim(&own) {
        exit(ExitCode::Watchdog)
    }
    let standstill = Standstill::bring_about(own);
    let online = smp::online();
    let verdict = online
        .iter()
        .map(|cpu| (cpu, Culprit::of(cpu, standstill.snapshot(cpu).as_ref(), now)))
        .reduce(|best, other| if other.1.rank() > best.1.rank() { other } else { best });
    let (cpu, culprit) = verdict.unwrap_or((percpu::cpu(), Culprit::Busy));

    let name = standstill.snapshot(cpu).map_or(thread::ShortName::EMPTY, |snapshot| snapshot.thread);
    let mut text = Line::<256>::new();
    // `Line` never fails: it cuts.
    let _ = write!(text, "cpu {}, thread {name}, {culprit}", cpu.0);
    let text = core::str::from_utf8(text.as_bytes()).unwrap_or("");
    log::error!("{test} has outlived its time limit: {text}");
    let mut record = Record::new("hang");
    record.text("test", test).number("cpu", cpu.0);
    if let Culprit::Waits(lock) = culprit {
        record.address("lock", lock.address as u64);
        if let Some(ticket) = lock.ticket {
            record.number("ticket", ticket);
        }
    }
    record.text("text", text).emit();
    standstill.print_and_exit("hang", ExitCode::Watchdog)
}
