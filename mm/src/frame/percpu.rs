//! A CPU's reserve of free frames.
//!
//! Rule: a frame is in the reserve exactly while its number is in a slot, and it changes owner by one atomic operation on
//! that slot. So taking and putting need neither a lock nor interrupts off, and any CPU may empty any reserve at any time.

use crate::address::Pfn;
use crate::page::{decode, encode};
use crate::sync::atomic::{AtomicUsize, Ordering, array_of, const_new};

/// Frames a reserve holds at most.
pub(super) const CAPACITY: usize = if cfg!(loom) {
    2
} else if cfg!(shuttle) {
    4
} else {
    32
};

/// Frames moved between a reserve and the buddy lists at a time.
pub(super) const BATCH: usize = CAPACITY / 2;

/// The free frames kept for one CPU; on lines of its own, as others write it only when memory runs out.
#[repr(align(64))]
pub struct CpuFrames {
    slots: [AtomicUsize; CAPACITY],
    /// Where to look first: slots below are likely full, the others likely empty. Only a hint.
    top: AtomicUsize,
}

impl CpuFrames {
    const_new! {
        /// An empty reserve.
        pub(crate) fn new() -> Self {
            Self { slots: array_of![AtomicUsize::new(0); CAPACITY], top: AtomicUsize::new(0) }
        }
    }

    /// Takes a frame out.
    pub(super) fn take(&self) -> Option<Pfn> {
        let top = self.top.load(Ordering::Relaxed).min(CAPACITY);
        for index in (0..top).rev().chain((top..CAPACITY).rev()) {
            if self.slots[index].load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire: pairs with the release in `put`; what the freeing CPU did to the frame happens before our use.
            if let Some(pfn) = decode(self.slots[index].swap(0, Ordering::Acquire)) {
                self.top.store(index, Ordering::Relaxed);
                return Some(pfn);
            }
        }
        None
    }

    /// Puts a frame in; `false` if there is no room.
    #[must_use]
    pub(super) fn put(&self, pfn: Pfn) -> bool {
        let top = self.top.load(Ordering::Relaxed).min(CAPACITY);
        for index in (top..CAPACITY).chain(0..top) {
            if self.slots[index].load(Ordering::Relaxed) != 0 {
                continue;
            }
            // Release: pairs with the acquire in `take`.
            let word = encode(Some(pfn));
            if self.slots[index].compare_exchange(0, word, Ordering::Release, Ordering::Relaxed).is_ok() {
                self.top.store(index + 1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    /// Frames in the reserve; exact while nobody takes or puts.
    pub(super) fn count(&self) -> u64 {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count() as u64
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{CAPACITY, CpuFrames};
    use crate::address::Pfn;
    use std::collections::BTreeSet;
    use std::sync::Barrier;

    #[test]
    fn a_reserve_holds_what_was_put_in_and_refuses_more_than_it_has_room_for() {
        let reserve = CpuFrames::new();
        assert_eq!(reserve.take(), None);
        // Frame 0 is a frame like any other.
        let frames: Vec<Pfn> = (0..CAPACITY as u64).map(Pfn).collect();
        assert!(frames.iter().all(|pfn| reserve.put(*pfn)));
        assert!(!reserve.put(Pfn(99)));
        assert_eq!(reserve.count(), CAPACITY as u64);
        let mut taken: Vec<Pfn> = std::iter::from_fn(|| reserve.take()).collect();
        taken.sort();
        assert_eq!(taken, frames);
    }

    #[test]
    fn the_frame_put_last_is_taken_first() {
        let reserve = CpuFrames::new();
        assert!(reserve.put(Pfn(1)) && reserve.put(Pfn(2)));
        assert_eq!((reserve.take(), reserve.take()), (Some(Pfn(2)), Some(Pfn(1))));
    }

    #[test]
    fn a_frame_is_never_given_to_two_even_while_others_empty_the_reserve() {
        const FRAMES: u64 = CAPACITY as u64;
        let reserve = CpuFrames::new();
        assert!((0..FRAMES).all(|pfn| reserve.put(Pfn(pfn))));
        let start = Barrier::new(4);
        let worker = || {
            start.wait();
            let mut mine = Vec::new();
            for round in 0..20_000 {
                mine.extend(reserve.take());
                if round % 3 != 0 {
                    mine.extend(reserve.take());
                }
                while mine.len() > round % 4 {
                    // There are no more frames than slots, so only a taker in the act can make room look missing.
                    let pfn = mine.pop().unwrap();
                    while !reserve.put(pfn) {}
                }
            }
            mine
        };
        let mut all: Vec<Pfn> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        all.extend(std::iter::from_fn(|| reserve.take()));
        assert_eq!(all.len() as u64, FRAMES, "a frame was lost or doubled");
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>().len() as u64, FRAMES);
    }
}

/// An owner that takes and puts, while another CPU drains or the owner's own interrupt handler frees.
#[cfg(all(test, loom))]
#[allow(unsafe_code)]
mod model {
    use super::CpuFrames;
    use crate::address::Pfn;
    use loom::cell::UnsafeCell;
    use loom::model::Builder;
    use loom::sync::Arc;
    use loom::thread;

    /// A reserve, and contents of frames that only their owner touches: the checker objects if two do without an order.
    struct Memory {
        reserve: CpuFrames,
        contents: [UnsafeCell<()>; 3],
    }

    // SAFETY: what the model checks; loom reports every violation.
    unsafe impl Sync for Memory {}

    impl Memory {
        fn own(&self, pfn: Pfn) -> Pfn {
            self.contents[pfn.0 as usize].with_mut(|_| ());
            pfn
        }

        fn put(&self, pfn: Pfn) -> bool {
            self.reserve.put(self.own(pfn))
        }

        fn take(&self) -> Option<Pfn> {
            self.reserve.take().map(|pfn| self.own(pfn))
        }
    }

    /// Checks every interleaving with up to three preemptions.
    fn check(model: impl Fn(Arc<Memory>) + Send + Sync + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            model(Arc::new(Memory { reserve: CpuFrames::new(), contents: [(); 3].map(UnsafeCell::new) }));
        });
    }

    #[test]
    fn no_frame_is_lost_or_given_twice() {
        check(|memory| {
            assert!(memory.put(Pfn(1)) && memory.put(Pfn(2)));
            let drainer = {
                let memory = memory.clone();
                thread::spawn(move || [memory.take(), memory.take()])
            };
            let mut all = vec![];
            if let Some(pfn) = memory.take() {
                if !memory.put(pfn) {
                    all.push(pfn);
                }
            }
            all.extend(memory.take());
            all.extend(drainer.join().unwrap().into_iter().flatten());
            all.extend(std::iter::from_fn(|| memory.take()));
            all.sort();
            assert_eq!(all, [Pfn(1), Pfn(2)]);
        });
    }

    /// A handler that frees a frame puts while its CPU is in the middle of a put; to the slots that is another CPU.
    #[test]
    fn two_that_put_at_once_lose_no_frame() {
        check(|memory| {
            let other = {
                let memory = memory.clone();
                thread::spawn(move || memory.put(Pfn(1)))
            };
            assert!(memory.put(Pfn(2)));
            assert!(other.join().unwrap());
            let mut all: Vec<Pfn> = std::iter::from_fn(|| memory.take()).collect();
            all.sort();
            assert_eq!(all, [Pfn(1), Pfn(2)]);
        });
    }
}
