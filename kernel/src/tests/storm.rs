//! The three phases of the storm in small, judged by its own oracles.

use crate::harness::{Stop, TestContext, TestResult, ktest};
use crate::memory::{Mm, memory};
use crate::smp;
use crate::workload::storm::{Figures, Findings, Phase, run_round};

const ROUNDS: usize = 3;

ktest! {
    /// Each CPU fills 2 MiB of its own: no page is lost, doubled or dirty, and all of it comes back.
    fn disjoint(t: &TestContext) {
        weather(t, &Phase::disjoint(t.cpus() as u64, 1))?;
    }

    /// All CPUs fill neighbouring pages of the same tables.
    fn same_table(t: &TestContext) {
        weather(t, &Phase::same_table(2))?;
    }

    /// All CPUs increment a counter in every page of one object, at two addresses.
    fn same_page(t: &TestContext) {
        weather(t, &Phase::same_page(256))?;
    }
}

fn weather(t: &TestContext, phase: &Phase) -> TestResult {
    let mut random = t.random();
    let (mut figures, mut findings) = (Figures::new(), Findings::new());
    let mm = Mm::create(memory())?;
    for _ in 0..ROUNDS {
        run_round(&mm, phase, smp::online(), random.next_u64(), &mut figures, &mut findings)?;
    }
    let mut checked = 0;
    for oracle in findings.oracles() {
        checked += oracle.checked;
        let first = oracle.first.as_deref().unwrap_or("");
        t.check(
            oracle.holds(),
            format_args!("{}: {} of {} failed; {first}", oracle.name, oracle.failed, oracle.checked),
        );
    }
    if checked == 0 || figures.faults() < phase.pages {
        return Err(Stop::failed(format_args!("only {} faults and {checked} checks", figures.faults())));
    }
    Ok(())
}
