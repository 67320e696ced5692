//! Copies and moves; translations of other CPUs.

use super::{host, i686_pae, loom, schedules, x86_64};
use crate::sabotage::Sabotage;

pub const RULES: &[Sabotage] = &[
    // Copies and moves.
    Sabotage {
        name: "cow-references",
        breaks: "a page is written in place though another address space has it too (R18)",
        noticed_by: &[
            host("address_space::fork::tests::a_store_on_either_side_stays_there"),
            x86_64("race::copy::a_shared_page_is_copied_once"),
            schedules("stores_against_fork"),
            loom("loom_fork", "two_that_write_a_shared_page_make_one_copy"),
        ],
    },
    Sabotage {
        name: "cow-recheck",
        breaks: "a copy is installed over an entry that has changed meanwhile (R18)",
        noticed_by: &[
            host("address_space::fork::tests::races::a_shared_page_is_copied_once"),
            schedules("stores_against_fork"),
            loom("loom_fork", "two_that_write_a_shared_page_make_one_copy"),
        ],
    },
    Sabotage {
        name: "cow-flush",
        breaks: "a copy shows while TLBs still have the page it replaces (R17, R18)",
        noticed_by: &[
            host("address_space::fork::tests::races::a_shared_page_is_copied_once"),
            x86_64("race::copy::nobody_reads_a_page_once_its_copy_shows"),
            schedules("stores_against_fork"),
        ],
    },
    Sabotage {
        name: "fork-reference",
        breaks: "a page that is shared gets no second reference",
        noticed_by: &[
            host("address_space::fork::tests::both_show_one_page_that_neither_may_write"),
            schedules("stores_against_fork"),
        ],
    },
    Sabotage {
        name: "fork-flush",
        breaks: "a page is shared while TLBs still let it be written (R14)",
        noticed_by: &[
            host("address_space::fork::tests::a_store_on_either_side_stays_there"),
            schedules("stores_against_fork"),
        ],
    },
    Sabotage {
        name: "fork-detach",
        breaks: "faults of the parent go on while its pages are shared (R14)",
        noticed_by: &[
            host("address_space::fork::tests::races::a_store_that_faults_waits_for_the_fork"),
            schedules("rules::a_child_is_a_snapshot"),
        ],
    },
    Sabotage {
        name: "move-flush",
        breaks: "pages move and TLBs still have them at the old place (R15)",
        noticed_by: &[
            host("address_space::remap::tests::a_mapping_moves_with_its_pages"),
            schedules("stores_against_mremap"),
        ],
    },
    Sabotage {
        name: "lock-twice",
        breaks: "the second of two locks is taken though it is the first (I23, R15)",
        noticed_by: &[
            host("address_space::remap::tests::a_mapping_moves_with_its_pages"),
            loom("loom_fork", "a_move_within_one_table_against_a_fault"),
            x86_64("race::remap::pages_move_within_one_table"),
        ],
    },
    // Translations of other CPUs.
    Sabotage {
        name: "forget-a-cpu",
        breaks: "one CPU that has the address space loaded is not told of a flush (I29)",
        noticed_by: &[
            host("tlb::tests::an_unmapping_of_many_regions_is_one_shootdown"),
            host("fault::tests::races::munmap_races_with_faults"),
            loom("loom_tlb", "mutual_shootdown"),
            x86_64("shootdown::a_stale_translation_is_never_usable_after_munmap"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "answers",
        breaks: "a flush does not wait for the CPUs it has told (I29)",
        noticed_by: &[
            host("fault::tests::races::munmap_races_with_faults"),
            loom("loom_tlb", "mutual_shootdown"),
            x86_64("shootdown::an_unmapping_waits_for_a_cpu_that_does_not_answer_yet"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "flush-fence",
        breaks: "a flusher may read the mask before its generation shows (I32, R23)",
        noticed_by: &[loom("loom_tlb", "switch_against_flush"), loom("loom_tlb", "return_from_lazy_against_flush")],
    },
    Sabotage {
        name: "join-fence",
        breaks: "a CPU may read the generation before the mask shows it (I32, R23)",
        noticed_by: &[
            loom("loom_tlb", "switch_against_flush"),
            loom("loom_tlb", "a_top_entry_that_is_filled_is_known_to_whoever_comes"),
        ],
    },
    Sabotage {
        name: "generations",
        breaks: "a CPU drops single pages though it has missed a flush (I31, R24)",
        noticed_by: &[loom("loom_tlb", "generations_out_of_order"), schedules("faults_against_munmap")],
    },
    Sabotage {
        name: "lazy-cpus",
        breaks: "lazy CPUs walk tables that are freed (I33, R25)",
        noticed_by: &[
            host("tlb::tests::a_flush_that_frees_tables_reaches_lazy_cpus"),
            loom("loom_tlb", "lazy_cpu_against_freed_tables"),
            x86_64("tlb::lazy_cpus_leave_when_a_table_goes"),
            schedules("everything_at_once"),
        ],
    },
    Sabotage {
        name: "lazy-return",
        breaks: "a CPU that was lazy goes on with what it had cached (R26)",
        noticed_by: &[
            host("tlb::tests::a_lazy_cpu_is_passed_by_and_catches_up"),
            loom("loom_tlb", "return_from_lazy_against_flush"),
            x86_64("tlb::lazy_cpus_are_passed_by_and_catch_up"),
            schedules("rules::a_right_that_is_taken_is_not_used_by_who_was_lazy"),
        ],
    },
    Sabotage {
        name: "lazy-exit",
        breaks: "an address space ends while a CPU is lazy on it (I36, R37)",
        noticed_by: &[
            host("tlb::tests::an_address_space_does_not_go_while_a_cpu_is_lazy_on_it"),
            host("tlb::tests::racing::address_spaces_end_under_lazy_cpus"),
            x86_64("race::exit::an_address_space_ends_under_lazy_cpus"),
            i686_pae("race::exit::an_address_space_ends_under_lazy_cpus"),
            schedules("rules::address_spaces_end_under_lazy_cpus"),
        ],
    },
];
