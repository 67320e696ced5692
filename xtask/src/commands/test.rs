//! `cargo xtask test` and `list`: the host's half, the kernel's half, one closing line.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Result, bail};

use super::guest;
use super::setups::{self, Setup};
use crate::build::{Arch, Builder, Locks, Variant};
use crate::cli::{self, Guest, Half, Sanitizer};
use crate::interrupt;
use crate::machine::{Clock, MAX_SHIFT, Machine, Task};
use crate::postmortem;
use crate::results;
use crate::runner::{Medium, Plan, Run};
use crate::sabotage;
use crate::setup::{objdump, qemu};
use crate::suite::citations::{self, Ran};
use crate::suite::guest::{self as guest_tests, Stage};
use crate::suite::host::{Depth, HostTests};
use crate::suite::kernel::{self, Round, Tested};
use crate::suite::progress::Progress;
use crate::suite::{Case, Outcome, Tally, sanitized};
use crate::symbolise::Symbols;
use crate::verdict::Verdict;
use crate::workspace::Workspace;

/// Runs the tests; whether all passed.
pub fn test(workspace: &Workspace, options: &cli::Test) -> Result<bool> {
    if let Some(sanitizer) = options.sanitize {
        return sanitized(workspace, options, sanitizer);
    }
    let setups = setups::of(options)?;
    let clock = setups[0].machine.clock;
    let rounds = rounds(options, clock);
    // Options that say how often or under which clock the kernel runs mean nothing to the host's half.
    let kernel_alone =
        options.repeat.is_some() || options.schedules.is_some() || clock != Clock::Host || options.guest.gdb;
    let host = options.only.map_or(!kernel_alone, |half| half == Half::Host);
    let guest = options.only != Some(Half::Host);
    let depth = Depth { loom_bound: options.loom_bound, seeds: options.seeds };
    if !host && depth != Depth::default() {
        bail!("--loom-bound and --seeds are for tests of the host, of which none would run");
    }
    // Whether xtask sees what a kernel does is asked of those we built, each processor's first.
    let from_outside = !kernel_alone && options.guest.kernel.is_none();
    if guest {
        // Found or installed before anything long begins.
        setups.iter().try_for_each(|setup| require(setup.variant.arch, from_outside))?;
    }

    let filter = options.filter.as_deref().unwrap_or_default();
    let mut builder = Builder::new(workspace);
    let mut progress = Progress::new();
    let variants = setups::of_host(options, setups[0].variant);
    if host {
        progress.part(HOST);
        let tests = HostTests::new(workspace, filter, &variants).with_depth(depth);
        if let Err(error) = tests.run(builder.toolchains(), &mut progress) {
            progress.ended(broken("host", &error.to_string()));
        }
    }
    let mut no_match = false;
    for (number, setup) in setups.iter().enumerate().filter(|_| guest) {
        if interrupt::requested() {
            break;
        }
        progress.part(&setup.label);
        let emulator = &qemu::require(setup.variant.arch)?;
        let kernel = match kernel_of(&mut builder, &options.guest, setup.variant) {
            Ok(kernel) => kernel,
            Err(error) => {
                progress.ended(broken(&format!("kernel ({})", setup.label), &error.to_string()));
                continue;
            }
        };
        let half = KernelHalf { workspace, emulator, kernel: &kernel, options, filter, setup };
        no_match |= half.run(&rounds, &mut progress)?;
        let is_first = setups[..number].iter().all(|other| other.variant.arch != setup.variant.arch);
        if is_first && from_outside {
            let Setup { variant, machine, .. } = *setup;
            let kernel = kernel.as_path();
            let mut stage = Stage { workspace, emulator, kernel, variant, machine, builder: &mut builder };
            guest_tests::run(&mut stage, filter, &mut progress);
            if filter.is_empty() {
                let races = KernelHalf { filter: RACES, ..half };
                races.run(&FEW_SHIFTS.map(|shift| schedule(shift, options.guest.seed)), &mut progress)?;
            }
        }
    }
    if interrupt::requested() {
        bail!("interrupted");
    }
    // A filter or one processor leaves out what is cited; a kernel that was given may be any.
    let whole = setups::arches(&options.guest) == Arch::ALL;
    if filter.is_empty() && options.guest.kernel.is_none() && whole {
        progress.part(HOST);
        let usual = options.guest.smp >= CITED_CPUS && options.guest.mem.is_none();
        let ran = Ran { host, kernel: guest, outside: guest && from_outside, usual };
        check_citations(workspace, ran, &mut progress);
    }
    if progress.tally().cases().is_empty() && (no_match || !guest) {
        bail!("no test has a name with {filter:?} in it; cargo xtask list names them");
    }
    let tally = progress.close();
    save(options, &tally)?;
    Ok(tally.passed())
}

/// Runs `mm`'s host tests under a sanitizer; whether all passed.
fn sanitized(workspace: &Workspace, options: &cli::Test, sanitizer: Sanitizer) -> Result<bool> {
    let filter = options.filter.as_deref().unwrap_or_default();
    let variant = guest::variant(&options.guest.variant)?;
    let mut progress = Progress::new();
    sanitized::run(workspace, sanitizer, variant, filter, &mut progress)?;
    if progress.tally().cases().is_empty() {
        bail!("no test of mm has a name with {filter:?} in it; cargo xtask list names them");
    }
    let tally = progress.close();
    save(options, &tally)?;
    Ok(tally.passed())
}

/// What the closing lines call the host's half.
const HOST: &str = "host";

/// Finds or installs what the tests of a kernel for `arch` take, those of it `from_outside` if they run.
fn require(arch: Arch, from_outside: bool) -> Result<()> {
    qemu::require(arch)?;
    if arch == Arch::I686Pae && from_outside {
        objdump::require()?;
    }
    Ok(())
}

/// CPUs the tests that the documentation cites are written for.
const CITED_CPUS: u32 = 8;

/// Holds what the documentation says is shown against what has run.
fn check_citations(workspace: &Workspace, ran: Ran, progress: &mut Progress) {
    let read = |name: &str| {
        let text = std::fs::read_to_string(workspace.root().join(name));
        text.map_err(|error| format!("cannot read {name}: {error}"))
    };
    let documents: Result<String, String> = citations::DOCUMENTS.into_iter().map(read).collect();
    let sabotages: Vec<_> = sabotage::all().collect();
    let complaints = match documents {
        Ok(documents) => citations::complaints(&documents, progress.tally().cases(), &sabotages, ran),
        Err(complaint) => vec![complaint],
    };
    progress.ended(Case {
        suite: citations::SUITE.to_owned(),
        name: citations::NAME.to_owned(),
        outcome: if complaints.is_empty() { Outcome::Passed } else { Outcome::Failed },
        duration: None,
        detail: complaints,
    });
}

/// What is run how often: one clock and one seed per boot.
#[derive(Clone, Copy)]
struct RoundPlan {
    clock: Clock,
    seed: u64,
}

/// The tests that have a few deterministic schedules in each run, and these schedules: quick ones, since the more time an
/// instruction takes, the fewer of them tests wait for.
const RACES: &str = "race::";
const FEW_SHIFTS: [u8; 3] = [4, 6, 8];

fn schedule(shift: u8, seed: u64) -> RoundPlan {
    RoundPlan { clock: Clock::Instructions { shift }, seed }
}

fn rounds(options: &cli::Test, clock: Clock) -> Vec<RoundPlan> {
    let seed = options.guest.seed;
    if let Some(count) = options.schedules {
        let shifts = u32::from(MAX_SHIFT) + 1;
        // Each shift is a schedule of its own; when they run out, the next seed makes new ones of them.
        let numbered = |number| schedule((number % shifts) as u8, seed.wrapping_add(u64::from(number / shifts)));
        return (0..count).map(numbered).collect();
    }
    let repeat = options.repeat.unwrap_or(1);
    (0..repeat).map(|number| RoundPlan { clock, seed: seed.wrapping_add(u64::from(number)) }).collect()
}

/// The tests that need the kernel.
struct KernelHalf<'a> {
    workspace: &'a Workspace,
    emulator: &'a Path,
    kernel: &'a Path,
    options: &'a cli::Test,
    filter: &'a str,
    setup: &'a Setup,
}

/// What rounds came to.
#[derive(Default)]
struct Came {
    passed: usize,
    /// How to repeat each of those that did not pass.
    bad: Vec<String>,
    no_match: bool,
    interrupted: bool,
}

impl KernelHalf<'_> {
    /// Runs them; whether the kernel has no test of that name.
    fn run(&self, rounds: &[RoundPlan], progress: &mut Progress) -> Result<bool> {
        if self.options.guest.gdb {
            println!("{}", guest::debugger_line(self.kernel, self.options.guest.gdb_port));
        }
        let Self { workspace, emulator, kernel, setup, .. } = *self;
        let tested = Tested { workspace, emulator, kernel, label: &setup.label };
        let plans: Vec<Plan> = rounds.iter().map(|round| self.plan(round)).collect();
        let mut came = Came::default();
        // One guest whose clock counts instructions keeps one core busy.
        let beside = matches!(rounds, [RoundPlan { clock: Clock::Instructions { .. }, .. }, _, ..]);
        if beside {
            let shown = RefCell::new(&mut *progress);
            shown.borrow_mut().started("rounds");
            let hear = |number: usize, run| {
                let mut progress = shown.borrow_mut();
                progress.section(&self.title(number, rounds));
                let round = tested.show(&plans[number], run, &mut progress);
                self.judge(round, &rounds[number], &mut came, &mut progress);
                progress.started("rounds");
            };
            tested.run_beside(&plans, cores(), hear, || shown.borrow_mut().tick())?;
        } else {
            for (number, plan) in plans.iter().enumerate() {
                progress.section(&self.title(number, rounds));
                let round = tested.run(plan, progress)?;
                self.judge(round, &rounds[number], &mut came, progress);
                if came.no_match || came.interrupted {
                    break;
                }
            }
        }
        if came.no_match || came.interrupted {
            return Ok(came.no_match);
        }
        if rounds.len() > 1 {
            progress.note(&format!("{} of {} rounds passed", came.passed, rounds.len()));
        }
        came.bad.iter().for_each(|line| progress.note(&format!("to repeat: {line}")));
        Ok(false)
    }

    fn plan(&self, round: &RoundPlan) -> Plan {
        let machine = Machine { clock: round.clock, ..self.setup.machine };
        let task = Task::Test { filter: self.filter.to_owned() };
        let medium = Medium::Pvh(self.kernel.to_path_buf());
        guest::plan(&self.options.guest, machine, medium, task, round.seed)
    }

    fn title(&self, number: usize, rounds: &[RoundPlan]) -> String {
        let RoundPlan { clock, seed } = rounds[number];
        let machine = Machine { clock, ..self.setup.machine };
        let of = if rounds.len() > 1 { format!(", round {} of {}", number + 1, rounds.len()) } else { String::new() };
        format!("kernel tests on {machine}, {} locks, seed {seed}{of}", self.setup.variant.name())
    }

    fn judge(&self, came_of_it: Round, round: &RoundPlan, came: &mut Came, progress: &mut Progress) {
        match came_of_it {
            Round::NoMatch => came.no_match = true,
            Round::Ran(run) if run.verdict == Verdict::Interrupted => came.interrupted = true,
            Round::Ran(run) if run.verdict.passed() => {
                self.check_build(&run, progress);
                came.passed += 1;
            }
            Round::Ran(_) => came.bad.push(self.again(round)),
        }
    }

    /// The kernel that ran must be the one that was to be built.
    fn check_build(&self, run: &Run, progress: &mut Progress) {
        let built = run.ended.transcript.boot.as_ref().map(|boot| boot.build.as_str());
        let expected = self.setup.variant.name();
        if self.options.guest.kernel.is_none() && built != Some(expected.as_str()) {
            progress.ended(broken("kernel", &format!("built with {expected} locks, it says it has {built:?}")));
        }
    }

    /// What to type to see a round again.
    fn again(&self, round: &RoundPlan) -> String {
        let mut line = format!("cargo xtask test {} --only kernel --seed {}", self.filter, round.seed);
        if let Clock::Instructions { shift } = round.clock {
            line += &format!(" --deterministic {shift}");
        }
        line += &format!(" --smp {} --mem {}M", self.setup.machine.cpus, self.setup.machine.memory_mib);
        line += &self.setup.variant.options();
        line.replace("  ", " ")
    }
}

/// Names the tests, those of the host first. A test in both kernels is named once.
pub fn list(workspace: &Workspace, filter: Option<&str>, options: &Guest) -> Result<bool> {
    let filter = filter.unwrap_or_default();
    let mut builder = Builder::new(workspace);
    let single = Variant { locks: Locks::Single, debug_locks: false, ..guest::variant(&options.variant)? };
    let of_host = HostTests::new(workspace, filter, &[single]).list()?;
    let mut lines: Vec<String> = of_host.into_iter().map(|(suite, name)| format!("{suite} {name}")).collect();
    let (mut in_kernel, mut of_xtask) = (Vec::new(), Vec::new());
    for arch in setups::arches(options) {
        let variant = guest::variant(&cli::Variant { arch: Some(arch), ..options.variant.clone() })?;
        let Some(names) = kernel_names(workspace, &mut builder, options, variant, filter)? else {
            return Ok(false);
        };
        in_kernel.extend(names);
        let tests = guest_tests::of(arch).filter(|test| test.name.contains(filter));
        of_xtask.extend(tests.map(|test| format!("guest {}    {}", test.name, test.about)));
    }
    for line in in_kernel.into_iter().chain(of_xtask) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if citations::NAME.contains(filter) {
        let of = citations::DOCUMENTS.join(" and ");
        lines.push(format!("{} {}    the tables of {of}", citations::SUITE, citations::NAME));
    }
    if lines.is_empty() {
        bail!("no test has a name with {filter:?} in it");
    }
    lines.iter().for_each(|line| println!("{line}"));
    Ok(true)
}

/// The tests that a kernel says it has; `None`, and why on the terminal, if it says nothing.
fn kernel_names(
    workspace: &Workspace,
    builder: &mut Builder<'_>,
    options: &Guest,
    variant: Variant,
    filter: &str,
) -> Result<Option<Vec<String>>> {
    let machine = guest::machine(options, variant.arch)?;
    let emulator = qemu::require(variant.arch)?;
    let kernel = kernel_of(builder, options, variant)?;
    let task = Task::List { filter: filter.to_owned() };
    let plan = guest::plan(options, machine, Medium::Pvh(kernel.clone()), task, options.seed);
    let run = kernel::list(workspace, &emulator, &plan)?;
    let name = |(name, about): &(String, String)| format!("kernel {name}    {about}").trim_end().to_owned();
    match run.verdict {
        Verdict::Passed => Ok(Some(run.ended.transcript.listed.iter().map(name).collect())),
        // No kernel test has such a name.
        Verdict::BadCommandLine if !filter.is_empty() => Ok(Some(Vec::new())),
        _ => {
            let symbols = Symbols::load(&kernel, workspace.root());
            postmortem::report(&run, &symbols).iter().for_each(|line| eprintln!("{line}"));
            Ok(None)
        }
    }
}

/// How many guests of one busy core each run well beside each other.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The kernel to test: given, or built.
fn kernel_of(builder: &mut Builder<'_>, options: &Guest, variant: Variant) -> Result<PathBuf> {
    match &options.kernel {
        Some(kernel) => Ok(kernel.clone()),
        None => Ok(builder.kernel(variant)?),
    }
}

/// A half that could not be run is a failure, and the closing line counts it.
fn broken(suite: &str, why: &str) -> Case {
    Case {
        suite: suite.to_owned(),
        name: "(could not be run)".to_owned(),
        outcome: Outcome::Failed,
        duration: None,
        detail: why.lines().map(str::to_owned).collect(),
    }
}

fn save(options: &cli::Test, tally: &Tally) -> Result<()> {
    if let Some(path) = &options.junit {
        super::write(path, &results::junit(tally)?)?;
    }
    if let Some(path) = &options.json {
        super::write(path, &(results::json(tally)? + "\n"))?;
    }
    Ok(())
}
