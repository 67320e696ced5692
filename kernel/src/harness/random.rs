//! Random numbers for tests and workloads: repeatable, and all from the run's seed.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; equal seeds give equal sequences.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if `bound` is 0. The bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

mod tests {
    use super::Random;
    use crate::harness::{TestContext, ktest, ktest_assert, ktest_assert_eq};

    ktest! {
        /// The generator is the published one: its first numbers from seed 1234567.
        fn the_sequence_is_the_published_one(_t: &TestContext) {
            let mut random = Random::new(1_234_567);
            let first = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
            ktest_assert_eq!([(); 3].map(|()| random.next_u64()), first);
        }

        /// Numbers below a bound are, and all of them occur.
        fn bounded_numbers_cover_their_range(t: &TestContext) {
            let mut random = t.random();
            let mut seen = [false; 7];
            for _ in 0..500 {
                let number = random.below(7) as usize;
                ktest_assert!(number < seen.len());
                seen[number] = true;
            }
            ktest_assert!(seen.iter().all(|seen| *seen), "{seen:?}");
            ktest_assert_eq!(random.below(0), 0);
        }
    }
}
