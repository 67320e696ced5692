//! Kernels that use mappings of high memory wrongly: what the log must say. Only PAE has high memory.

use super::{Complaint, GuestTest, Stage};
use crate::build::Variant;

/// One for each rule of mappings.
pub const TESTS: [GuestTest; 7] = [
    GuestTest {
        name: "verdict::ending_mappings_out_of_order_is_reported",
        about: "of two mappings of PTE tables the first is ended first: the CPU and both addresses",
        run: |stage| in_any_build(stage, "kmap-order", "ends the mapping at 0x", &["cpu ", " before its last at 0x"]),
    },
    GuestTest {
        name: "verdict::ending_a_mapping_twice_is_reported",
        about: "a mapping is ended that is none",
        run: |stage| in_any_build(stage, "kmap-twice", "ends the mapping at 0x", &["cpu ", ", and has none"]),
    },
    GuestTest {
        name: "verdict::one_mapping_too_many_is_reported",
        about: "a CPU maps a ninth table",
        run: |stage| in_any_build(stage, "kmap-depth", "has 8 frames mapped, and has no slot for", &["cpu "]),
    },
    GuestTest {
        name: "verdict::using_a_mapping_that_has_ended_is_reported",
        about: "a table is read after its mapping has been ended: a page fault",
        run: |stage| in_checked_build(stage, "kmap-stale", "page fault: read of kernel address 0x", &["not mapped"]),
    },
    GuestTest {
        name: "verdict::a_mapping_left_over_is_reported",
        about: "a thread ends with a mapping (I25)",
        run: |stage| in_checked_build(stage, "kmap-leak", "lock rule broken", &["waits for a context switch", KEPT]),
    },
    GuestTest {
        name: "verdict::a_mapping_kept_across_a_sleep_is_reported",
        about: "a thread sleeps with a mapping (I25)",
        run: |stage| {
            let place = "waits for block_while at kernel/src/misbehave/mappings.rs:";
            in_checked_build(stage, "kmap-sleep", "lock rule broken", &[place, KEPT])
        },
    },
    GuestTest {
        name: "verdict::a_mapping_left_by_an_interrupt_is_reported",
        about: "an interrupt's handler returns with a mapping",
        run: |stage| {
            in_checked_build(stage, "kmap-interrupt", "after a Call interrupt", &["had 0 frames mapped, and has 1"])
        },
    },
];

const KEPT: &str = " with 1 frames mapped: no mapping is kept across a sleep (I25)";

/// In the kernel as it is given.
fn in_any_build(stage: &mut Stage<'_, '_>, kind: &str, mark: &str, says: &[&str]) -> Result<(), Complaint> {
    stage.panic_in(stage.variant, kind, mark, says)
}

/// In one that checks what a CPU does while it holds locks or mappings.
fn in_checked_build(stage: &mut Stage<'_, '_>, kind: &str, mark: &str, says: &[&str]) -> Result<(), Complaint> {
    stage.panic_in(Variant { debug_locks: true, ..stage.variant }, kind, mark, says)
}
