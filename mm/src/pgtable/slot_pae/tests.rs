//! The two words of a PAE entry, one CPU at a time; `mm/tests/loom_pae.rs` has the models of several.

use super::{SlotPae, between};
use crate::address::Pfn;
use crate::pgtable::{Entry, EntrySlot, Level, Pae, PagingMode, Protection, Slot64};
use proptest::prelude::*;

/// Beyond 4 GiB, so that the high word counts.
const HIGH: Pfn = Pfn(5 << 20);

#[test]
fn a_slot_is_eight_bytes_aligned_as_the_walker_asks() {
    assert_eq!((size_of::<SlotPae>(), align_of::<SlotPae>()), (8, 8));
    assert_eq!((core::mem::offset_of!(SlotPae, low), core::mem::offset_of!(SlotPae, high)), (0, 4));
}

fn entries() -> impl Strategy<Value = Entry> {
    let rights = (any::<bool>(), any::<bool>()).prop_map(|(write, execute)| Protection { write, execute });
    let pfn = prop_oneof![0x100_u64..0x110, (5_u64 << 20)..(5 << 20) + 0x10].prop_map(|pfn| Pfn(pfn << 9));
    (0..5, pfn, rights).prop_map(|(kind, pfn, rights)| match kind {
        0 => Entry::NONE,
        1 => Entry::table(pfn),
        2 => Entry::page(pfn, rights),
        3 => Entry::huge_page(pfn, rights),
        _ => Entry::huge_page(pfn, rights).invalidated(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// With nobody else there, two words do what one does.
    #[test]
    fn two_words_hold_what_one_holds(steps in prop::collection::vec((0..3, entries(), entries()), 1..40)) {
        let (two, one) = (SlotPae::new(Entry::NONE), Slot64::new(Entry::NONE));
        for (kind, entry, other) in steps {
            match kind {
                0 if !one.load().is_present() => (two.store(entry), one.store(entry)).0,
                0 => prop_assert_eq!(two.compare_exchange(other, entry), one.compare_exchange(other, entry)),
                1 => prop_assert_eq!(two.swap(entry), one.swap(entry)),
                _ => {
                    let current = one.load();
                    prop_assert_eq!(two.compare_exchange(current, entry), one.compare_exchange(current, entry));
                }
            }
            prop_assert_eq!(two.load(), one.load());
        }
    }

    /// I39, and back again.
    #[test]
    fn a_pointer_in_the_top_table_has_no_reserved_bits(entry in entries()) {
        let raw = Pae::to_hardware(Level::Pgd, entry);
        if entry.is_table() {
            prop_assert_eq!(raw.0 & !1, entry.pfn().address());
            prop_assert_eq!(Pae::from_hardware(Level::Pgd, raw), entry);
            // An emulator's walker sets A there.
            prop_assert_eq!(Pae::from_hardware(Level::Pgd, Entry(raw.0 | 1 << 5)), entry);
        }
        prop_assert_eq!(Pae::to_hardware(Level::Pmd, entry), entry);
        prop_assert_eq!(Pae::from_hardware(Level::Pmd, entry), entry);
    }
}

/// I39: whatever a CPU would refuse is no pointer to a table to us.
#[test]
fn a_reserved_bit_in_the_top_table_makes_an_entry_bad() {
    for bit in [1, 2, 6, 7, 8, 63] {
        let entry = Pae::from_hardware(Level::Pgd, Entry(HIGH.address() | 1 | 1 << bit));
        assert!(entry.is_present() && !entry.is_table(), "bit {bit}");
    }
    let whole = Pae::from_hardware(Level::Pgd, Entry::table(HIGH));
    assert!(whole.is_present() && !whole.is_table(), "all a table's bits");
}

/// What is left of an entry that has gone is nobody's concern, and is not taken for part of the next.
#[test]
fn the_high_word_of_nothing_does_not_matter() {
    let slot = SlotPae::new(Entry::table(HIGH));
    assert_eq!(slot.swap(Entry::NONE), Entry::table(HIGH));
    assert_eq!((slot.load(), slot.swap(Entry::NONE)), (Entry::NONE, Entry::NONE));
    assert_eq!(slot.compare_exchange(Entry::NONE, Entry::table(Pfn(0x100))), Ok(()));
    assert_eq!(slot.load(), Entry::table(Pfn(0x100)));
}

/// I28: a huge entry whose high word changes is refused by the walker meanwhile, but is not none.
#[test]
fn a_huge_entry_in_transit_is_still_one() {
    for protection in [Protection::READ, Protection::READ_WRITE] {
        let entry = Entry::huge_page(HIGH, protection);
        let seen = Entry(u64::from(between(entry)));
        assert!(seen.is_huge() && !seen.is_present());
        assert_eq!(between(entry.invalidated()), between(entry));
    }
    assert_eq!(between(Entry::page(HIGH, Protection::READ)), 0);
}
