//! Faults and the tables they need; entries of two words.

use super::{host, i686_pae, loom, schedules, x86_64};
use crate::sabotage::Sabotage;

pub const RULES: &[Sabotage] = &[
    // Faults and the tables they need.
    Sabotage {
        name: "pmd-recheck",
        breaks: "a PTE lock is taken though its table may have left the slot (I16, R3)",
        noticed_by: &[
            host("pgtable::offset::tests::a_locked_table_stays_in_its_slot"),
            loom("loom_fault", "a_locked_table_is_hooked"),
            x86_64("race::munmap::a_locked_table_stays_in_its_slot"),
            schedules("rules::a_locked_table_stays_in_its_slot"),
        ],
    },
    Sabotage {
        name: "nolock-recheck",
        breaks: "a PTE whose lock was only named is stored to without a check under that lock (I21)",
        noticed_by: &[
            host("pgtable::nolock::tests::whatever_check_succeeds_the_table_is_attached"),
            loom("loom_helpers", "a_pmd_that_is_the_same_proves_the_table_attached"),
            loom("loom_helpers", "an_entry_that_is_the_same_proves_the_table_attached"),
            x86_64("helpers::a_recheck_under_the_lock_proves_the_table_attached"),
        ],
    },
    Sabotage {
        name: "none-proof",
        breaks: "a saved none passes for a proof that its table is attached (R6)",
        noticed_by: &[
            host("pgtable::nolock::tests::none_is_no_proof_of_an_attached_table"),
            loom("loom_helpers", "an_entry_that_is_the_same_proves_the_table_attached"),
        ],
    },
    Sabotage {
        name: "section-first",
        breaks: "a read section ends while its table's lock is still held (I12, I19)",
        noticed_by: &[loom("loom_helpers", "what_is_let_go_is_unlocked_before_it_may_be_freed")],
    },
    Sabotage {
        name: "pte-recheck",
        breaks: "a fault stores where another has stored meanwhile (I1, R2)",
        noticed_by: &[
            host("fault::tests::races::first_faults_on_the_same_pages_agree_on_one_frame"),
            loom("loom_helpers", "two_that_fault_on_one_page_agree"),
            x86_64("race::pages::first_writes_to_one_page_agree_on_one_frame"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "slot-recheck",
        breaks: "a table is linked where another has been linked meanwhile (I15, R1)",
        noticed_by: &[
            host("fault::tests::races::first_faults_on_the_same_pages_agree_on_one_frame"),
            loom("loom_helpers", "two_that_make_one_table_agree"),
            x86_64("race::tables::first_faults_agree_on_one_missing_pte_table"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "fault-region-recheck",
        breaks: "a fault stores in a region that has gone meanwhile (R41)",
        noticed_by: &[
            host("fault::tests::races::munmap_races_with_faults"),
            x86_64("race::munmap::a_fault_that_waits_for_its_table_gives_up_a_region_that_is_gone"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "upgrade-region-recheck",
        breaks: "a fault gives a right that its region has lost meanwhile (R41)",
        noticed_by: &[host("fault::tests::races::a_right_to_store_that_was_taken_is_not_given_back")],
    },
    Sabotage {
        name: "table-region-recheck",
        breaks: "a table is linked for a region that has gone meanwhile (R41)",
        noticed_by: &[
            host("pgtable::install::tests::nothing_is_made_for_a_region_that_has_gone"),
            loom("loom_fault", "a_fault_without_tables_against_munmap"),
            loom("loom_huge", "a_collapse_against_a_fault"),
            x86_64("race::munmap::a_fault_that_waits_to_link_a_table_gives_up_a_region_that_is_gone"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "none-unlocked",
        breaks: "munmap takes a slot for none without its lock, while a fault fills it (R41)",
        noticed_by: &[loom("loom_fault", "a_fault_without_tables_against_munmap"), schedules("faults_against_munmap")],
    },
    Sabotage {
        name: "top-flush",
        breaks: "CPUs go on with the top table as they have latched it, without a new entry (I38, R31)",
        noticed_by: &[
            host("pgtable::pae_tests::a_filled_entry_is_known_to_whoever_runs_on_it"),
            i686_pae("pae::a_changed_top_entry_is_loaded_by_every_cpu"),
            schedules("rules::top_entries_come_and_go"),
        ],
    },
    Sabotage {
        name: "huge-recheck",
        breaks: "a huge page is put where another page or table has come meanwhile (I14, R13)",
        noticed_by: &[
            loom("loom_huge", "two_faults_for_one_huge_page"),
            x86_64("race::huge::huge_faults_race"),
            schedules("stores_against_collapse"),
        ],
    },
    Sabotage {
        name: "dtor",
        breaks: "a table is freed without its destructor (I4)",
        noticed_by: &[
            host("pgtable::alloc::tests::every_constructor_counts_one_table_and_the_destructor_takes_it_back"),
            x86_64("helpers::tables_that_are_never_published_are_destroyed_at_once"),
        ],
    },
    Sabotage {
        name: "free-table",
        breaks: "the frame of a table goes back to the free ones as it is (I8)",
        noticed_by: &[host("pgtable::alloc::tests::a_table_without_its_destructor_is_not_freed")],
    },
    Sabotage {
        name: "publish-order",
        breaks: "a table may show in its slot before what it holds (I3)",
        noticed_by: &[loom("loom_fault", "a_fault_without_tables_against_munmap")],
    },
    Sabotage {
        name: "two-slots",
        breaks: "a table is linked in a second slot too (I2)",
        noticed_by: &[host("pgtable::alloc::tests::each_table_hangs_in_one_slot")],
    },
    Sabotage {
        name: "spare-left",
        breaks: "a table that lost the race for its slot is left over (I15, R1)",
        noticed_by: &[
            host("fault::tests::races::first_faults_on_the_same_pages_agree_on_one_frame"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "pgtables-bytes",
        breaks: "a table is linked and not counted (I6, I7)",
        noticed_by: &[
            host("fault::tests::races::first_faults_on_the_same_pages_agree_on_one_frame"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "table-count",
        breaks: "a table is destroyed and still counted (I5)",
        noticed_by: &[
            host("pgtable::alloc::tests::every_constructor_counts_one_table_and_the_destructor_takes_it_back"),
            x86_64("helpers::tables_that_are_never_published_are_destroyed_at_once"),
        ],
    },
    Sabotage {
        name: "lock-left",
        breaks: "the lock of a table that is destroyed is left as it is, held or not (I9, I12)",
        noticed_by: &[
            host("pgtable::ptlock::tests::a_table_destroyed_with_its_lock_held_is_caught"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "ctor-unwind",
        breaks: "a frame is lost when no lock can be made for its table (I6, R34)",
        noticed_by: &[
            host("fault::tests::one_cpu::every_allocation_of_a_fault_may_fail"),
            x86_64("failure::every_step_of_a_fault_may_fail"),
        ],
    },
    Sabotage {
        name: "pgd-unwind",
        breaks: "the tables of a top table that could not be made whole are lost (I43, R34)",
        noticed_by: &[host("pgtable::pgd::tests::every_allocation_of_a_top_table_may_fail")],
    },
    Sabotage {
        name: "slab-align",
        breaks: "a top table, an object of the slab, does not lie at a multiple of its size (I41)",
        noticed_by: &[
            host("pgtable::pgd::tests::small_top_tables_share_a_frame_of_the_slab"),
            host("slab::tests::objects_of_a_power_of_two_are_aligned_to_their_size"),
        ],
    },
    Sabotage {
        name: "pdpte-bits",
        breaks: "an entry of the top table has bits that are reserved there (I39)",
        noticed_by: &[host("pgtable::slot_pae::tests::a_pointer_in_the_top_table_has_no_reserved_bits")],
    },
    Sabotage {
        name: "lockptr",
        breaks: "a PMD table is guarded by the lock of the address space, not by its own (I17, I26)",
        noticed_by: &[
            host("pgtable::offset::tests::locks_are_those_of_the_configuration"),
            x86_64("configuration::locks_are_those_of_the_configuration"),
        ],
    },
    Sabotage {
        name: "pte-lockptr",
        breaks: "a PTE table that is looked up is guarded by the lock of the address space, not by its own (I17)",
        noticed_by: &[
            host("pgtable::offset::tests::locks_are_those_of_the_configuration"),
            x86_64("configuration::locks_are_those_of_the_configuration"),
        ],
    },
    Sabotage {
        name: "section-left",
        breaks: "a read section is not closed (I18)",
        noticed_by: &[host("pgtable::offset::tests::read_sections_balance"), schedules("faults_against_munmap")],
    },
    Sabotage {
        name: "deposit-left",
        breaks: "the table deposited for a huge entry stays when the entry goes (I13, I14)",
        noticed_by: &[
            host("fault::huge::tests::races::huge_faults_of_one_pmd_table_race_with_each_other_and_with_a_zap"),
            schedules("stores_against_collapse"),
        ],
    },
    // Entries of two words.
    Sabotage {
        name: "pae-store-order",
        breaks: "the low word, with P, is stored before the high one (I40)",
        noticed_by: &[
            loom("loom_pae", "a_slot_that_is_filled_is_never_seen_half"),
            i686_pae("tearing::an_entry_of_two_words_is_never_seen_mixed"),
            schedules("rules::an_entry_of_two_words_is_never_seen_mixed"),
        ],
    },
    Sabotage {
        name: "pae-second-look",
        breaks: "a reader takes both words without a second look at the low one (I40)",
        noticed_by: &[
            loom("loom_pae", "an_entry_that_changes_in_both_words_is_the_one_or_the_other_or_none"),
            i686_pae("tearing::an_entry_that_is_replaced_under_its_reader_is_not_seen_mixed"),
            schedules("rules::an_entry_of_two_words_is_never_seen_mixed"),
        ],
    },
    Sabotage {
        name: "halves-sync",
        breaks: "a slot is filled again while a CPU has read one half of what was in it (R29, R30)",
        noticed_by: &[
            host("pgtable::pae_tests::a_pte_table_goes_after_all_cpus_have_taken_an_interrupt"),
            i686_pae("tearing::a_pte_table_goes_after_its_readers"),
        ],
    },
    Sabotage {
        name: "stable-load",
        breaks: "a pointer of two words is read with interrupts on (I40, R29)",
        noticed_by: &[host(
            "pgtable::table::tests::a_pointer_that_is_followed_without_a_lock_is_read_with_interrupts_off",
        )],
    },
];
