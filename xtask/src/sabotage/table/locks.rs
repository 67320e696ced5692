//! The lock; the kernel and its processor.

use super::{host, i686_pae, loom, schedules, x86_64};
use crate::sabotage::Sabotage;

pub const RULES: &[Sabotage] = &[
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
    Sabotage {
        name: "try-queues",
        breaks: "whoever finds a lock taken leaves a ticket there that nobody waits with (I48)",
        noticed_by: &[
            host("sync::tests::ticket::try_lock_neither_waits_nor_queues"),
            loom("loom_algorithms", "trying_leaves_nothing_behind_in_any_lock"),
        ],
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
        name: "kernel-half",
        breaks: "a new top table lacks an entry of the kernel's half (I42)",
        noticed_by: &[x86_64("boot::the_kernel_half_is_copied_whole"), i686_pae("pae::top_tables_are_as_the_cpu_asks")],
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
