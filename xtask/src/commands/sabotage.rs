//! `cargo xtask sabotage`: breaks each rule in turn and shows that the tests notice.

use std::time::Instant;

use anyhow::{Result, bail};

use super::guest;
use crate::build::Arch;
use crate::cli::{self, SabotageKind};
use crate::sabotage::{self, Kernel, Programs, Sabotage, Stage, Suite, Test};
use crate::setup::qemu;
use crate::workspace::Workspace;

/// A rule to be broken, and a test that must notice.
type Attempt = (&'static Sabotage, &'static Test);

/// Makes the attempts that the options choose; whether every one was caught.
pub fn sabotage(workspace: &Workspace, options: &cli::Sabotage) -> Result<bool> {
    let filter = options.filter.as_deref().unwrap_or_default();
    let attempts = attempts(filter, &options.only, options.once);
    if attempts.is_empty() {
        bail!("no sabotage of that kind has {filter:?} in its name; cargo xtask sabotage --list names them");
    }
    if options.list {
        for (sabotage, test) in attempts {
            println!("{}    {}    {test}", sabotage.name, sabotage.breaks);
        }
        return Ok(true);
    }
    let mut survived = Vec::new();
    let mut caught = 0;
    for ground in Ground::ALL {
        let chosen: Vec<Attempt> = attempts.iter().copied().filter(|(_, test)| Ground::of(test) == ground).collect();
        if chosen.is_empty() {
            continue;
        }
        let stage = ground.stage(workspace)?;
        println!("{:>12} nothing broken, {}", "----", ground.name());
        stage.control(&chosen.iter().map(|(_, test)| **test).collect::<Vec<_>>())?;
        println!("{:>12} one rule broken, {}", "----", ground.name());
        for (sabotage, test) in chosen {
            let started = Instant::now();
            let seen = stage.attempt(sabotage.name, test)?;
            let is_caught = seen.is_caught();
            let word = if is_caught { "CAUGHT" } else { "SURVIVED" };
            println!("{word:>12} [{:>8.3}s] {}: {test}", started.elapsed().as_secs_f64(), sabotage.name);
            println!("{:>25}{seen}", "");
            if is_caught {
                caught += 1;
            } else {
                survived.push((sabotage, test));
            }
        }
    }
    if !survived.is_empty() {
        println!("{:>12} survived:", "----");
        survived.iter().for_each(|(sabotage, test)| println!("{:>12} {}: {test}", "SURVIVED", sabotage.name));
    }
    println!("{caught} caught, {} survived", survived.len());
    Ok(survived.is_empty())
}

/// Each test of the kinds `only`, or of all, of each sabotage that has `filter` in its name; or `once` for each the quickest.
fn attempts(filter: &str, only: &[SabotageKind], once: bool) -> Vec<Attempt> {
    let is_asked_for = |test: &&Test| only.is_empty() || only.contains(&Ground::of(test).kind());
    let chosen = sabotage::all().filter(|sabotage| sabotage.name.contains(filter));
    let tests = |sabotage: &'static Sabotage| {
        let mut tests: Vec<&Test> = sabotage.noticed_by.iter().filter(is_asked_for).collect();
        if once {
            // Stable: of a ground's tests, the one that is named first.
            tests.sort_by_key(|test| Ground::of(test));
            tests.truncate(1);
        }
        tests.into_iter().map(move |test| (sabotage, test))
    };
    chosen.flat_map(tests).collect()
}

/// What is built and run together, the quick ones first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ground {
    Host,
    Loom,
    Schedules,
    Kernel(Arch),
}

impl Ground {
    const ALL: [Self; 5] =
        [Self::Host, Self::Loom, Self::Schedules, Self::Kernel(Arch::X86_64), Self::Kernel(Arch::I686Pae)];

    fn of(test: &Test) -> Self {
        match test.suite {
            Suite::Host => Self::Host,
            Suite::Loom(_) => Self::Loom,
            Suite::Schedules => Self::Schedules,
            Suite::Kernel(arch) => Self::Kernel(arch),
        }
    }

    fn kind(self) -> SabotageKind {
        match self {
            Self::Host => SabotageKind::Host,
            Self::Loom => SabotageKind::Loom,
            Self::Schedules => SabotageKind::Schedules,
            Self::Kernel(_) => SabotageKind::Kernel,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Loom => "loom",
            Self::Schedules => "schedules",
            Self::Kernel(arch) => arch.word(),
        }
    }

    /// Builds it.
    fn stage(self, workspace: &Workspace) -> Result<Box<dyn Stage + '_>> {
        Ok(match self {
            Self::Host => Box::new(Programs::host(workspace)?),
            Self::Loom => Box::new(Programs::loom(workspace)?),
            Self::Schedules => Box::new(Programs::schedules(workspace)?),
            Self::Kernel(arch) => Box::new(Kernel::build(workspace, qemu::require(arch)?, guest::usual_machine(arch))?),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_rule_is_found_by_a_part_of_its_name_and_where_it_is_noticed() {
        assert!(attempts("", &[], false).len() > attempts("", &[SabotageKind::Loom], false).len());
        assert!(attempts("recheck", &[], false).iter().all(|(sabotage, _)| sabotage.name.contains("recheck")));
        assert_eq!(attempts("no such rule", &[], false).len(), 0);
    }

    /// What CI runs.
    #[test]
    fn each_rule_that_tests_of_the_host_or_models_notice_is_broken_once() {
        let kinds = [SabotageKind::Host, SabotageKind::Loom];
        let rules =
            |attempts: Vec<Attempt>| attempts.into_iter().map(|(sabotage, _)| sabotage.name).collect::<Vec<_>>();
        let once = rules(attempts("", &kinds, true));
        let all: BTreeSet<&str> = rules(attempts("", &kinds, false)).into_iter().collect();
        assert_eq!(once.len(), all.len());
        assert_eq!(once.into_iter().collect::<BTreeSet<_>>(), all);
        let suites: Vec<Suite> = attempts("pte-recheck", &kinds, true).iter().map(|(_, test)| test.suite).collect();
        assert_eq!(suites, [Suite::Host], "the quickest");
        assert!(all.len() >= 15);
    }
}
