//! What CPUs have latched of a top table: the check that nobody runs on an entry that has changed (I38).
//!
//! An emulator that reads the entries anew at each walk hides a missing reload (spec 6.3). So the machine keeps a record of
//! what each CPU latched, and this compares.

use crate::address_space::Mm;
use crate::machine::Machine;
use crate::pgtable::{PagingMode, Table, pud_lock};

/// Compares what this CPU has latched of the top table of `mm` with what is there, if it has `mm` loaded, and not lazily. While
/// a change is under way nothing is said. Takes `page_table_lock` if there is a difference; interrupts are on.
///
/// # Errors
///
/// The index of an entry that is another than the CPU believes, though nobody is changing it.
pub fn check_latched<M: Machine>(mm: &Mm<M>) -> Result<(), usize> {
    if !M::Mode::LATCHED_TOP || compare(mm).is_ok() {
        return Ok(());
    }
    // Who fills an entry has all CPUs load it before he lets go of this lock. Who takes one out counts himself before he takes
    // the lock, and until all CPUs have loaded the table again.
    let _guard = pud_lock(mm);
    if mm.flush_pending().is_any() { Ok(()) } else { compare(mm) }
}

fn compare<M: Machine>(mm: &Mm<M>) -> Result<(), usize> {
    let machine = mm.machine();
    // So that the table is not loaded again between the two values.
    let irqs = machine.irq_save();
    let tlb = &machine.local().tlb;
    let mut outcome = Ok(());
    if tlb.has_loaded(mm.tlb()) && !tlb.is_lazy() {
        let top = Table::top(mm);
        let differs = |index: &usize| {
            let latched = machine.latched(*index).map(|raw| M::Mode::from_hardware(M::Mode::TOP, raw));
            latched.is_some_and(|latched| latched != top.slot_at(*index).load())
        };
        outcome = (0..M::Mode::entries(M::Mode::TOP)).find(differs).map_or(Ok(()), Err);
    }
    machine.irq_restore(irqs);
    outcome
}
