use arch_x86::interrupts;
use arch_x86::layout::STACKS;
use arch_x86::user_access::{
    AccessFault, USER_END, UserAddr, copy_from, copy_to, fetch_add_u64, probe_kernel_word, read_u64, write_u64,
};

use crate::harness::{Stop, TestContext, ktest, ktest_assert, ktest_assert_eq};

/// An address in the user half at which these tests map nothing.
const NOWHERE: usize = 0x1234_5000;

fn user(address: usize) -> Result<UserAddr, Stop> {
    UserAddr::new(address).ok_or_else(|| Stop::failed(format_args!("{address:#x} is no user address")))
}

ktest! {
    /// An unmapped user address gives each accessor an error, and the kernel goes on.
    fn an_unmapped_user_address_is_an_error(_t: &TestContext) {
        let nowhere = user(NOWHERE)?;
        ktest_assert_eq!(read_u64(nowhere), Err(AccessFault::Fault));
        ktest_assert_eq!(write_u64(nowhere, 1), Err(AccessFault::Fault));
        ktest_assert_eq!(fetch_add_u64(nowhere, 1), Err(AccessFault::Fault));
        ktest_assert_eq!(copy_from(&mut [0; 21], nowhere), Err(AccessFault::Fault));
        ktest_assert_eq!(copy_to(nowhere, &[0; 21]), Err(AccessFault::Fault));
        ktest_assert_eq!(copy_to(nowhere, &[0; 3]), Err(AccessFault::Fault));
    }

    /// The accessors refuse a kernel address, and a range that runs out of the user half, before they touch anything.
    fn a_kernel_address_is_refused(_t: &TestContext) {
        let kernel = (&raw const TARGET).addr();
        ktest_assert_eq!(UserAddr::new(kernel), None);
        ktest_assert_eq!(UserAddr::new(USER_END), None);
        ktest_assert_eq!(UserAddr::new(usize::MAX), None);
        let last = user(USER_END - 4)?;
        ktest_assert_eq!(read_u64(last), Err(AccessFault::NotUser));
        ktest_assert_eq!(write_u64(last, 0), Err(AccessFault::NotUser));
        ktest_assert_eq!(fetch_add_u64(last, 0), Err(AccessFault::NotUser));
        ktest_assert_eq!(copy_from(&mut [0; 5], last), Err(AccessFault::NotUser));
        ktest_assert_eq!(copy_to(last, &[0; 5]), Err(AccessFault::NotUser));
    }

    /// An empty copy touches nothing, wherever it points.
    fn an_empty_copy_succeeds(_t: &TestContext) {
        ktest_assert_eq!(copy_from(&mut [], user(NOWHERE)?), Ok(()));
        ktest_assert_eq!(copy_to(user(NOWHERE)?, &[]), Ok(()));
    }

    /// After a failed access the user half is closed again and interrupts are as they were.
    fn a_failed_access_leaves_nothing_behind(_t: &TestContext) {
        let nowhere = user(NOWHERE)?;
        let failed = read_u64(nowhere);
        let flags = interrupts::flags();
        ktest_assert_eq!(failed, Err(AccessFault::Fault));
        ktest_assert_eq!(flags & interrupts::FLAG_ALIGNMENT_CHECK, 0);
        ktest_assert!(interrupts::enabled());
        let (failed, enabled) = interrupts::without(|| (read_u64(nowhere), interrupts::enabled()));
        ktest_assert_eq!(failed, Err(AccessFault::Fault));
        ktest_assert!(!enabled);
    }

    /// A probe of kernel memory reads what is mapped, and says so where nothing is.
    fn a_probe_survives_an_unmapped_address(_t: &TestContext) {
        ktest_assert_eq!(probe_kernel_word((&raw const TARGET).addr()), Some(TARGET));
        ktest_assert_eq!(probe_kernel_word(STACKS.start), None);
        ktest_assert_eq!(probe_kernel_word(NOWHERE), None);
    }
}

static TARGET: usize = 0x1a7c4;
