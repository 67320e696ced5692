use super::{Buddy, MAX_ORDER};
use crate::address::Pfn;
use crate::page::{MemMap, Page, PageType};
use crate::sync::ticket::TicketLock;
use proptest::prelude::*;
use std::collections::BTreeMap;

const FIRST: u64 = 0x40;
const FRAMES: u64 = 256;

/// Leaked, because a descriptor array lives as long as its machine.
fn memmap() -> MemMap<TicketLock> {
    MemMap::new(Pfn(FIRST), (0..FRAMES).map(|_| Page::new()).collect::<Vec<_>>().leak())
}

/// All frames of the map, put in one by one.
fn filled() -> (MemMap<TicketLock>, Buddy<TicketLock>) {
    let memmap = memmap();
    let mut buddy = Buddy::new(memmap);
    for pfn in FIRST..FIRST + FRAMES {
        buddy.add(Pfn(pfn), Pfn(pfn + 1));
    }
    (memmap, buddy)
}

/// Every free block by its first frame, as the descriptors tell it.
fn free_blocks(memmap: &MemMap<TicketLock>) -> BTreeMap<Pfn, u32> {
    let pages = (memmap.first().0..memmap.end().0).map(|pfn| (Pfn(pfn), memmap.page(Pfn(pfn))));
    pages.filter(|(_, page)| page.page_type() == PageType::Free).map(|(pfn, page)| (pfn, page.order())).collect()
}

#[test]
fn frames_put_one_by_one_merge_into_the_largest_aligned_blocks() {
    let (memmap, buddy) = filled();
    // 0x40..0x140: what alignment allows is 64, 128 and 64 frames.
    let expected = BTreeMap::from([(Pfn(0x40), 6), (Pfn(0x80), 7), (Pfn(0x100), 6)]);
    assert_eq!(free_blocks(&memmap), expected);
    assert_eq!(buddy.free_frames(), FRAMES);
}

#[test]
fn a_split_block_leaves_its_other_halves_free_and_merges_again() {
    let (memmap, mut buddy) = filled();
    let before = free_blocks(&memmap);
    let taken: Vec<Pfn> = (0..3).map(|_| buddy.take(2, PageType::Data).unwrap()).collect();
    assert_eq!(buddy.free_frames(), FRAMES - 12);
    for pfn in taken {
        assert_eq!((memmap.page(pfn).page_type(), memmap.page(pfn).order()), (PageType::Data, 2));
        buddy.put(pfn, 2);
    }
    assert_eq!(free_blocks(&memmap), before);
}

#[test]
fn a_block_larger_than_any_free_one_is_refused_and_changes_nothing() {
    let (memmap, mut buddy) = filled();
    let before = free_blocks(&memmap);
    assert_eq!(buddy.take(8, PageType::Data), None);
    assert_eq!(buddy.take(MAX_ORDER, PageType::Data), None);
    assert_eq!(free_blocks(&memmap), before);
}

#[test]
fn blocks_do_not_merge_with_a_neighbour_that_is_only_partly_free() {
    let memmap = memmap();
    let mut buddy = Buddy::new(memmap);
    buddy.add(Pfn(0x80), Pfn(0x81));
    buddy.add(Pfn(0x82), Pfn(0x84));
    assert_eq!(free_blocks(&memmap), BTreeMap::from([(Pfn(0x80), 0), (Pfn(0x82), 1)]));
    buddy.add(Pfn(0x81), Pfn(0x82));
    assert_eq!(free_blocks(&memmap), BTreeMap::from([(Pfn(0x80), 2)]));
}

#[test]
fn memory_of_one_gibibyte_becomes_one_block_of_the_largest_order() {
    let frames = 1 << MAX_ORDER;
    let pages = (0..2 * frames).map(|_| Page::<TicketLock>::new()).collect::<Vec<_>>().leak();
    let memmap = MemMap::new(Pfn(frames), pages);
    let mut buddy = Buddy::new(memmap);
    buddy.add(Pfn(frames), Pfn(frames + frames / 2));
    buddy.add(Pfn(frames + frames / 2), Pfn(2 * frames));
    buddy.add(Pfn(2 * frames), Pfn(3 * frames));
    assert_eq!(free_blocks(&memmap), BTreeMap::from([(Pfn(frames), MAX_ORDER), (Pfn(2 * frames), MAX_ORDER)]));
    assert_eq!(buddy.take(MAX_ORDER, PageType::Data), Some(Pfn(2 * frames)));
}

/// The boundary of two zones may lie between two buddies.
#[test]
fn blocks_of_two_zones_do_not_merge() {
    let memmap = memmap();
    let (mut low, mut high) = (Buddy::new(memmap), Buddy::new(memmap));
    low.add(Pfn(0x80), Pfn(0xc0));
    high.add(Pfn(0xc0), Pfn(0x100));
    assert_eq!(free_blocks(&memmap), BTreeMap::from([(Pfn(0x80), 6), (Pfn(0xc0), 6)]));
    let block = high.take(6, PageType::Data).unwrap();
    high.put(block, 6);
    assert_eq!((low.free_frames(), high.free_frames()), (0x40, 0x40));
    assert_eq!((low.span(), high.span()), (Some((Pfn(0x80), Pfn(0xc0))), Some((Pfn(0xc0), Pfn(0x100)))));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u32),
    /// Which of the blocks taken so far.
    Put(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![(0u32..8).prop_map(Step::Take), any::<usize>().prop_map(Step::Put)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    /// The model is the set of blocks taken: they stay disjoint and aligned, `take` fails only if no free block is large
    /// enough, the counts agree, and when all is back the lists are as they were.
    #[test]
    fn any_sequence_keeps_blocks_disjoint_and_merges_back(steps in prop::collection::vec(step(), 1..200)) {
        let (memmap, mut buddy) = filled();
        let initial = free_blocks(&memmap);
        let mut taken: BTreeMap<Pfn, u32> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Take(order) => {
                    let largest = free_blocks(&memmap).into_values().max();
                    match buddy.take(order, PageType::Data) {
                        Some(pfn) => {
                            prop_assert_eq!(pfn.0 % (1 << order), 0);
                            let end = pfn.0 + (1 << order);
                            prop_assert!(FIRST <= pfn.0 && end <= FIRST + FRAMES);
                            let clash = taken.iter().any(|(other, o)| other.0 < end && pfn.0 < other.0 + (1 << o));
                            prop_assert!(!clash, "{:?} of order {} was handed out twice", pfn, order);
                            taken.insert(pfn, order);
                        }
                        None => prop_assert!(largest.is_none_or(|largest| largest < order)),
                    }
                }
                Step::Put(which) if !taken.is_empty() => {
                    let pfn = *taken.keys().nth(which % taken.len()).unwrap();
                    buddy.put(pfn, taken.remove(&pfn).unwrap());
                }
                Step::Put(_) => {}
            }
            let out: u64 = taken.values().map(|order| 1 << order).sum();
            prop_assert_eq!(buddy.free_frames() + out, FRAMES);
        }
        for (pfn, order) in taken {
            buddy.put(pfn, order);
        }
        prop_assert_eq!(free_blocks(&memmap), initial);
    }
}
