//! A whole life of an address space and its child.

use super::{Failure, far, page, pages, table_pages};
use crate::address_space::{Mapping, Mm};
use crate::fault::handle_mm_fault;
use crate::machine::Machine;
use crate::memory::Memory;
use crate::object::Object;
use crate::pgtable::Protection;
use crate::vma::Access;

/// Maps, faults, forks, lets the child store, moves, unmaps and ends, as far as there is memory for it. Two tables, an object
/// across a border of its tree, pages copied, reused, zero and fresh, and a move to where no table of any level is.
///
/// # Errors
///
/// The first [`Failure`].
pub fn live<M: Machine>(memory: &'static Memory<M>) -> Result<(), Failure> {
    let (table, far) = (table_pages::<M>(), far::<M>() + table_pages::<M>() - 2);
    let touch = |mm: &Mm<M>, number, access| handle_mm_fault(mm, page(number), access);
    let mm = Mm::create(memory)?;
    mm.mmap(pages(table - 4, table + 4), Protection::READ_WRITE, Mapping::Anonymous)?;
    let object = Object::create(memory, 100)?;
    let shared = Mapping::Object { object, first_page: 60 };
    mm.mmap(pages(table + 0x100, table + 0x108), Protection::READ_WRITE, shared)?;
    for number in [table - 4, table - 1, table, table + 0x101, table + 0x106] {
        touch(&mm, number, Access::Write)?;
    }
    touch(&mm, table + 3, Access::Read)?;
    let child = mm.fork()?;
    for number in [table - 4, table, table + 2, table + 3, table + 0x105] {
        touch(&child, number, Access::Write)?;
    }
    touch(&mm, table - 4, Access::Write)?;
    mm.mremap(pages(table - 2, table + 2), pages(far, far + 6))?;
    touch(&mm, far + 2, Access::Write)?;
    touch(&mm, far + 5, Access::Write)?;
    child.mprotect(pages(table - 3, table + 1), Protection::READ)?;
    child.munmap(pages(table - 1, table + 2))?;
    Ok(())
}
