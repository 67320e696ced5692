//! The rules that can be broken. Where several tests are named, each of them must notice by itself.

use super::{Sabotage, Suite, Test};
use crate::build::Arch;

const fn host(name: &'static str) -> Test {
    Test { suite: Suite::Host, name }
}

const fn loom(file: &'static str, name: &'static str) -> Test {
    Test { suite: Suite::Loom(file), name }
}

const fn schedules(name: &'static str) -> Test {
    Test { suite: Suite::Schedules, name }
}

const fn x86_64(name: &'static str) -> Test {
    Test { suite: Suite::Kernel(Arch::X86_64), name }
}

const fn i686_pae(name: &'static str) -> Test {
    Test { suite: Suite::Kernel(Arch::I686Pae), name }
}

/// All of them.
pub const ALL: &[Sabotage] = &[
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
        noticed_by: &[host(
            "pgtable::alloc::tests::every_constructor_counts_one_table_and_the_destructor_takes_it_back",
        )],
    },
    Sabotage {
        name: "publish-order",
        breaks: "a table may show in its slot before what it holds (I3)",
        noticed_by: &[loom("loom_fault", "a_fault_without_tables_against_munmap")],
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
        noticed_by: &[host(
            "pgtable::alloc::tests::every_constructor_counts_one_table_and_the_destructor_takes_it_back",
        )],
    },
    Sabotage {
        name: "lock-left",
        breaks: "the lock of a table that is destroyed is left as it is, held or not (I12)",
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
    // Pages and tables that go.
    Sabotage {
        name: "free-before-flush",
        breaks: "pages are given back before TLBs have forgotten them (I30, R20)",
        noticed_by: &[
            host("gather::tests::pages_of_many_tables_are_flushed_once"),
            host("fault::tests::races::munmap_races_with_faults"),
            schedules("faults_against_munmap"),
        ],
    },
    Sabotage {
        name: "nested-flush",
        breaks: "what another gather has taken out and not flushed is taken for flushed (R21)",
        noticed_by: &[
            host("gather::tests::a_gather_that_finds_anothers_work_unflushed_flushes_it"),
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
        name: "dirty-exchange",
        breaks: "an entry is read, then cleared, and what the CPU marks between is lost (I35, R19)",
        noticed_by: &[schedules("no_dirty_mark_is_lost")],
    },
    Sabotage {
        name: "report-order",
        breaks: "a reader may still read when its section shows as closed (I10, I11)",
        noticed_by: &[loom("loom_lock", "a_reader_never_meets_what_was_freed_after_a_grace_period")],
    },
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
            host("address_space::fork::tests::races::a_child_is_a_snapshot"),
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
            schedules("rules::address_spaces_end_under_lazy_cpus"),
        ],
    },
    // The lock.
    Sabotage {
        name: "unlock-order",
        breaks: "what an owner did may show after its unlock (I44)",
        noticed_by: &[loom("loom_algorithms", "ticket_two_in_the_queue_exclude_each_other_and_wake_up")],
    },
    Sabotage {
        name: "kick-in-queue",
        breaks: "the next owner sleeps and nobody kicks it (I47, R38)",
        noticed_by: &[
            host("sync::parking::tests::who_is_awake_or_waits_for_another_lock_is_not_kicked"),
            loom("loom_algorithms", "ticket_two_in_the_queue_exclude_each_other_and_wake_up"),
            schedules("rules::whoever_waits_for_a_lock_is_woken"),
        ],
    },
    Sabotage {
        name: "kick-outside",
        breaks: "a waiter outside the queue sleeps and nobody kicks it (I47, R38)",
        noticed_by: &[
            host("sync::parking::tests::outsiders_are_kicked_in_turn"),
            loom("loom_algorithms", "ticket_two_outside_the_queue_exclude_each_other_and_wake_up"),
            schedules("rules::whoever_waits_for_a_lock_is_woken"),
        ],
    },
    Sabotage {
        name: "look-back",
        breaks: "an unlocker touches the lock once more when it may be gone (I46, R39)",
        noticed_by: &[loom("loom_algorithms", "a_lock_may_be_freed_as_soon_as_its_last_user_holds_it")],
    },
    Sabotage {
        name: "contended-wrap",
        breaks: "tickets out are counted wider than a ticket is (I49, R40)",
        noticed_by: &[host("sync::ticket::tests::tickets_wrap_without_touching_their_neighbours")],
    },
    Sabotage {
        name: "head-carry",
        breaks: "the head that wraps carries into the tail (R40)",
        noticed_by: &[
            host("sync::ticket::tests::tickets_wrap_without_touching_their_neighbours"),
            loom("loom_algorithms", "ticket_two_in_the_queue_exclude_each_other_and_wake_up"),
        ],
    },
    Sabotage {
        name: "sleep-fence",
        breaks: "a waiter may look at the head before it shows that it sleeps (I47, R38)",
        noticed_by: &[loom("loom_algorithms", "ticket_two_in_the_queue_exclude_each_other_and_wake_up")],
    },
    // The kernel and its processor.
    Sabotage {
        name: "invlpg",
        breaks: "no page is dropped from the TLB (I29)",
        noticed_by: &[x86_64("shootdown::a_stale_translation_is_never_usable_after_munmap")],
    },
    Sabotage {
        name: "cr3-reload",
        breaks: "CR3 is not loaded where more is to be dropped than pages (I29, I38)",
        noticed_by: &[
            x86_64("race::reuse::a_frame_is_not_given_out_again_before_everyone_has_flushed"),
            i686_pae("pae::a_changed_top_entry_is_loaded_by_every_cpu"),
        ],
    },
    Sabotage {
        name: "kmap-flush",
        breaks: "a slot for high memory still shows the frame that was mapped there before",
        noticed_by: &[i686_pae("highmem::interrupts_map_above_what_they_interrupt")],
    },
    Sabotage {
        name: "thread-kick",
        breaks: "a CPU halts with a thread in its queue and nobody kicks it",
        noticed_by: &[x86_64("thread::a_cpu_is_woken_as_it_halts")],
    },
    Sabotage {
        name: "deaf-fault",
        breaks: "a fault waits for locks with interrupts off (I24, I37, R27)",
        noticed_by: &[x86_64("shootdown::the_holder_of_a_lock_flushes_the_one_who_waits_for_it")],
    },
];
