use super::{OutOfMemory, Slab, SlabKind};
use crate::cpu::CpuId;
use crate::frame::{FrameAllocator, Site};
use crate::machine::Machine;
use crate::machine::sim::{Sim, SimConfig, SimMachine};
use crate::pgtable::FourLevel;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

const CPU: CpuId = CpuId(0);

type Machine4 = Sim<FourLevel>;

/// 100 bytes: not a power of two, 40 to a frame.
type Odd = [u32; 25];

/// A top table of PAE.
type Pgd = [u64; 4];

struct Fixture {
    machine: SimMachine<FourLevel>,
    frames: FrameAllocator<Machine4>,
    slab: Slab<Machine4>,
}

impl Fixture {
    fn new(config: SimConfig) -> Self {
        let machine = SimMachine::new(config);
        let (sim, memmap) = (machine.handle(), machine.memmap());
        let frames = FrameAllocator::new(memmap);
        sim.run_cpu(CPU, || frames.add_free_range(sim, memmap.first(), memmap.end())).unwrap();
        let slab = Slab::new()
            .register::<Odd>(SlabKind::Vma)
            .register::<Pgd>(SlabKind::Pgd)
            .register::<Vec<u8>>(SlabKind::Object);
        Self { machine, frames, slab }
    }

    fn calm(frames: usize) -> Self {
        Self::new(SimConfig::calm(frames, 1, 1))
    }

    fn sim(&self) -> Machine4 {
        self.machine.handle()
    }

    fn run<R>(&self, body: impl FnOnce() -> R) -> R {
        self.sim().run_cpu(CPU, body)
    }

    fn alloc(&self, kind: SlabKind) -> Result<NonNull<u8>, OutOfMemory> {
        self.slab.alloc(self.sim(), &self.frames, kind)
    }

    fn free(&self, kind: SlabKind, object: NonNull<u8>) {
        // SAFETY: the tests free what they allocated. Where one breaks the contract on purpose, the cache panics before
        // it touches the object.
        unsafe { self.slab.free(self.sim(), &self.frames, kind, object) }
    }

    fn objects(&self, kind: SlabKind) -> u64 {
        self.slab.objects(self.sim(), kind)
    }

    fn free_frames(&self) -> u64 {
        self.frames.free_frames(self.sim())
    }
}

#[test]
fn objects_do_not_overlap_and_hold_what_is_written() {
    let fixture = Fixture::calm(8);
    fixture.run(|| {
        let objects: Vec<NonNull<Odd>> = (0..100)
            .map(|n| fixture.slab.alloc_value(fixture.sim(), &fixture.frames, SlabKind::Vma, [n; 25]).unwrap())
            .collect();
        assert_eq!(fixture.objects(SlabKind::Vma), 100);
        for (n, object) in objects.into_iter().enumerate() {
            // SAFETY: allocated above, and not freed yet.
            assert_eq!(unsafe { object.read() }, [n as u32; 25]);
            fixture.free(SlabKind::Vma, object.cast());
        }
        assert_eq!(fixture.objects(SlabKind::Vma), 0);
    });
}

#[test]
fn objects_of_a_power_of_two_are_aligned_to_their_size() {
    let fixture = Fixture::calm(8);
    fixture.run(|| {
        for _ in 0..300 {
            let pgd = fixture.alloc(SlabKind::Pgd).unwrap();
            assert_eq!(pgd.addr().get() % 32, 0, "CR3 of PAE has no bits for less");
        }
    });
}

#[test]
fn a_cache_gives_empty_frames_back_but_one() {
    let fixture = Fixture::calm(64);
    fixture.run(|| {
        let objects: Vec<_> = (0..400).map(|_| fixture.alloc(SlabKind::Vma).unwrap()).collect();
        assert_eq!(fixture.free_frames(), 64 - 10);
        objects.into_iter().for_each(|object| fixture.free(SlabKind::Vma, object));
        assert_eq!(fixture.free_frames(), 63);
        fixture.slab.shrink(fixture.sim(), &fixture.frames);
        assert_eq!(fixture.free_frames(), 64);
        // What was given back can be used again.
        assert!(fixture.alloc(SlabKind::Vma).is_ok());
    });
}

#[test]
fn a_free_object_in_a_full_frame_is_found_again() {
    let fixture = Fixture::calm(64);
    fixture.run(|| {
        let objects: Vec<_> = (0..80).map(|_| fixture.alloc(SlabKind::Vma).unwrap()).collect();
        assert_eq!(fixture.free_frames(), 62);
        fixture.free(SlabKind::Vma, objects[3]);
        assert_eq!(fixture.alloc(SlabKind::Vma), Ok(objects[3]));
        assert_eq!(fixture.free_frames(), 62);
    });
}

#[test]
fn exhausted_memory_is_an_error_that_gives_the_value_back_and_leaks_nothing() {
    let fixture = Fixture::calm(2);
    fixture.run(|| {
        let objects: Vec<_> = std::iter::from_fn(|| fixture.alloc(SlabKind::Vma).ok()).collect();
        assert_eq!(objects.len(), 80);
        let refused = fixture.slab.alloc_value(fixture.sim(), &fixture.frames, SlabKind::Object, vec![7u8]);
        assert_eq!(refused, Err((OutOfMemory, vec![7u8])));
        objects.into_iter().for_each(|object| fixture.free(SlabKind::Vma, object));
        fixture.slab.shrink(fixture.sim(), &fixture.frames);
        assert_eq!(
            (fixture.free_frames(), fixture.objects(SlabKind::Vma), fixture.objects(SlabKind::Object)),
            (2, 0, 0)
        );
    });
}

#[test]
fn a_freed_value_is_dropped_once() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    let fixture = Fixture::calm(8);
    fixture.run(|| {
        let object = fixture.slab.alloc_value(fixture.sim(), &fixture.frames, SlabKind::Pgd, Counted).ok().unwrap();
        assert_eq!(DROPS.load(Ordering::Relaxed), 0);
        // SAFETY: allocated just now with this type and kind.
        unsafe { fixture.slab.free_value(fixture.sim(), &fixture.frames, SlabKind::Pgd, object) };
        assert_eq!(DROPS.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn both_steps_of_growing_can_be_made_to_fail_and_nothing_changes() {
    let fixture = Fixture::calm(8);
    let sim = fixture.sim();
    fixture.run(|| {
        let injection = &sim.local().injection;
        for (nth, site) in [(1, Site::Slab), (2, Site::Frame)] {
            injection.fail_nth(nth);
            assert_eq!(fixture.alloc(SlabKind::Vma), Err(OutOfMemory));
            assert_eq!(injection.stop().failed, Some(site));
            assert_eq!((fixture.objects(SlabKind::Vma), fixture.free_frames()), (0, 8));
        }
        injection.fail_nth(3);
        assert!(fixture.alloc(SlabKind::Vma).is_ok());
        assert_eq!(injection.stop().failed, None);
    });
}

/// Does `wrong`, expects the cache to panic, and returns with what.
fn caught(fixture: &Fixture, wrong: impl FnOnce()) -> String {
    let panic = fixture.run(|| catch_unwind(AssertUnwindSafe(wrong))).expect_err("nobody noticed");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().unwrap().to_string(),
    }
}

#[test]
#[cfg(debug_assertions)]
fn freeing_an_object_twice_is_caught() {
    let fixture = Fixture::calm(8);
    let text = caught(&fixture, || {
        let [a, b, c] = [(); 3].map(|()| fixture.alloc(SlabKind::Vma).unwrap());
        [a, b, a, c].into_iter().for_each(|object| fixture.free(SlabKind::Vma, object));
    });
    assert!(text.contains("freed twice"), "{text}");
}

#[test]
#[cfg(debug_assertions)]
fn a_write_to_a_freed_object_is_caught_when_it_is_handed_out_again() {
    let fixture = Fixture::calm(8);
    let text = caught(&fixture, || {
        let object = fixture.alloc(SlabKind::Vma).unwrap();
        fixture.free(SlabKind::Vma, object);
        // SAFETY: the frame is still mapped; this is the very mistake the poison is there for.
        unsafe { object.add(50).write(1) };
        let _ = fixture.alloc(SlabKind::Vma);
    });
    assert!(text.contains("written to while free"), "{text}");
}

#[test]
fn freeing_an_object_to_another_cache_is_caught() {
    let fixture = Fixture::calm(8);
    let text = caught(&fixture, || fixture.free(SlabKind::Pgd, fixture.alloc(SlabKind::Vma).unwrap()));
    assert!(text.contains("freed as Pgd"), "{text}");
}

#[test]
fn freeing_what_is_not_the_start_of_an_object_is_caught() {
    let fixture = Fixture::calm(8);
    let text = caught(&fixture, || {
        let object = fixture.alloc(SlabKind::Vma).unwrap();
        // SAFETY: stays inside the object.
        fixture.free(SlabKind::Vma, unsafe { object.add(4) });
    });
    assert!(text.contains("not the start"), "{text}");
}

#[test]
fn a_type_larger_than_the_registered_one_is_refused() {
    let fixture = Fixture::calm(8);
    let text = caught(&fixture, || {
        let _ = fixture.slab.alloc_value(fixture.sim(), &fixture.frames, SlabKind::Pgd, [0u8; 33]);
    });
    assert!(text.contains("too small"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// The model is a map from object to kind and contents: no two overlap, contents stay, counts agree, and in the end
    /// every frame is back.
    #[test]
    fn any_sequence_keeps_objects_apart_and_returns_every_frame(steps in prop::collection::vec((any::<bool>(), any::<u8>()), 1..400)) {
        const FRAMES: u64 = 6;
        let fixture = Fixture::calm(FRAMES as usize);
        let kinds = [(SlabKind::Vma, 100), (SlabKind::Pgd, 32)];
        let mut model: BTreeMap<NonNull<u8>, (usize, u8)> = BTreeMap::new();
        fixture.run(|| {
            for (grow, byte) in steps {
                let which = usize::from(byte) % 2;
                let (kind, size) = kinds[which];
                if grow {
                    for round in 0..u8::from(byte > 128) * 7 + 1 {
                        let Ok(object) = fixture.alloc(kind) else { break };
                        // SAFETY: fresh, and `size` is at most what was registered.
                        unsafe { object.write_bytes(byte ^ round, size) };
                        prop_assert!(model.insert(object, (which, byte ^ round)).is_none(), "handed out twice");
                    }
                } else if let Some((&object, &(which, byte))) = model.iter().nth(usize::from(byte) % model.len().max(1)) {
                    let (kind, size) = kinds[which];
                    // SAFETY: in the model, so allocated, and of this size.
                    let bytes = unsafe { std::slice::from_raw_parts(object.as_ptr(), size) };
                    prop_assert!(bytes.iter().all(|found| *found == byte), "overwritten by another object");
                    fixture.free(kind, object);
                    model.remove(&object);
                }
                for (which, (kind, _)) in kinds.into_iter().enumerate() {
                    let expected = model.values().filter(|(of, _)| *of == which).count();
                    prop_assert_eq!(fixture.objects(kind), expected as u64);
                }
            }
            for (object, (which, _)) in model {
                fixture.free(kinds[which].0, object);
            }
            fixture.slab.shrink(fixture.sim(), &fixture.frames);
            prop_assert_eq!(fixture.free_frames(), FRAMES);
            Ok(())
        })?;
    }
}

#[test]
fn cpus_share_a_cache_without_sharing_an_object() {
    for seed in 1..=4 {
        let fixture = Fixture::new(SimConfig::racy(32, 4, seed));
        let sim = fixture.sim();
        let (slab, frames) = (&fixture.slab, &fixture.frames);
        sim.run_all(|cpu| {
            let mut mine: Vec<NonNull<Odd>> = Vec::new();
            let give_back = |object: NonNull<Odd>| {
                // SAFETY: this CPU allocated it and frees it once.
                unsafe {
                    assert_eq!(object.read(), [cpu.0; 25], "somebody else wrote to the object");
                    slab.free_value(sim, frames, SlabKind::Vma, object);
                }
            };
            for step in 0..1_500u64 {
                if (step * 5 + u64::from(cpu.0) + seed) % 9 < 5 {
                    mine.extend(slab.alloc_value(sim, frames, SlabKind::Vma, [cpu.0; 25]).ok());
                } else {
                    mine.pop().into_iter().for_each(give_back);
                }
                if step % 100 == 99 {
                    mine.drain(..).for_each(give_back);
                }
            }
            mine.into_iter().for_each(give_back);
        });
        fixture.run(|| {
            slab.shrink(sim, frames);
            assert_eq!((fixture.objects(SlabKind::Vma), fixture.free_frames()), (0, 32));
        });
    }
}
