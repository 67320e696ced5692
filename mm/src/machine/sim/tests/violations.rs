//! That each violation can be provoked, and is named.

use super::{CPU0, CPU1, NEIGHBOUR, RO, RW, Rig, Unhandled, VA, load, load_kept, panic_of, range};
use crate::address::{Pfn, VirtAddr};
use crate::machine::sim::{Cached, SimConfig, SimViolation};
use crate::machine::{FrameUse, LocalFlush, Machine, PgdLoad};
use crate::pgtable::Level;

#[test]
fn freeing_a_frame_before_its_flush_is_caught_and_its_later_use_too() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.set_pte(VA, 0);
    rig.on(CPU0, |sim| sim.note_frame(rig.page, FrameUse::Free));
    let cached = Cached::Translation(VA);
    let retired = SimViolation::RetiredWhileCached { pfn: rig.page, becomes: FrameUse::Free, cpu: CPU0, cached };
    assert_eq!(rig.caught(), [retired]);
    rig.read(VA).unwrap();
    assert_eq!(rig.caught(), [SimViolation::StaleTranslation { cpu: CPU0, address: VA, pfn: rig.page }]);
}

#[test]
fn freeing_a_table_before_its_flush_is_caught_and_a_walk_through_it_too() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.set_pmd(0);
    rig.on(CPU0, |sim| sim.note_frame(rig.table, FrameUse::Free));
    let cached = Cached::Table(Level::Pmd, VirtAddr(0));
    let retired = SimViolation::RetiredWhileCached { pfn: rig.table, becomes: FrameUse::Free, cpu: CPU0, cached };
    assert_eq!(rig.caught(), [retired]);
    assert_eq!(rig.read(NEIGHBOUR), Err(Unhandled(NEIGHBOUR, false)));
    assert_eq!(rig.caught(), [SimViolation::WalkThroughNonTable { cpu: CPU0, address: NEIGHBOUR, pfn: rig.table }]);
}

#[test]
fn freeing_the_loaded_top_table_is_caught() {
    let rig = Rig::lenient();
    rig.on(CPU1, |sim| sim.note_frame(rig.top, FrameUse::Free));
    let becomes = FrameUse::Free;
    let retired = SimViolation::RetiredWhileCached { pfn: rig.top, becomes, cpu: CPU0, cached: Cached::Top };
    assert_eq!(rig.caught(), [retired]);
}

#[test]
fn freeing_a_frame_that_a_table_still_names_is_caught() {
    let rig = Rig::lenient();
    rig.on(CPU0, |sim| sim.note_frame(rig.page, FrameUse::Free));
    assert_eq!(rig.caught(), [SimViolation::FreedWhileMapped { pfn: rig.page, table: rig.table, index: 1 }]);
}

#[test]
fn nothing_is_caught_when_a_table_is_unhooked_flushed_and_freed_in_that_order() {
    let rig = Rig::strict();
    rig.write(VA, 1).unwrap();
    rig.read(NEIGHBOUR).unwrap();
    rig.on(CPU0, |sim| {
        rig.set_pte(VA, 0);
        rig.set_pte(NEIGHBOUR, 0);
        rig.set_pmd(0);
        sim.flush_local(LocalFlush::Range { range: range(0x1000, 0x3000), stride: 0x1000 });
        for pfn in [rig.page, rig.neighbour, rig.table] {
            sim.note_frame(pfn, FrameUse::Free);
        }
        sim.assert_no_translation(rig.top, range(0, 0x4000));
        sim.assert_coherent();
    });
}

#[test]
fn a_wrong_life_of_a_frame_is_caught() {
    let rig = Rig::lenient();
    let fresh = Pfn(rig.page.0 + 8);
    let wrong = |pfn, from, to| SimViolation::WrongTransition { pfn, from, to };
    rig.on(CPU0, |sim| {
        sim.note_frame(fresh, FrameUse::Data);
        assert_eq!(rig.caught(), [wrong(fresh, None, FrameUse::Data)], "never given to the allocator");
        sim.note_frame(rig.page, FrameUse::Data);
        assert_eq!(rig.caught(), [wrong(rig.page, Some(FrameUse::Data), FrameUse::Data)], "handed out twice");
        rig.set_pte(VA, 0);
        sim.note_frame(rig.page, FrameUse::Free);
        assert_eq!(rig.caught(), []);
        sim.note_frame(rig.page, FrameUse::Free);
        assert_eq!(rig.caught(), [wrong(rig.page, Some(FrameUse::Free), FrameUse::Free)], "freed twice");
        sim.note_frame(rig.page, FrameUse::Table);
        assert_eq!(rig.caught(), [wrong(rig.page, Some(FrameUse::Free), FrameUse::Table)], "never allocated");
    });
}

#[test]
fn a_frame_used_as_what_it_is_not_is_caught() {
    let rig = Rig::lenient();
    let (page, table) = (rig.page, rig.table);
    rig.on(CPU0, |sim| {
        sim.unmap_table(sim.map_table(page, Level::Pte));
        assert_eq!(rig.caught(), [SimViolation::NotATable { pfn: page }]);
        load(sim, page);
        assert_eq!(rig.caught(), [SimViolation::NotATable { pfn: page }]);
        sim.load_pgd(PgdLoad::Kernel);
        sim.copy_frame(table, page);
        assert_eq!(rig.caught(), [SimViolation::NotData { pfn: table }]);
        sim.zero_frame(table);
        assert_eq!(rig.caught(), [SimViolation::NotData { pfn: table }]);
    });
}

#[test]
fn a_translation_left_after_an_unmapping_is_caught() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.set_pte(VA, 0);
    let sim = rig.sim();
    sim.assert_no_translation(rig.top, range(0x2000, 0x3000));
    sim.assert_no_translation(rig.page, range(0x1000, 0x2000));
    assert_eq!(rig.caught(), [], "another range, another address space");
    sim.assert_no_translation(rig.top, range(0x1000, 0x2000));
    assert_eq!(rig.caught(), [SimViolation::TranslationLeft { cpu: CPU0, address: VA, pfn: rig.page }]);
}

/// I31: what is kept under an ASID must still be right when that is loaded again.
#[test]
fn a_kept_translation_to_a_frame_of_another_use_is_caught() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.on(CPU0, |sim| {
        sim.load_pgd(PgdLoad::Kernel);
        load_kept(sim, rig.top);
        assert_eq!(rig.caught(), []);
        sim.load_pgd(PgdLoad::Kernel);
        rig.set_pte(VA, 0);
        sim.note_frame(rig.page, FrameUse::Free);
        assert_eq!(rig.caught(), [], "nobody has the ASID loaded");
        load_kept(sim, rig.top);
    });
    assert_eq!(rig.caught(), [SimViolation::KeptStale { cpu: CPU0, address: VA, pfn: rig.page }]);
}

#[test]
fn a_right_taken_away_without_a_flush_is_caught_and_one_granted_is_not() {
    let rig = Rig::lenient();
    rig.set_pte(NEIGHBOUR, rig.neighbour.address() | RO);
    rig.write(VA, 1).unwrap();
    rig.read(NEIGHBOUR).unwrap();
    rig.set_pte(NEIGHBOUR, rig.neighbour.address() | RW);
    rig.sim().assert_coherent();
    assert_eq!(rig.caught(), []);
    rig.set_pte(VA, rig.page.address() | RO);
    rig.sim().assert_coherent();
    assert_eq!(rig.caught(), [SimViolation::Incoherent { cpu: CPU0, address: VA, pfn: rig.page }]);
}

#[test]
fn a_handler_that_never_resolves_its_fault_is_caught() {
    let rig = Rig::strict();
    let handler = |_, _| Ok::<(), ()>(());
    let text = panic_of(|| rig.on(CPU0, |sim| sim.user(handler).write(VirtAddr(0x3000), 1)).unwrap());
    assert!(text.contains("EndlessFault"), "{text}");
    rig.caught();
}

#[test]
fn a_violation_stops_the_machine_by_name_unless_it_is_to_collect_them() {
    let text = panic_of(|| {
        let rig = Rig::strict();
        rig.on(CPU0, |sim| sim.zero_frame(rig.table));
    });
    assert!(text.contains("NotData"), "{text}");
    let text = panic_of(|| {
        let rig = Rig::lenient();
        rig.on(CPU0, |sim| sim.zero_frame(rig.table));
        drop(rig);
    });
    assert!(text.contains("NotData"), "not told at the end: {text}");
}

/// I34: an entry that turns from a table into a leaf without a flush between leaves a small translation behind.
#[test]
fn a_large_and_a_small_translation_of_one_address_are_caught() {
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    // A leaf of four pages over the same frames.
    rig.set_pmd(rig.top.address() | RW | 1 << 7);
    // The first fault drops the cached way to the table, the second walk finds the leaf.
    rig.read(VirtAddr(0)).unwrap_err();
    rig.read(VirtAddr(0)).unwrap_err();
    let (cached, found) = (Level::Pte, Level::Pmd);
    assert_eq!(rig.caught(), [SimViolation::MixedSizes { cpu: CPU0, address: VirtAddr(0), cached, found }]);
}

/// I34 the other way round: an access finds the large translation, but a walk ahead of it finds a small one.
#[test]
fn a_small_translation_beside_a_large_one_is_caught_by_a_walk_ahead() {
    let config = SimConfig { stop_at_violation: false, speculation: 1, ..SimConfig::calm(16, 2, 1) };
    let rig = Rig::new(config);
    rig.set_pmd(rig.top.address() | RW | 1 << 7);
    rig.read(VA).unwrap();
    rig.set_pmd(rig.table.address() | RW);
    rig.on(CPU0, |sim| (0..200).for_each(|_| sim.pause()));
    let caught = rig.caught();
    let is_mixed = |violation: &SimViolation| {
        matches!(violation, SimViolation::MixedSizes { cpu: CPU0, cached: Level::Pmd, found: Level::Pte, .. })
    };
    assert!(caught.iter().any(is_mixed), "{caught:?}");
}

#[test]
fn nothing_is_caught_when_the_size_changes_with_a_flush_between() {
    let rig = Rig::strict();
    rig.read(NEIGHBOUR).unwrap();
    rig.on(CPU0, |sim| {
        rig.set_pmd(1 << 7 | 1 << 10);
        sim.flush_local(LocalFlush::Range { range: range(0, 0x4000), stride: 0x1000 });
        // The same four frames in one piece.
        rig.set_pmd(rig.top.address() | RW | 1 << 7);
    });
    rig.read(VirtAddr(0x3000)).unwrap();
}

#[test]
fn a_right_to_execute_that_outlives_its_entry_is_caught() {
    const NO_EXECUTE: u64 = 1 << 63;
    let rig = Rig::lenient();
    rig.read(VA).unwrap();
    rig.sim().assert_coherent();
    rig.set_pte(VA, rig.page.address() | RW | NO_EXECUTE);
    rig.sim().assert_coherent();
    assert_eq!(rig.caught(), [SimViolation::Incoherent { cpu: CPU0, address: VA, pfn: rig.page }]);
}
