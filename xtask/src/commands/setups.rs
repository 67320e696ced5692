//! Which kernels `cargo xtask test` takes, on which machines, and what each is called in the results.

use anyhow::Result;

use super::guest;
use crate::build::{Arch, Levels, Locks, Variant};
use crate::cli::{self, Guest};
use crate::machine::Machine;

/// A kernel and a machine its tests run on.
pub struct Setup {
    /// The kernel.
    pub variant: Variant,
    /// The machine.
    pub machine: Machine,
    /// Its processor, and what sets it apart from the usual ones.
    pub label: String,
}

/// CPUs on which the usual build is shown.
const SIZES: [u32; 4] = [1, 2, 4, 8];

/// Processors whose kernels are to be tested: all, if none is named.
pub fn arches(options: &Guest) -> Vec<Arch> {
    // A kernel that is given, and one to be debugged, is one; five levels are of one processor.
    let is_one = options.kernel.is_some() || options.gdb || options.variant.levels == Levels::Five;
    match options.variant.arch {
        Some(arch) => vec![arch],
        None if is_one => vec![Arch::X86_64],
        None => Arch::ALL.to_vec(),
    }
}

/// What the kernel's tests run on, of each processor the usual one first.
///
/// # Errors
/// When there is no such kernel or machine.
pub fn of(options: &cli::Test) -> Result<Vec<Setup>> {
    let mut setups = Vec::new();
    for arch in arches(&options.guest) {
        let chosen = guest::variant(&cli::Variant { arch: Some(arch), ..options.guest.variant.clone() })?;
        let machine = guest::machine(&options.guest, arch)?;
        if !options.all_configs {
            setups.push(Setup { variant: chosen, machine, label: label(chosen, None) });
            continue;
        }
        let variants = Variant::all(arch, chosen.profile);
        setups.extend(variants.map(|variant| Setup { variant, machine, label: label(variant, None) }));
        let sizes = SIZES.into_iter().filter(|cpus| *cpus != machine.cpus);
        setups.extend(sizes.map(|cpus| Setup {
            variant: chosen,
            machine: Machine { cpus, ..machine },
            label: label(chosen, Some(cpus)),
        }));
    }
    Ok(setups)
}

/// What a build is called, and a machine with another number of CPUs than the usual one.
fn label(variant: Variant, cpus: Option<u32>) -> String {
    let locks = (!variant.has_usual_locks()).then(|| variant.name());
    let levels = (variant.levels == Levels::Five).then(|| "5 levels".to_owned());
    let cpus = cpus.map(|cpus| format!("{cpus} CPU{}", if cpus == 1 { "" } else { "s" }));
    let parts = [Some(variant.arch.word().to_owned()), locks, levels, cpus];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Builds of `mm` besides the usual one whose tests run on the host, if the first kernel is `chosen`.
pub fn of_host(options: &cli::Test, chosen: Variant) -> Vec<Variant> {
    let others = Variant::all(chosen.arch, chosen.profile).filter(|variant| !variant.has_usual_locks());
    if options.all_configs {
        return others.collect();
    }
    // One lock by two names is where the usual build cannot go wrong.
    others.filter(|variant| *variant == chosen || (variant.locks == Locks::Single && !variant.debug_locks)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn options(words: &str) -> cli::Test {
        match Cli::try_parse_from(["xtask", "test"].into_iter().chain(words.split_ascii_whitespace())) {
            Ok(Cli { command: Command::Test(options) }) => options,
            Ok(_) => unreachable!("that is test"),
            Err(error) => panic!("{error}"),
        }
    }

    fn labels(words: &str) -> Vec<String> {
        of(&options(words)).unwrap().into_iter().map(|setup| setup.label).collect()
    }

    #[test]
    fn both_kernels_are_tested_unless_one_is_named_or_can_be_meant() {
        for words in ["", "--repeat 3", "--schedules 3", "--deterministic", "--smp 2", "--mem 2G", "--debug"] {
            assert_eq!(labels(words), ["x86_64", "i686-pae"], "{words}");
        }
        for words in ["--arch x86_64", "--gdb", "--kernel /proc/self/exe"] {
            assert_eq!(labels(words), ["x86_64"], "{words}");
        }
        for words in ["--arch i686-pae", "--arch i686-pae --gdb", "--arch i686-pae --kernel /proc/self/exe"] {
            assert_eq!(labels(words), ["i686-pae"], "{words}");
        }
        assert_eq!(labels("--levels 5"), ["x86_64, 5 levels"]);
        assert_eq!(labels("--single-lock"), ["x86_64, single", "i686-pae, single"]);
    }

    #[test]
    fn each_kernel_has_a_machine_of_its_own() {
        let setups = of(&options("--smp 3")).unwrap();
        assert_eq!(setups.iter().map(|setup| setup.machine.cpus).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(setups.iter().map(|setup| setup.machine.memory_mib).collect::<Vec<_>>(), [512, 6144]);
        assert!(setups.iter().all(|setup| setup.machine.arch == setup.variant.arch));
        // More than PAE takes is refused, unless it is for the other.
        for (words, taken) in [("", false), ("--arch x86_64", true)] {
            let mut options = options(words);
            options.guest.mem = Some(64 << 10);
            assert_eq!(of(&options).is_ok(), taken, "{words}");
        }
    }

    #[test]
    fn all_configurations_are_those_of_both_kernels() {
        let own = |arch: &str| {
            let parts = [
                "",
                ", split-pte",
                ", single",
                ", split+debug",
                ", split-pte+debug",
                ", single+debug",
                ", 1 CPU",
                ", 2 CPUs",
            ];
            parts.into_iter().chain([", 4 CPUs"]).map(|part| format!("{arch}{part}")).collect::<Vec<_>>()
        };
        assert_eq!(labels("--all-configs"), [own("x86_64"), own("i686-pae")].concat());
        assert_eq!(labels("--all-configs --arch i686-pae"), own("i686-pae"));
        let of_host = of_host(&options("--all-configs"), of(&options("")).unwrap()[0].variant);
        assert_eq!(of_host.len(), 5);
    }
}
