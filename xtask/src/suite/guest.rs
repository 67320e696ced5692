//! Tests of xtask and kernel together: kernels that go wrong on purpose, a deterministic run made twice, the disk image.
//!
//! Each boots the real kernel, so they belong to `cargo xtask test` and not to plain `cargo test`.

mod disassembly;
mod locks;
mod mappings;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::logline::Level;
use protocol::{LastWord, TestStatus};

use super::progress::Progress;
use super::tally::{Case, Outcome};
use crate::build::{Arch, Builder, Levels, Locks, Variant};
use crate::interrupt;
use crate::machine::{Accelerator, Clock, Machine, Task};
use crate::postmortem;
use crate::runner::{self, Medium, Plan, Run};
use crate::setup::ovmf;
use crate::symbolise::Symbols;
use crate::timing;
use crate::verdict::{Loss, Noticed, Verdict};
use crate::workspace::Workspace;

/// What these tests are listed under.
const SUITE: &str = "guest";
/// A test that misbehaves is given this long before the watchdog barks.
const SHORT: Duration = Duration::from_secs(3);
/// The kernel tests of a run that is made twice: those in which CPUs depend on each other most.
const REPEATED: &str = "thread::";
/// The shift it is made with.
const REPEATED_SHIFT: u8 = 4;

/// What a test complains of, line by line.
type Complaint = Vec<String>;

/// One test.
pub struct GuestTest {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    run: fn(&mut Stage<'_, '_>) -> Result<(), Complaint>,
}

/// Those that a kernel for `arch` takes.
pub fn of(arch: Arch) -> impl Iterator<Item = &'static GuestTest> {
    TESTS.iter().chain(&locks::TESTS).chain(only(arch))
}

/// Those that make sense with a kernel for `arch` alone.
fn only(arch: Arch) -> impl Iterator<Item = &'static GuestTest> {
    let parts: [&[GuestTest]; 3] = match arch {
        Arch::X86_64 => [&X86_64_TESTS, &[], &[]],
        Arch::I686Pae => [&I686_PAE_TESTS, &mappings::TESTS, &disassembly::TESTS],
    };
    parts.into_iter().flatten()
}

const TESTS: [GuestTest; 14] = [
    GuestTest {
        name: "verdict::a_panic_is_reported_with_a_backtrace",
        about: "a kernel that panics: exit 37, symbolised backtrace",
        run: |stage| {
            stage.misbehave("panic", |run| {
                let mut words = run.ended.transcript.last_words.iter();
                run.verdict == Verdict::Panicked && words.any(|word| matches!(word, LastWord::Backtrace(_)))
            })
        },
    },
    GuestTest {
        name: "verdict::a_stack_overflow_is_called_by_its_name",
        about: "a kernel that overflows a stack: a panic that says so",
        run: |stage| {
            stage.misbehave("stack-overflow", |run| {
                let mut errors = run.ended.transcript.errors.iter();
                run.verdict == Verdict::Panicked && errors.any(|error| error.starts_with("stack overflow"))
            })
        },
    },
    GuestTest {
        name: "verdict::a_triple_fault_is_no_success",
        about: "a kernel that triple-faults: RESET, with the registers it had",
        run: |stage| stage.misbehave("triple-fault", |run| run.verdict == Verdict::Reset && !run.ended.cpus.is_empty()),
    },
    GuestTest {
        name: "verdict::a_spinning_cpu_is_a_hang",
        about: "a kernel that spins: HANG, by its own watchdog",
        run: |stage| {
            stage.misbehave("spin", |run| {
                run.verdict == Verdict::Hung(Noticed::Kernel) && run.ended.transcript.hang.is_some()
            })
        },
    },
    GuestTest {
        name: "verdict::a_panic_on_every_cpu_at_once_is_one_report",
        about: "all CPUs panic together: exit 37, and no line torn",
        run: |stage| {
            stage.misbehave("panic-everywhere", |run| {
                run.verdict == Verdict::Panicked && run.ended.transcript.torn.is_empty()
            })
        },
    },
    GuestTest {
        name: "verdict::a_deaf_cpu_is_a_hang",
        about: "a CPU that spins with interrupts off: HANG, reported by another CPU, or from outside if there is none",
        run: |stage| {
            stage.misbehave("deaf", |run| {
                let alone = run.ended.transcript.boot.as_ref().is_some_and(|boot| boot.cpus == 1);
                match &run.verdict {
                    Verdict::Hung(Noticed::Kernel) => !alone && run.ended.transcript.hang.is_some(),
                    Verdict::Hung(Noticed::Host(_)) => alone && !run.ended.cpus.is_empty(),
                    _ => false,
                }
            })
        },
    },
    GuestTest {
        name: "verdict::a_deadlock_names_the_lock",
        about: "a kernel that waits for a lock for ever: HANG, naming the lock and the ticket",
        run: |stage| {
            stage.misbehave("deadlock", |run| {
                let hang = run.ended.transcript.hang.as_ref();
                let names_lock = hang.is_some_and(|hang| hang.figures.contains_key("lock"));
                run.verdict == Verdict::Hung(Noticed::Kernel) && names_lock
            })
        },
    },
    GuestTest {
        name: "verdict::a_wait_for_a_lock_has_an_end",
        about: "a lock of the kernel's own is waited for beyond the limit: a panic that names it",
        run: |stage| {
            stage.misbehave("impatient", |run| {
                let mut errors = run.ended.transcript.errors.iter();
                run.verdict == Verdict::Panicked
                    && errors.any(|error| error.contains("waited for lock that is never released 0x"))
            })
        },
    },
    GuestTest {
        name: "verdict::half_a_line_is_lost_output",
        about: "a kernel that prints half a KTAP line and exits well: LOST OUTPUT",
        run: |stage| stage.misbehave("half-line", |run| matches!(run.verdict, Verdict::LostOutput(Loss::Torn(_)))),
    },
    GuestTest {
        name: "verdict::a_silent_exit_is_lost_output",
        about: "a kernel that exits well without its @end record: LOST OUTPUT",
        run: |stage| stage.misbehave("silent-exit", |run| run.verdict == Verdict::LostOutput(Loss::NoEnd)),
    },
    GuestTest {
        name: "verdict::an_unknown_workload_is_refused",
        about: "a workload the kernel does not know: REFUSED, with one line",
        run: |stage| {
            let task = Task::Workload { name: "tempest".to_owned(), rounds: None };
            stage.expect(task, |run| run.verdict == Verdict::BadCommandLine && run.ended.transcript.errors.len() == 1)
        },
    },
    GuestTest {
        name: "verdict::an_unknown_test_is_refused",
        about: "a filter no test matches: REFUSED, with one line",
        run: |stage| {
            let task = Task::Test { filter: "no-test-has-this-name".to_owned() };
            stage.expect(task, |run| run.verdict == Verdict::BadCommandLine && run.ended.transcript.errors.len() == 1)
        },
    },
    GuestTest {
        name: "deterministic::two_runs_are_the_same_byte_for_byte",
        about: "two runs with the same seed and shift: equal logs",
        run: |stage| stage.run_twice(),
    },
    GuestTest {
        name: "build::the_single_lock_kernel_passes_too",
        about: "the kernel with one page-table lock per address space passes the same tests",
        run: |stage| stage.test_single_lock(),
    },
];

/// What only 64 bits have: five levels of page tables, a boot loader, and page tables that must forbid execution.
const X86_64_TESTS: [GuestTest; 4] = [
    GuestTest {
        name: "boot::a_cpu_without_no_execute_is_refused_in_one_line",
        about: "a CPU whose page tables cannot forbid execution: boot failed, with one line",
        run: |stage| stage.refuse(stage.kernel.to_path_buf(), "nx"),
    },
    GuestTest {
        name: "build::the_five_level_kernel_faults_and_flushes",
        about: "the kernel with five levels of page tables starts all CPUs and passes its tests of faults and flushes",
        run: |stage| stage.test_five_levels(),
    },
    GuestTest {
        name: "boot::a_cpu_without_la57_is_refused_in_one_line",
        about: "the kernel with five levels of page tables on a CPU that knows four: boot failed, with one line",
        run: |stage| stage.refuse_four_levels(),
    },
    GuestTest {
        name: "boot::the_disk_image_starts_all_cpus",
        about: "the UEFI disk image boots and sees every CPU",
        run: |stage| stage.boot_image(),
    },
];

/// What only 32 bits have: processors that lack more.
const I686_PAE_TESTS: [GuestTest; 2] = [
    GuestTest {
        name: "boot::a_cpu_without_pae_is_refused_in_one_line",
        about: "a CPU that knows no PAE: boot failed, with one line",
        run: |stage| stage.refuse(stage.kernel.to_path_buf(), "pae"),
    },
    GuestTest {
        name: "boot::a_cpu_without_no_execute_starts_faults_and_flushes",
        about: "a CPU whose page tables cannot forbid execution: all CPUs start, and tests of faults, flushes and huge pages pass",
        run: |stage| stage.test_without_no_execute(),
    },
];

/// What the kernel with five levels is tried with: walks, and what it takes to drop translations.
const FIVE_LEVEL_TESTS: [&str; 3] = ["fault::", "shootdown::", "boot::"];

/// What the kernel is tried with on a CPU without no-execute: all that make entries for pages.
const NO_EXECUTE_TESTS: [&str; 5] = ["boot::", "fault::", "shootdown::", "race::huge", "race::mprotect"];

/// What these tests run on.
pub struct Stage<'a, 'b> {
    /// The workspace.
    pub workspace: &'a Workspace,
    /// QEMU.
    pub emulator: &'a Path,
    /// The kernel.
    pub kernel: &'a Path,
    /// How it was built.
    pub variant: Variant,
    /// The machine.
    pub machine: Machine,
    /// Builds other kernels and the disk image.
    pub builder: &'a mut Builder<'b>,
}

/// Runs those whose name contains the filter.
pub fn run(stage: &mut Stage<'_, '_>, filter: &str, progress: &mut Progress) {
    let arch = stage.variant.arch;
    let chosen: Vec<&GuestTest> = of(arch).filter(|test| test.name.contains(filter)).collect();
    let elsewhere = Arch::ALL.into_iter().filter(|other| *other != arch);
    let not_here: Vec<(&GuestTest, Arch)> = elsewhere
        .flat_map(|other| only(other).map(move |test| (test, other)))
        .filter(|(test, _)| test.name.contains(filter))
        .collect();
    if chosen.is_empty() && not_here.is_empty() {
        return;
    }
    let suite = format!("{SUITE} ({})", arch.word());
    progress.section(&format!("the kernel from outside, {}", arch.word()));
    for (test, other) in not_here {
        progress.ended(Case {
            suite: suite.clone(),
            name: test.name.to_owned(),
            outcome: Outcome::Skipped,
            duration: None,
            detail: vec![format!("only with a kernel for {}", other.word())],
        });
    }
    for test in chosen {
        if interrupt::requested() {
            return;
        }
        progress.started(test.name);
        let started = Instant::now();
        let (outcome, detail) = match (test.run)(stage) {
            Ok(()) => (Outcome::Passed, Vec::new()),
            Err(complaint) => (Outcome::Failed, complaint),
        };
        progress.ended(Case {
            suite: suite.clone(),
            name: test.name.to_owned(),
            outcome,
            duration: Some(started.elapsed()),
            detail,
        });
    }
}

impl Stage<'_, '_> {
    /// Has the kernel go wrong in one way and checks how that was judged.
    fn misbehave(&mut self, kind: &str, expected: fn(&Run) -> bool) -> Result<(), Complaint> {
        self.expect(Task::Misbehave { kind: kind.to_owned() }, expected)
    }

    /// Has a kernel with `debug-locks` use a lock in a wrong way, and looks for `says` in its report.
    fn misuse(&mut self, kind: &str, says: &[&str]) -> Result<(), Complaint> {
        self.panic_in(Variant { debug_locks: true, ..self.variant }, kind, "lock rule broken", says)
    }

    /// Has a kernel built so go wrong in a way that makes it panic, and looks for `says` in the line with `mark`.
    fn panic_in(&mut self, variant: Variant, kind: &str, mark: &str, says: &[&str]) -> Result<(), Complaint> {
        let kernel = self.builder.kernel(variant).map_err(|error| vec![error.to_string()])?;
        // A CPU that is alone may do what others would wait for.
        let machine = Machine { cpus: self.machine.cpus.max(2), ..self.machine };
        let task = Task::Misbehave { kind: kind.to_owned() };
        let plan = self.plan(task, Medium::Pvh(kernel.clone()), machine);
        let run = self.run(&Plan { timeout: Some(SHORT), ..plan })?;
        let report = run.ended.transcript.errors.iter().find(|error| error.contains(mark));
        let silent = |part: &&&str| !report.is_some_and(|report| report.contains(**part));
        match says.iter().find(silent) {
            None if run.verdict == Verdict::Panicked => Ok(()),
            None => Err(self.complain("this is not how it should have ended", &run, &kernel)),
            Some(part) => Err(self.complain(&format!("the report does not say {part:?}"), &run, &kernel)),
        }
    }

    fn expect(&mut self, task: Task, expected: fn(&Run) -> bool) -> Result<(), Complaint> {
        let plan = self.plan(task, Medium::Pvh(self.kernel.to_path_buf()), self.machine);
        let run = self.run(&Plan { timeout: Some(SHORT), ..plan })?;
        if expected(&run) {
            Ok(())
        } else {
            Err(self.complain("this is not how it should have ended", &run, self.kernel))
        }
    }

    fn run_twice(&mut self) -> Result<(), Complaint> {
        let clock = Clock::Instructions { shift: REPEATED_SHIFT };
        let machine = Machine { clock, accelerator: Accelerator::Tcg, ..self.machine };
        let task = Task::Test { filter: REPEATED.to_owned() };
        let plan = self.plan(task, Medium::Pvh(self.kernel.to_path_buf()), machine);
        let mut logs = Vec::new();
        for _ in 0..2 {
            let run = self.run(&plan)?;
            if !matches!(run.verdict, Verdict::Passed | Verdict::Failed) {
                return Err(self.complain("the run did not end by itself", &run, self.kernel));
            }
            let path = run.saved.serial();
            logs.push(fs::read(&path).map_err(|error| vec![format!("cannot read {}: {error}", path.display())])?);
        }
        match first_difference(&logs[0], &logs[1]) {
            None => Ok(()),
            Some((line, one, other)) => Err(vec![format!("line {line} differs:"), one, other]),
        }
    }

    fn test_single_lock(&mut self) -> Result<(), Complaint> {
        let variant = Variant { locks: Locks::Single, ..self.variant };
        let kernel = self.builder.kernel(variant).map_err(|error| vec![error.to_string()])?;
        let plan = self.plan(Task::Test { filter: String::new() }, Medium::Pvh(kernel.clone()), self.machine);
        let run = self.run(&plan)?;
        let single = run.ended.transcript.boot.as_ref().is_some_and(|boot| boot.build == variant.name());
        if run.verdict.passed() && single {
            return Ok(());
        }
        let failed = run.ended.transcript.tests.iter().filter(|test| test.status == TestStatus::Failed);
        let failed = failed.map(|test| format!("failed: {}: {}", test.name, test.diagnostics.join("; ")));
        let symbols = Symbols::load(&kernel, self.workspace.root());
        Err(failed.chain(postmortem::report(&run, &symbols)).collect())
    }

    fn five_level_kernel(&mut self) -> Result<PathBuf, Complaint> {
        let variant = Variant { levels: Levels::Five, ..self.variant };
        self.builder.kernel(variant).map_err(|error| vec![error.to_string()])
    }

    fn test_five_levels(&mut self) -> Result<(), Complaint> {
        let kernel = self.five_level_kernel()?;
        self.pass(&kernel, self.machine, &FIVE_LEVEL_TESTS)
    }

    fn test_without_no_execute(&mut self) -> Result<(), Complaint> {
        let machine = Machine { lacks: Some("nx"), ..self.machine };
        self.pass(self.kernel, machine, &NO_EXECUTE_TESTS)
    }

    /// Runs the tests of each of `filters`, which shall pass.
    fn pass(&mut self, kernel: &Path, machine: Machine, filters: &[&str]) -> Result<(), Complaint> {
        for filter in filters {
            let plan =
                self.plan(Task::Test { filter: (*filter).to_owned() }, Medium::Pvh(kernel.to_path_buf()), machine);
            let run = self.run(&plan)?;
            if !run.verdict.passed() {
                return Err(self.complain("the tests should have passed", &run, kernel));
            }
        }
        Ok(())
    }

    fn refuse_four_levels(&mut self) -> Result<(), Complaint> {
        let kernel = self.five_level_kernel()?;
        self.refuse(kernel, "la57")
    }

    /// Boots `kernel` on a CPU that lacks a feature it needs.
    fn refuse(&mut self, kernel: PathBuf, lacks: &'static str) -> Result<(), Complaint> {
        let machine = Machine { lacks: Some(lacks), ..self.machine };
        let plan = self.plan(Task::List { filter: String::new() }, Medium::Pvh(kernel.clone()), machine);
        let run = self.run(&Plan { timeout: Some(SHORT), ..plan })?;
        let errors = &run.ended.transcript.errors;
        if run.verdict == Verdict::BootFailed && errors.len() == 1 {
            Ok(())
        } else {
            Err(self.complain("it should have been refused with one line", &run, &kernel))
        }
    }

    fn boot_image(&mut self) -> Result<(), Complaint> {
        let firmware = ovmf::require().map_err(|error| vec![error.to_string()])?;
        let image = self.workspace.out("latchwork.img");
        // The boot loader sets up four levels.
        let kernel = match self.variant.levels {
            Levels::Four => self.kernel.to_path_buf(),
            Levels::Five => {
                let variant = Variant { levels: Levels::Four, ..self.variant };
                self.builder.kernel(variant).map_err(|error| vec![error.to_string()])?
            }
        };
        self.builder.image(&kernel, &image).map_err(|error| vec![error.to_string()])?;
        let task = Task::List { filter: String::new() };
        let run = self.run(&self.plan(task, Medium::Uefi(image, firmware), self.machine))?;
        let boot = run.ended.transcript.boot.as_ref();
        let all_up = boot.is_some_and(|boot| boot.boot == "uefi" && boot.cpus == self.machine.cpus);
        if run.verdict.passed() && all_up {
            Ok(())
        } else {
            Err(self.complain("it should have started all CPUs by UEFI and ended well", &run, &kernel))
        }
    }

    fn plan(&self, task: Task, medium: Medium, machine: Machine) -> Plan {
        let (margin, log) = (timing::MARGIN, Level::Info);
        Plan { machine, medium, task, seed: 1, timeout: None, margin, log, gdb: None, counts: None }
    }

    fn run(&self, plan: &Plan) -> Result<Run, Complaint> {
        runner::run(self.workspace, self.emulator, plan, &mut ()).map_err(|error| vec![error.to_string()])
    }

    /// What is wrong with a run of `kernel`, and how it ended.
    fn complain(&self, what: &str, run: &Run, kernel: &Path) -> Complaint {
        let symbols = Symbols::load(kernel, self.workspace.root());
        std::iter::once(what.to_owned()).chain(postmortem::report(run, &symbols)).collect()
    }
}

/// The first line in which two logs differ: its number, and both.
fn first_difference(one: &[u8], other: &[u8]) -> Option<(usize, String, String)> {
    if one == other {
        return None;
    }
    let text =
        |line: Option<&[u8]>| line.map_or("(end of log)".into(), |line| String::from_utf8_lossy(line).into_owned());
    let (mut left, mut right) = (one.split(|&byte| byte == b'\n'), other.split(|&byte| byte == b'\n'));
    let mut number = 1;
    loop {
        let (a, b) = (left.next(), right.next());
        if a != b || a.is_none() {
            return Some((number, text(a), text(b)));
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        assert_eq!(first_difference(b"a\nb\n", b"a\nb\n"), None);
        let differs = |one: &[u8], other: &[u8]| first_difference(one, other).map(|(line, ..)| line);
        assert_eq!(differs(b"a\nb\n", b"a\nc\n"), Some(2));
        assert_eq!(differs(b"a\n", b"a\nb"), Some(2));
        assert_eq!(differs(b"a", b"a\nb"), Some(2));
        assert_eq!(differs(b"", b"x"), Some(1));
    }
}
