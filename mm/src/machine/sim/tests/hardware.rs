//! That the machine does what hardware may do: walks, caches, A and D bits, speculation.

use super::{ACCESSED, CPU0, CPU1, DIRTY, NEIGHBOUR, RO, RW, Rig, Unhandled, VA, load, range};
use crate::address::{Pfn, VirtAddr};
use crate::machine::sim::SimConfig;
use crate::machine::{FrameUse, LocalFlush, Machine};
use std::cell::Cell;

#[test]
fn accesses_go_where_the_tables_say() {
    let rig = Rig::strict();
    rig.write(VirtAddr(VA.0 + 16), 7).unwrap();
    assert_eq!(rig.sim().frame_words(rig.page)[2], 7);
    assert_eq!(rig.read(VirtAddr(VA.0 + 16)), Ok(7));
    assert_eq!(rig.read(NEIGHBOUR), Ok(0));
}

#[test]
fn a_load_sets_accessed_at_every_level_and_a_store_sets_dirty_in_the_leaf() {
    let rig = Rig::strict();
    rig.read(VA).unwrap();
    assert_eq!(rig.pmd(), rig.table.address() | RW | ACCESSED);
    assert_eq!(rig.pte(VA), rig.page.address() | RW | ACCESSED);
    rig.write(VA, 1).unwrap();
    assert_eq!(rig.pmd(), rig.table.address() | RW | ACCESSED);
    assert_eq!(rig.pte(VA), rig.page.address() | RW | ACCESSED | DIRTY);
}

#[test]
fn an_access_that_the_tables_do_not_allow_faults_with_its_address_and_kind() {
    let rig = Rig::strict();
    assert_eq!(rig.read(VirtAddr(0x3000)), Err(Unhandled(VirtAddr(0x3000), false)));
    rig.set_pte(VA, rig.page.address() | RO);
    assert_eq!(rig.write(VA, 1), Err(Unhandled(VA, true)));
    assert_eq!(rig.read(VA), Ok(0));
    // A page of the kernel.
    rig.set_pte(NEIGHBOUR, rig.neighbour.address() | 0b011);
    assert_eq!(rig.read(NEIGHBOUR), Err(Unhandled(NEIGHBOUR, false)));
    // Beyond the user half.
    assert_eq!(rig.read(VirtAddr(1 << 16)), Err(Unhandled(VirtAddr(1 << 16), false)));
}

#[test]
fn a_level_above_can_take_rights_away() {
    let rig = Rig::strict();
    rig.set_pmd(rig.table.address() | RO);
    assert_eq!(rig.write(VA, 1), Err(Unhandled(VA, true)));
    assert_eq!(rig.read(VA), Ok(0));
}

#[test]
fn a_large_leaf_maps_all_its_pages() {
    const LARGE: u64 = 1 << 7;
    let rig = Rig::strict();
    rig.set_pmd(rig.page.address() | RW | LARGE);
    rig.write(VirtAddr(0), 1).unwrap();
    rig.write(VA, 2).unwrap();
    assert_eq!((rig.sim().frame_words(rig.page)[0], rig.sim().frame_words(rig.neighbour)[0]), (1, 2));
    assert_eq!(rig.pmd(), rig.page.address() | RW | LARGE | ACCESSED | DIRTY);
    // One flush of any page of it drops it whole.
    rig.set_pmd(0);
    rig.on(CPU0, |sim| sim.flush_local(LocalFlush::Range { range: range(0x3000, 0x4000), stride: 0x1000 }));
    assert_eq!(rig.read(VA), Err(Unhandled(VA, false)));
}

#[test]
fn the_fault_handler_is_asked_until_the_access_succeeds() {
    let rig = Rig::strict();
    rig.set_pte(VA, 0);
    let faults = Cell::new(0);
    let value = rig.on(CPU0, |sim| {
        let mut user = sim.user(|address, _| -> Result<(), Unhandled> {
            faults.set(faults.get() + 1);
            if faults.get() == 3 {
                rig.set_pte(address, rig.page.address() | RW);
            }
            Ok(())
        });
        user.fetch_add(VA, 5).unwrap();
        user.read(VA)
    });
    assert_eq!((value, faults.get()), (Ok(5), 3));
}

#[test]
fn a_cached_translation_outlives_its_entry_until_it_is_flushed() {
    let rig = Rig::strict();
    rig.write(VA, 7).unwrap();
    rig.set_pte(VA, 0);
    assert_eq!(rig.read(VA), Ok(7), "hardware need not look at the table again");
    rig.on(CPU0, |sim| sim.flush_local(LocalFlush::Range { range: range(0x1000, 0x2000), stride: 0x1000 }));
    assert_eq!(rig.read(VA), Err(Unhandled(VA, false)));
}

#[test]
fn a_cached_table_outlives_its_entry_until_any_page_is_flushed() {
    let rig = Rig::strict();
    rig.read(VA).unwrap();
    rig.set_pmd(0);
    assert_eq!(rig.read(NEIGHBOUR), Ok(0), "the walk starts at the cached table");
    // INVLPG drops the whole paging-structure cache, and of translations only its own page's (spec 8.5).
    rig.on(CPU0, |sim| sim.flush_local(LocalFlush::Range { range: range(0x2000, 0x3000), stride: 0x1000 }));
    assert_eq!(rig.read(NEIGHBOUR), Err(Unhandled(NEIGHBOUR, false)));
    assert_eq!(rig.read(VA), Ok(0));
}

#[test]
fn a_flush_of_the_address_space_or_a_load_of_the_top_table_drops_everything() {
    for flush in [true, false] {
        let rig = Rig::strict();
        rig.read(VA).unwrap();
        rig.set_pmd(0);
        rig.on(CPU0, |sim| if flush { sim.flush_local(LocalFlush::AddressSpace) } else { load(sim, rig.top) });
        assert_eq!(rig.read(VA), Err(Unhandled(VA, false)));
    }
}

#[test]
fn a_right_granted_without_a_flush_costs_one_spurious_fault() {
    let rig = Rig::strict();
    rig.set_pte(VA, rig.page.address() | RO);
    rig.read(VA).unwrap();
    rig.set_pte(VA, rig.page.address() | RW);
    let faults = Cell::new(0);
    rig.on(CPU0, |sim| {
        let handler = |_, _| -> Result<(), Unhandled> {
            faults.set(faults.get() + 1);
            Ok(())
        };
        sim.user(handler).write(VA, 1)
    })
    .unwrap();
    assert_eq!(faults.get(), 1);
}

#[test]
fn hardware_walks_on_its_own_account_and_marks_what_it_uses() {
    let rig = Rig::new(SimConfig { speculation: 1, ..SimConfig::calm(16, 2, 1) });
    for _ in 0..100 {
        rig.read(VA).unwrap();
    }
    assert_eq!(rig.pte(NEIGHBOUR), rig.neighbour.address() | RW | ACCESSED, "never wanted by anybody, and never dirty");
    rig.set_pte(NEIGHBOUR, 0);
    assert_eq!(rig.read(NEIGHBOUR), Ok(0), "and cached");
}

#[test]
fn a_cpu_that_runs_nothing_walks_all_the_same() {
    let rig = Rig::new(SimConfig { speculation: 1, ..SimConfig::calm(16, 2, 1) });
    rig.on(CPU1, |sim| {
        for _ in 0..100 {
            sim.pause();
        }
    });
    // CPU 1 has no table loaded, and nobody has ever used CPU 0's.
    for (address, page) in [(VA, rig.page), (NEIGHBOUR, rig.neighbour)] {
        assert_eq!(rig.pte(address), page.address() | RW | ACCESSED, "whatever is mapped may be walked");
    }
}

#[test]
fn a_walk_may_begin_at_the_top_again_and_forgets_nothing_for_it() {
    let rig = Rig::new(SimConfig { speculation: 1, ..SimConfig::calm(16, 2, 1) });
    rig.read(VA).unwrap();
    // Another table in place of the one that is cached.
    let other = Pfn(rig.neighbour.0 + 1);
    rig.on(CPU1, |sim| {
        sim.note_frame(other, FrameUse::Free);
        sim.note_frame(other, FrameUse::Data);
        sim.zero_frame(other);
        sim.note_frame(other, FrameUse::Table);
        rig.set_pmd(other.address() | RW);
        (0..100).for_each(|_| sim.pause());
    });
    assert_eq!(rig.pmd(), other.address() | RW | ACCESSED, "read again");
    rig.set_pte(VirtAddr(0x3000), rig.page.address() | RW);
    assert_eq!(rig.read(VirtAddr(0x3000)), Ok(0), "by the table that is cached");
}

#[test]
fn an_access_may_begin_its_walk_above_the_table_that_is_cached() {
    let rig = Rig::new(SimConfig { passing_over: 1, ..SimConfig::calm(16, 2, 1) });
    rig.read(VA).unwrap();
    rig.set_pmd(0);
    assert_eq!(rig.read(NEIGHBOUR), Err(Unhandled(NEIGHBOUR, false)), "read from the top");
    assert_eq!(rig.read(VA), Ok(0), "by the translation that is cached");
}

#[test]
fn a_large_leaf_may_be_cached_in_pieces_that_one_flush_drops() {
    const LARGE: u64 = 1 << 7;
    let rig = Rig::new(SimConfig { fracturing: 1, ..SimConfig::calm(16, 2, 1) });
    rig.set_pmd(rig.page.address() | RW | LARGE);
    rig.read(VirtAddr(0)).unwrap();
    rig.read(VA).unwrap();
    assert_eq!(
        rig.on(CPU0, |sim| (sim.translation_of(VA), sim.translation_of(NEIGHBOUR))),
        (Some(rig.neighbour), None)
    );
    rig.set_pmd(0);
    assert_eq!(rig.read(VA), Ok(0), "each is as good as the whole");
    // Any page of the leaf will do, one that is not cached too.
    rig.on(CPU0, |sim| sim.flush_local(LocalFlush::Range { range: range(0x3000, 0x4000), stride: 0x1000 }));
    for address in [VirtAddr(0), VA] {
        assert_eq!(rig.read(address), Err(Unhandled(address, false)));
    }
}

#[test]
fn a_store_may_get_as_far_as_its_dirty_bit_and_be_done_again() {
    let rig = Rig::new(SimConfig { speculation: 1, stop_at_violation: false, ..SimConfig::calm(16, 1, 1) });
    let outcomes = Cell::new(0);
    rig.set_pte(VA, rig.page.address() | RO);
    rig.on(CPU0, |sim| {
        let handler = |_, _| -> Result<(), Unhandled> {
            outcomes.set(outcomes.get() + 1);
            rig.set_pte(VA, rig.page.address() | RW);
            Ok(())
        };
        sim.user(handler).fetch_add(VA, 1)
    })
    .unwrap();
    assert_eq!((rig.pte(VA) & DIRTY, rig.sim().frame_words(rig.page)[0], outcomes.get()), (DIRTY, 1, 1), "done once");
}

#[test]
fn evictions_lose_translations_and_nothing_else() {
    let rig = Rig::new(SimConfig { eviction: 2, ..SimConfig::calm(16, 2, 1) });
    for value in 0..100 {
        rig.write(VA, value).unwrap();
        assert_eq!(rig.read(VA), Ok(value));
    }
    rig.set_pte(VA, 0);
    // Sooner or later the translation that nobody flushed is gone all the same.
    assert!((0..100).any(|_| rig.read(VA).is_err()));
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| {
        let rig = Rig::new(SimConfig::racy(16, 2, seed));
        rig.set_pte(VirtAddr(0x3000), rig.page.address() | RW);
        // How long until hardware has looked at the page nobody touches.
        (0..10_000).position(|_| {
            rig.read(VA).unwrap();
            rig.pte(VirtAddr(0x3000)) & ACCESSED != 0
        })
    };
    assert_eq!(run(7), run(7));
    assert!((1..20).any(|seed| run(seed) != run(7)), "the seed changes nothing");
}

#[test]
fn increments_of_all_cpus_arrive() {
    let rig = Rig::new(SimConfig::racy(16, 2, 3));
    rig.sim().run_all(|_| {
        let sim = rig.sim();
        load(sim, rig.top);
        let mut user = sim.user(|address, write| Err(Unhandled(address, write)));
        for _ in 0..2_000 {
            user.fetch_add(VA, 1).unwrap();
        }
    });
    assert_eq!(rig.read(VA), Ok(4_000));
}

#[test]
fn a_freed_frame_does_not_keep_its_contents() {
    let rig = Rig::strict();
    rig.set_pte(VA, 0);
    rig.on(CPU0, |sim| sim.note_frame(rig.page, FrameUse::Free));
    assert!(rig.sim().frame_words(rig.page).iter().all(|word| *word != 0));
}

#[test]
fn copying_a_frame_copies_all_of_it() {
    let rig = Rig::strict();
    rig.write(VirtAddr(VA.0 + 4088), 9).unwrap();
    rig.on(CPU0, |sim| sim.copy_frame(rig.page, rig.neighbour));
    assert_eq!(rig.sim().frame_words(rig.neighbour), rig.sim().frame_words(rig.page));
    assert_eq!(rig.read(VirtAddr(NEIGHBOUR.0 + 4088)), Ok(9));
}
