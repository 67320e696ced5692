//! One fault at a time: what it shows, what it refuses.

use alloc::boxed::Box;

use arch_x86::layout::{self, Mode};
use arch_x86::user_access::{AccessFault, USER_END, UserAddr, copy_from, copy_to, read_u64, write_u64};
use mm::address::VirtAddr;
use mm::address_space::CollapseError;
use mm::fault::{FaultError, Resolution, handle_mm_fault};
use mm::pgtable::{PagingMode, Protection, pte_at};
use mm::stats::Counter;
use mm::vma::Access;

use super::support::{add, frame_at, map_anonymous, map_object, page, pages, read, user, write};
use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};
use crate::memory::{Mapping, Mm, Object, enter, memory, statistics};

ktest! {
    /// Anonymous memory that nobody has written reads as zero, and shows the zero page.
    fn untouched_anonymous_memory_reads_as_zero(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 16))?;
        let _user = enter(&mm);
        let mut bytes = [0xff; 64];
        copy_from(&mut bytes, user(3)?)?;
        ktest_assert_eq!(bytes, [0; 64]);
        ktest_assert_eq!(frame_at(&mm, 3), Some(memory().zero_page()));
    }

    /// Each page of anonymous memory that is written gets a frame of its own, which nobody else refers to.
    fn a_write_to_anonymous_memory_gets_a_frame_of_its_own(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 16))?;
        let _user = enter(&mm);
        write(0, 7)?;
        write(1, 8)?;
        ktest_assert_eq!((read(0)?, read(1)?), (7, 8));
        let (first, second) = (frame_at(&mm, 0), frame_at(&mm, 1));
        ktest_assert!(first.is_some() && first != second);
        for frame in [first, second].into_iter().flatten() {
            let descriptor = memory().memmap().page(frame);
            ktest_assert_eq!((descriptor.mapcount(), descriptor.refcount()), (1, 1));
        }
    }

    /// A write to a page that shows the zero page replaces it there, and leaves it zero for everyone else.
    fn a_write_after_a_read_replaces_the_zero_page(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 16))?;
        let _user = enter(&mm);
        ktest_assert_eq!((read(2)?, read(3)?), (0, 0));
        write(2, 9)?;
        ktest_assert_eq!((read(2)?, read(3)?), (9, 0));
        ktest_assert!(frame_at(&mm, 2) != Some(memory().zero_page()));
    }

    /// An object mapped twice shows the same frames at both places, and keeps what was written when it is unmapped.
    fn an_object_shows_one_page_at_all_its_addresses(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        let object = Object::create(memory(), 8)?;
        map_object(&mm, pages(0, 8), &object, 0)?;
        map_object(&mm, pages(600, 604), &object, 4)?;
        let _user = enter(&mm);
        ktest_assert_eq!(read(601)?, 0);
        write(5, 42)?;
        ktest_assert_eq!(read(601)?, 42);
        ktest_assert_eq!((frame_at(&mm, 5), frame_at(&mm, 601)), (object.resident(5), object.resident(5)));
        mm.munmap(pages(0, 1000))?;
        map_object(&mm, pages(0, 8), &object, 0)?;
        ktest_assert_eq!(read(5)?, 42);
    }

    /// Two address spaces that map one object see each other's writes.
    fn two_address_spaces_share_one_object(_t: &TestContext) {
        let object = Object::create(memory(), 4)?;
        let (one, other) = (Mm::create(memory())?, Mm::create(memory())?);
        map_object(&one, pages(0, 4), &object, 0)?;
        map_object(&other, pages(32, 36), &object, 0)?;
        {
            let _user = enter(&one);
            write(2, 11)?;
            ktest_assert_eq!(read(34), Err(AccessFault::Fault));
        }
        let _user = enter(&other);
        ktest_assert_eq!(add(34, 1)?, 11);
        ktest_assert_eq!((frame_at(&one, 2), frame_at(&other, 34)), (object.resident(2), object.resident(2)));
        let _back = enter(&one);
        ktest_assert_eq!(read(2)?, 12);
    }

    /// An address no region covers is an error for the accessor, before, between and behind regions.
    fn an_unmapped_address_is_an_error(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(16, 32))?;
        let _user = enter(&mm);
        for number in [0, 15, 32, 1 << 20] {
            ktest_assert_eq!(read(number), Err(AccessFault::Fault));
            ktest_assert_eq!(write(number, 1), Err(AccessFault::Fault));
            ktest_assert_eq!(handle_mm_fault(&mm, page(number), Access::Read), Err(FaultError::NotMapped));
        }
        // A copy that runs out of the region fails, though it begins inside.
        ktest_assert_eq!(copy_to(UserAddr::new(page(32).0 as usize - 8).ok_or("no address")?, &[1; 64]), Err(AccessFault::Fault));
    }

    /// A write to memory that may only be read is an error and changes nothing, whether a page shows there or not.
    fn a_write_to_read_only_memory_is_an_error(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        let object = Object::create(memory(), 1)?;
        mm.mmap(pages(0, 2), Protection::READ, Mapping::Anonymous)?;
        mm.mmap(pages(2, 3), Protection::READ, Mapping::Object { object: object.clone(), first_page: 0 })?;
        let _user = enter(&mm);
        ktest_assert_eq!((read(1)?, read(2)?), (0, 0));
        for number in 0..3 {
            ktest_assert_eq!(write(number, 1), Err(AccessFault::Fault));
            ktest_assert_eq!(handle_mm_fault(&mm, page(number), Access::Write), Err(FaultError::Forbidden));
            ktest_assert_eq!(read(number)?, 0);
        }
    }

    /// The accessors of the user half refuse an address of the kernel half or of neither half, and never touch it.
    fn a_kernel_address_is_refused_by_the_accessors(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        let _user = enter(&mm);
        let (own, top) = (0_u64, layout::KERNEL_HALF.start);
        for address in [(&raw const own).addr(), top, USER_END + 4096, USER_END, usize::MAX] {
            ktest_assert_eq!(UserAddr::new(address), None);
        }
        // The last address of the user half, from which a word would reach beyond.
        let last = UserAddr::new(USER_END - 1).ok_or("no address")?;
        ktest_assert_eq!(read_u64(last), Err(AccessFault::NotUser));
        ktest_assert_eq!(write_u64(last, 1), Err(AccessFault::NotUser));
        ktest_assert_eq!(copy_from(&mut [0; 64], last), Err(AccessFault::NotUser));
    }

    /// A split or a collapse at an address of the kernel is refused, and leaves the kernel's entries as they are.
    fn a_kernel_address_is_no_page_to_split_or_collapse(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        let _user = enter(&mm);
        let (on_heap, before) = (Box::new(7_u64), statistics());
        let own = VirtAddr((&raw const *on_heap).addr() as u64);
        for address in [own, Mode::USER_END, VirtAddr(usize::MAX as u64 & !0xfff)] {
            ktest_assert!(!mm.split_huge_page(address));
            ktest_assert_eq!(mm.collapse_huge_page(address), Err(CollapseError::NotAnonymous));
            ktest_assert_eq!(pte_at(&mm, address), None);
        }
        write(0, *on_heap)?;
        ktest_assert_eq!(read(0), Ok(7));
        ktest_assert_eq!(statistics().since(&before)[Counter::BadEntries], 0);
    }

    /// A thread in no address space reaches nothing, and one that leaves an address space is where it was before.
    fn a_thread_is_in_the_address_space_it_entered_last(_t: &TestContext) {
        ktest_assert_eq!(read(0), Err(AccessFault::Fault));
        let (outer, inner) = (Mm::create(memory())?, Mm::create(memory())?);
        map_anonymous(&outer, pages(0, 1))?;
        map_anonymous(&inner, pages(1, 2))?;
        let user = enter(&outer);
        write(0, 5)?;
        {
            let _user = enter(&inner);
            ktest_assert_eq!((read(0), read(1)), (Err(AccessFault::Fault), Ok(0)));
        }
        ktest_assert_eq!((read(0), read(1)), (Ok(5), Err(AccessFault::Fault)));
        drop(user);
        ktest_assert_eq!(read(0), Err(AccessFault::Fault));
    }

    /// A second fault for a page that is there already has nothing to do, and says so.
    fn a_fault_that_is_resolved_already_is_spurious(_t: &TestContext) {
        let mm = Mm::create(memory())?;
        map_anonymous(&mm, pages(0, 1))?;
        ktest_assert_eq!(handle_mm_fault(&mm, page(0), Access::Write), Ok(Resolution::AnonymousPage));
        ktest_assert_eq!(handle_mm_fault(&mm, page(0), Access::Write), Ok(Resolution::Spurious));
    }
}
