//! The rules that can be broken. Where several tests are named, each of them must notice by itself.

mod copies;
mod faults;
mod going;
mod locks;

use super::{Sabotage, Suite, Test};
use crate::build::Arch;

const fn host(name: &'static str) -> Test {
    Test { suite: Suite::Host, name }
}

const fn loom(file: &'static str, name: &'static str) -> Test {
    Test { suite: Suite::Loom(file), name }
}

const fn schedules(name: &'static str) -> Test {
    Test { suite: Suite::Schedules, name }
}

const fn x86_64(name: &'static str) -> Test {
    Test { suite: Suite::Kernel(Arch::X86_64), name }
}

const fn i686_pae(name: &'static str) -> Test {
    Test { suite: Suite::Kernel(Arch::I686Pae), name }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Sabotage> {
    [faults::RULES, going::RULES, copies::RULES, locks::RULES].into_iter().flatten()
}
