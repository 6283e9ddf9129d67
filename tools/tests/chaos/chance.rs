//! Moments chosen by chance, the same again with the same seed.

use std::{
    env,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Environment variable with the seed of an earlier run.
const SEED: &str = "CHAOS_SEED";

/// A generator of numbers: splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
/// number generators").
pub(crate) struct Chance(u64);

impl Chance {
    /// Seeded by `CHAOS_SEED`, else anew. Says which seed it is.
    pub(crate) fn seeded() -> Self {
        let seed = env::var(SEED).map_or_else(
            |_not_set| RandomState::new().hash_one(0),
            |text| text.parse().expect("CHAOS_SEED is a number"),
        );
        println!("{SEED}={seed}");
        Self(seed)
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap();
        usize::try_from(self.number() % bound).unwrap()
    }

    /// A time within a span.
    pub(crate) fn within(&mut self, span: Duration) -> Duration {
        let micros = u64::try_from(span.as_micros()).unwrap().max(1);
        Duration::from_micros(self.number() % micros)
    }
}
