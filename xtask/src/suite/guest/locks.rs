//! Kernels whose locks check how they are used, and that use them wrongly: what the log must say.

use super::GuestTest;

/// One for each check of `mm`'s debug locks and of its lock-order checker.
pub const TESTS: [GuestTest; 18] = [
    GuestTest {
        name: "verdict::taking_a_lock_twice_is_reported",
        about: "one CPU takes a lock twice: both places and the owner",
        run: |stage| {
            stage.misuse(
                "lock-twice",
                &[
                    "takes the lock of a PTE table (pte 0x",
                    "a second time (I23); cpu ",
                    " has it, last taken at kernel/src/misbehave/locks.rs:",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::unlocking_by_a_stranger_is_reported",
        about: "a CPU gives up another's lock: both CPUs and the owner's place",
        run: |stage| {
            stage.misuse(
                "lock-stranger",
                &[
                    "unlocks the lock of a PTE table (pte 0x",
                    "which another CPU has locked; cpu ",
                    " has it, last taken at kernel/src/misbehave/locks.rs:",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::unlocking_what_nobody_has_is_reported",
        about: "a CPU gives up a lock nobody has",
        run: |stage| stage.misuse("lock-unowned", &["unlocks ", "which nobody has locked; nobody has it"]),
    },
    GuestTest {
        name: "verdict::locking_with_interrupts_off_is_reported",
        about: "a lock is taken with interrupts off (I24)",
        run: |stage| {
            stage.misuse("lock-deaf", &["takes the lock of a PTE table (pte 0x", "with interrupts off", "(I24)"])
        },
    },
    GuestTest {
        name: "verdict::freeing_a_held_lock_is_reported",
        about: "a held lock is destroyed (I12)",
        run: |stage| {
            stage.misuse(
                "lock-freed",
                &[
                    "(pte) is freed or re-initialised while it is held (I12); cpu ",
                    "last taken at kernel/src/misbehave/locks.rs:",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::re_initialising_a_held_lock_is_reported",
        about: "a new lock is put over a held one (I12)",
        run: |stage| {
            stage.misuse(
                "lock-overwritten",
                &[
                    "(pte) is freed or re-initialised while it is held (I12); cpu ",
                    "last taken at kernel/src/misbehave/locks.rs:",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::a_stale_user_of_a_lock_is_reported",
        about: "a destroyed lock is taken: its poison shows (R5)",
        run: |stage| {
            stage.misuse(
                "lock-stale",
                &[
                    "takes the lock of a PTE table (pte 0x",
                    "at kernel/src/misbehave/locks.rs:",
                    "after it was destroyed (bad magic, R5)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::a_pmd_lock_under_a_pte_lock_is_reported",
        about: "a PMD lock is waited for under a PTE lock (I22)",
        run: |stage| {
            stage.misuse(
                "lock-order",
                &[
                    "waits for the lock of a PMD table (pmd 0x",
                    "under the lock of a PTE table (pte 0x",
                    "taken at kernel/src/misbehave/locks.rs:",
                    "in the order page_table_lock, PMD, PTE, leaves (I22)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::two_locks_of_a_class_out_of_order_are_reported",
        about: "two PTE locks by falling address (I23)",
        run: |stage| {
            stage.misuse(
                "lock-address",
                &[
                    "waits for the lock of a PTE table (pte 0x",
                    "under the lock of a PTE table (pte 0x",
                    "rising address or as SINGLE_DEPTH_NESTING (I23)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::three_locks_of_a_class_are_reported",
        about: "three PMD locks, two of them declared as SINGLE_DEPTH_NESTING (I23)",
        run: |stage| {
            stage.misuse(
                "lock-depth",
                &[
                    "waits for the lock of a PMD table (pmd 0x",
                    "under the lock of a PMD table (pmd 0x",
                    "taken at kernel/src/misbehave/locks.rs:",
                    "SINGLE_DEPTH_NESTING allows one lock of a class under one other (I23)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::a_leaf_under_a_leaf_is_reported",
        about: "a zone lock is waited for under a slab lock (spec 2.2)",
        run: |stage| {
            stage.misuse(
                "lock-leaf",
                &[
                    "waits for the lock of the free lists (zone 0x",
                    "under the lock of a slab cache (slab 0x",
                    "taken at kernel/src/misbehave/locks.rs:",
                    "no leaf is waited for under a leaf (spec 2.2)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::mmap_lock_under_a_page_table_lock_is_reported",
        about: "mmap_lock is taken under a PTE lock (I25)",
        run: |stage| {
            stage.misuse(
                "lock-mmap",
                &[
                    "waits for mmap_lock at kernel/src/misbehave/locks.rs:",
                    "holds the lock of a PTE table (pte 0x",
                    "(I25)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::a_grace_period_under_a_lock_is_reported",
        about: "a grace period is waited for under a PTE lock (I25)",
        run: |stage| {
            stage.misuse(
                "lock-grace",
                &[
                    "waits for a grace period at kernel/src/misbehave/locks.rs:",
                    "holds the lock of a PTE table (pte 0x",
                    "(I25)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::a_context_switch_under_a_lock_is_reported",
        about: "a CPU is given away under a PTE lock (I25)",
        run: |stage| {
            stage.misuse(
                "lock-switch",
                &[
                    "waits for a context switch at kernel/src/misbehave/locks.rs:",
                    "holds the lock of a PTE table (pte 0x",
                    "(I25)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::sleeping_under_a_lock_is_reported",
        about: "a thread sleeps under a PTE lock (I25)",
        run: |stage| {
            stage.misuse(
                "lock-sleep",
                &[
                    "waits for block_while at kernel/src/misbehave/locks.rs:",
                    "holds the lock of a PTE table (pte 0x",
                    "(I25)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::what_is_no_lock_is_reported",
        about: "memory in which no lock was made is taken for one",
        run: |stage| {
            stage.misuse(
                "lock-none",
                &[
                    "takes the lock of a PTE table (pte 0x",
                    "at kernel/src/misbehave/locks.rs:",
                    "but there is no lock (bad magic)",
                ],
            )
        },
    },
    GuestTest {
        name: "verdict::destroying_a_lock_twice_is_reported",
        about: "a lock is destroyed twice (I4)",
        run: |stage| stage.misuse("lock-freed-twice", &["lock 0x", "is destroyed twice (bad magic, I4)"]),
    },
    GuestTest {
        name: "verdict::taking_mmap_lock_twice_is_reported",
        about: "one thread takes mmap_lock twice, and sleeps in between: both places",
        run: |stage| {
            stage.misuse(
                "lock-mmap-twice",
                &[
                    "takes mmap_lock 0x",
                    " at kernel/src/misbehave/locks.rs:",
                    " a second time: its thread has it, taken at kernel/src/misbehave/locks.rs:",
                ],
            )
        },
    },
];
