//! A page fault in the user half: from the CPU's words to `mm`'s.

use arch_x86::user_access::UserAddr;
use mm::address::VirtAddr;
use mm::fault::handle_mm_fault;
use mm::tlb::check_latched;
use mm::vma::Access;

use super::user;
use crate::trap::{FaultCode, Unresolved};

/// Serves a fault of the running thread; interrupts are on.
pub(super) fn handle(address: UserAddr, code: FaultCode) -> Result<(), Unresolved> {
    let access = if code.contains(FaultCode::FETCH) {
        Access::Execute
    } else if code.contains(FaultCode::WRITE) {
        Access::Write
    } else {
        Access::Read
    };
    user::with_current(|mm| {
        let mm = mm.ok_or(Unresolved)?;
        let outcome = handle_mm_fault(mm, VirtAddr(address.get() as u64), access);
        // The program goes on; a CPU with an old copy of a top table's entry would be back here for ever (I38).
        if let Err(index) = check_latched(mm) {
            panic!("entry {index} of the top table is another than this CPU has loaded (I38)");
        }
        outcome.map(|_| ()).map_err(|_| Unresolved)
    })
}
