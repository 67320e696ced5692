//! What must be true of the booted machine.

use arch_x86::cpu;
use arch_x86::kernel_map::{self, Mapping};
use arch_x86::layout::{self, KERNEL_HALF, StackSlot};
use mm::address::VirtAddr;

use super::{BOOT_STACK, image, info, mapped};
use crate::harness::{Stop, TestContext, TestResult, ktest, ktest_assert, ktest_assert_eq};

/// Looks at every mapping of the live tables; names the first that `wrong` picks, and how many there are.
fn no_mapping(complaint: &str, wrong: impl Fn(&Mapping) -> bool) -> TestResult {
    let (mut seen, mut found, mut first) = (0, 0, None);
    kernel_map::active().for_each(&mut |mapping| {
        seen += 1;
        if wrong(&mapping) {
            found += 1;
            first.get_or_insert(mapping);
        }
    });
    ktest_assert!(seen > 10, "only {seen} mappings were seen");
    ktest_assert!(found == 0, "{found} mappings are {complaint}; the first: {first:x?}");
    Ok(())
}

ktest! {
    /// A firmware's table may name any address: nothing is read at none, beyond what the loader maps, or past the end of all.
    fn only_what_the_loader_maps_is_read(_t: &TestContext) {
        const REACH: u64 = 1 << 20;
        ktest_assert!(mapped(0, REACH, 0, 4).is_none());
        ktest_assert!(mapped(0x1000, REACH, 0, 4).is_some_and(|bytes| bytes.cast::<u8>().addr().get() == 0x1000));
        ktest_assert!(mapped(0, REACH, REACH - 4, 4).is_some() && mapped(0, REACH, REACH - 3, 4).is_none());
        ktest_assert!(mapped(0, REACH, (1 << 32) + 0x1000, 4).is_none() && mapped(0, REACH, u64::MAX, 4).is_none());
    }

    /// No page of the live kernel tables is both writable and executable.
    fn no_page_is_writable_and_executable(_t: &TestContext) {
        if !cpu::has_no_execute() {
            return Err(Stop::skipped(format_args!("needs a CPU that can forbid execution")));
        }
        no_mapping("writable and executable", |mapping| mapping.writable && mapping.executable)?;
    }

    /// The kernel's tables map nothing in the user half, nothing for ring 3, and nothing outside the named windows.
    fn only_the_windows_are_mapped(_t: &TestContext) {
        no_mapping("in the user half", |mapping| !KERNEL_HALF.contains(mapping.start))?;
        no_mapping("for ring 3", |mapping| mapping.user)?;
        no_mapping("outside the windows", |mapping| !layout::WINDOWS.iter().any(|window| window.contains(mapping.start)))?;
    }

    /// Only the kernel's code is executable, and neither code nor constants can be written through the direct map.
    fn code_and_constants_are_read_only(_t: &TestContext) {
        let [code, constants, data] = image();
        let forbids = cpu::has_no_execute();
        no_mapping("executable", |mapping| {
            forbids && mapping.executable && !(code.start..code.end).contains(&mapping.start)
        })?;
        let map = kernel_map::active();
        for (part, writable) in [(&code, false), (&constants, false), (&data, true)] {
            for page in (part.start..part.end).step_by(mm::config::PAGE_SIZE) {
                let Some(mapping) = map.lookup(page) else {
                    return Err(Stop::failed(format_args!("{page:#x} of the image is not mapped")));
                };
                ktest_assert_eq!(mapping.writable, writable);
                let alias = map.lookup(layout::direct(mapping.frame_of(page)));
                ktest_assert!(
                    alias.is_some_and(|alias| alias.writable == writable && alias.executable != forbids),
                    "{page:#x} has the alias {alias:x?}"
                );
            }
        }
    }

    /// A stack is mapped, and the whole space between it and its neighbour below is not.
    fn stacks_stand_above_unmapped_guards(t: &TestContext) {
        let map = kernel_map::active();
        let here = (&raw const *t).addr();
        ktest_assert!(map.lookup(here).is_some_and(|mapping| mapping.writable));
        for number in 0..StackSlot::COUNT.min(256) {
            let Some(slot) = StackSlot::new(number) else { continue };
            let below = slot.bottom() - 1;
            ktest_assert!(map.lookup(below).is_none(), "the guard of stack {number} is mapped");
            ktest_assert_eq!(StackSlot::guarding(below), Some(slot));
            ktest_assert_eq!(StackSlot::guarding(slot.bottom()), None);
            ktest_assert_eq!(StackSlot::guarding(slot.top() - 1), None);
            ktest_assert_eq!(StackSlot::guarding(slot.top() - layout::STACK_BYTES - 4096), Some(slot));
        }
        for address in [BOOT_STACK.bottom(), BOOT_STACK.top() - 8] {
            ktest_assert!(map.lookup(address).is_some_and(|mapping| mapping.writable));
        }
    }

    /// The direct map shows RAM at its place: a static reads the same through it.
    fn the_direct_map_shows_ram(_t: &TestContext) {
        static PATTERN: u64 = 0x1a7c_b0a2_d00d_f00d;
        let address = (&raw const PATTERN).addr();
        let Some(mapping) = kernel_map::active().lookup(address) else {
            return Err(Stop::failed(format_args!("statics are not mapped")));
        };
        let alias = layout::direct(mapping.frame_of(address)) + address % mm::config::PAGE_SIZE;
        // SAFETY: the direct map shows the frame that holds `PATTERN`, which is never written.
        ktest_assert_eq!(unsafe { (alias as *const u64).read_volatile() }, PATTERN);
        ktest_assert!(kernel_map::active().lookup(layout::direct(layout::DIRECT_END)).is_none_or(|beyond| beyond.frame != layout::DIRECT_END));
    }

    /// A new top table gets every kernel entry and no other.
    fn the_kernel_half_is_copied_whole(_t: &TestContext) {
        use kernel_map::Slot;
        use mm::pgtable::{Entry, EntrySlot, Level, PagingMode};
        let index = |address: usize| layout::Mode::index(Level::Pgd, VirtAddr(address as u64));
        let table: [Slot; 512] = core::array::from_fn(|_| Slot::new(Entry::NONE));
        let (top, beyond) = table.split_at(layout::Mode::entries(Level::Pgd));
        kernel_map::copy_kernel_half(top);
        let present = |slot: &&Slot| slot.load().is_present();
        ktest_assert_eq!(top[..index(KERNEL_HALF.start)].iter().chain(beyond).filter(present).count(), 0);
        for window in layout::WINDOWS {
            ktest_assert!(top[index(window.start)].load().is_present(), "{window:x?} has no entry");
        }
        for (copy, entry) in top.iter().zip(kernel_map::active().top_entries()).skip(index(KERNEL_HALF.start)) {
            let (copy, entry) = (copy.load(), entry.load());
            ktest_assert_eq!((copy.is_present(), copy.pfn()), (entry.is_present(), entry.pfn()));
        }
    }

    /// The firmware's account of the machine is plausible: RAM, CPUs, the place of the local APICs.
    fn the_machine_is_plausible(t: &TestContext) {
        let info = info();
        ktest_assert!(info.ram_bytes >= 16 << 20);
        ktest_assert!(info.cpus.apic_ids.len() >= t.cpus());
        ktest_assert!(info.cpus.local_apic.is_multiple_of(4096) && info.cpus.local_apic != 0);
    }
}
