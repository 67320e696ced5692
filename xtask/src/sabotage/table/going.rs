//! Pages and tables that go; memory that runs out.

use super::{host, loom, schedules, x86_64};
use crate::sabotage::Sabotage;

pub const RULES: &[Sabotage] = &[
    // Pages and tables that go.
    Sabotage {
        name: "free-before-flush",
        breaks: "pages are given back before TLBs have forgotten them (I30, R20)",
        noticed_by: &[
            host("gather::tests::pages_of_many_tables_are_flushed_once"),
            host("fault::tests::races::munmap_races_with_faults"),
            loom("loom_gather", "an_unmapped_page_is_freed_when_no_tlb_has_it"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "nested-flush",
        breaks: "what another gather has taken out and not flushed is taken for flushed (R21)",
        noticed_by: &[
            host("gather::tests::a_gather_that_finds_anothers_work_unflushed_flushes_it"),
            loom("loom_gather", "who_has_dropped_a_page_finds_it_no_more"),
            x86_64("race::reclaim::advice_flushes_what_other_advice_has_not_flushed_yet"),
            schedules("nobody_reads_what_was_dropped"),
        ],
    },
    Sabotage {
        name: "grace-period",
        breaks: "a grace period waits for nobody (I10, I11, R4, R5)",
        noticed_by: &[
            host("gather::tests::tables_of_every_level_wait_for_their_readers"),
            host("address_space::advise::tests::a_lockless_reader_keeps_a_table_that_was_taken_away"),
            loom("loom_lock", "a_reader_never_meets_what_was_freed_after_a_grace_period"),
            loom("loom_helpers", "a_table_is_not_reused_under_a_lookup"),
            loom("loom_helpers", "a_lock_that_was_named_can_be_taken"),
            x86_64("race::reclaim::a_table_that_goes_is_not_freed_under_its_walker"),
            x86_64("race::munmap::a_table_that_is_read_is_not_freed"),
            schedules("lookers_against_munmap"),
        ],
    },
    Sabotage {
        name: "unlock-early",
        breaks: "a table is unhooked when its own lock has been given up (I16)",
        noticed_by: &[
            host("pgtable::offset::tests::a_locked_table_stays_in_its_slot"),
            loom("loom_fault", "a_locked_table_is_hooked"),
            schedules("rules::a_locked_table_stays_in_its_slot"),
        ],
    },
    Sabotage {
        name: "unhook",
        breaks: "a table goes and its slot still names it (I10)",
        noticed_by: &[
            host("address_space::advise::tests::a_lockless_reader_keeps_a_table_that_was_taken_away"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "floor-and-ceiling",
        breaks: "a table goes that a neighbouring region uses too (R35)",
        noticed_by: &[
            host("address_space::map::tests::a_table_shared_with_a_neighbour_survives"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "empty-recheck",
        breaks: "a table goes that a fault has filled again (R8)",
        noticed_by: &[
            loom("loom_reclaim", "a_table_that_is_filled_again_stays"),
            x86_64("race::reclaim::a_table_that_is_filled_again_stays"),
            schedules("faults_against_advice"),
        ],
    },
    Sabotage {
        name: "lock-order",
        breaks: "a PMD lock is waited for under a PTE lock (I22, R7)",
        noticed_by: &[
            host("address_space::advise::tests::a_table_is_cleared_and_unlinked_under_one_hold_of_its_lock"),
            loom("loom_reclaim", "a_table_that_goes_against_one_who_holds_its_pmd_lock"),
            schedules("faults_against_advice"),
        ],
    },
    Sabotage {
        name: "protect-flush",
        breaks: "a right is taken away and not flushed (I29)",
        noticed_by: &[
            host("tlb::tests::a_downgrade_is_flushed_and_an_upgrade_is_not"),
            x86_64("race::mprotect::a_fault_that_waits_to_give_a_right_gives_up_when_it_is_gone"),
            schedules("stores_against_mprotect"),
        ],
    },
    Sabotage {
        name: "split-flush",
        breaks: "the small pages of a huge one show while TLBs still have the large translation (I34)",
        noticed_by: &[
            host("fault::huge::tests::a_split_leaves_no_large_translation_behind"),
            schedules("stores_against_collapse"),
        ],
    },
    Sabotage {
        name: "split-none",
        breaks: "a huge entry that is split is none for a moment (I28, R12)",
        noticed_by: &[
            host("fault::huge::tests::races::an_entry_under_split_or_protection_change_is_never_seen_as_none"),
            loom("loom_huge", "an_entry_in_split_is_never_none"),
            x86_64("race::huge::splits_race_with_faults_and_lockless_walkers"),
            schedules("rules::an_entry_in_split_is_never_none"),
        ],
    },
    Sabotage {
        name: "collapse-grace-period",
        breaks: "a collapse empties a table under those who walk it (I10, R11)",
        noticed_by: &[
            host("address_space::collapse::tests::collapse_waits_for_lockless_walkers"),
            loom("loom_huge", "a_collapse_against_a_lockless_walker"),
            x86_64("race::huge::a_collapse_leaves_a_table_as_it_is_to_its_walkers"),
            schedules("rules::a_collapse_leaves_a_table_to_its_walkers"),
        ],
    },
    Sabotage {
        name: "sleep-under-lock",
        breaks: "a collapse waits for a grace period under the locks of its tables (I25)",
        noticed_by: &[
            host("address_space::collapse::tests::collapse_waits_for_lockless_walkers"),
            schedules("stores_against_collapse"),
        ],
    },
    Sabotage {
        name: "dirty-exchange",
        breaks: "an entry is read, then cleared, and what the CPU marks between is lost (I35, R19)",
        noticed_by: &[schedules("no_dirty_mark_is_lost")],
    },
    Sabotage {
        name: "report-order",
        breaks: "a reader may still read when its section shows as closed (I10, I11)",
        noticed_by: &[loom("loom_lock", "a_reader_never_meets_what_was_freed_after_a_grace_period")],
    },
    // Memory that runs out.
    Sabotage {
        name: "move-undone",
        breaks: "a move without memory leaves its region closed to faults (R34)",
        noticed_by: &[
            host("address_space::tests::sweep::every_place_that_allocates_is_seen_to_fail"),
            x86_64("injection::every_allocation_of_every_operation_may_fail"),
        ],
    },
    Sabotage {
        name: "move-tables",
        breaks: "a move without memory leaves the tables it has made (R34)",
        noticed_by: &[host("address_space::remap::tests::every_allocation_of_a_move_may_fail")],
    },
    Sabotage {
        name: "frame-left",
        breaks: "a frame that a fault has no use for is not given back (R34)",
        noticed_by: &[
            host("address_space::tests::sweep::every_place_that_allocates_is_seen_to_fail"),
            x86_64("injection::every_allocation_of_every_operation_may_fail"),
        ],
    },
];
