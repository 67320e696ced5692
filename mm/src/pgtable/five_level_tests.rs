//! The tables of five levels: the same walks, faults and frees one level deeper.

use crate::fault::FaultError;
use crate::machine::sim::SimConfig;
use crate::pgtable::{FiveLevel, PagingMode};
use crate::testing::{Process, World, map_anonymous, page, pages};

/// Pages that the span of an entry of the top table holds.
const TOP_SPAN: u64 = 1 << 36;

/// The last page of the user half.
const LAST: u64 = (FiveLevel::USER_END.0 >> 12) - 1;

/// Memory at both ends and on both sides of every level's border: each place takes its own tables, and gives them back (I5, I7).
#[test]
fn faults_build_five_levels_and_munmap_takes_them_down() {
    let world = World::<FiveLevel>::new(SimConfig::calm(256, 1, 1));
    world.alone(|| {
        let mm = world.mm();
        let places = [0x10, 0x200, 1 << 18, 1 << 27, TOP_SPAN - 1, TOP_SPAN, LAST];
        let process = Process::enter(&world, &mm);
        for place in places {
            map_anonymous(&mm, pages(place, place + 1));
            process.write(page(place), place).unwrap();
        }
        for place in places {
            assert_eq!(process.read(page(place)), Ok(place));
        }
        // Below the top table: one P4D table for each of three entries, and what each of those leads to.
        assert!(mm.linked_table_bytes() > 10 << 12);
        mm.munmap(pages(0, LAST + 1)).unwrap();
        assert_eq!(mm.linked_table_bytes(), 0);
        assert_eq!(process.read(page(TOP_SPAN)), Err(FaultError::NotMapped));
    });
}

/// Races of faults with `munmap`, where tables of all five levels come and go under the faults.
#[test]
fn munmap_races_with_faults_in_five_levels() {
    let world = World::<FiveLevel>::new(SimConfig::racy(1024, 4, 9));
    let mm = world.alone(|| world.mm());
    world.machine.run_all(|cpu| {
        let process = Process::enter(&world, &mm);
        for round in 0..40 {
            if cpu.0 == 0 {
                map_anonymous(&mm, pages(TOP_SPAN, TOP_SPAN + 4));
                let _ = process.write(page(TOP_SPAN), round);
                mm.munmap(pages(TOP_SPAN, TOP_SPAN + 4)).unwrap();
            } else {
                match process.write(page(TOP_SPAN + u64::from(cpu.0)), round) {
                    Ok(()) | Err(FaultError::NotMapped) => (),
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    });
    world.alone(|| drop(mm));
}
