//! The random numbers behind sampling: xoshiro256++, seeded by SplitMix64.
//!
//! Both are fixed published algorithms on 64-bit integers, written out here so that a seed gives the
//! same text on every platform and after every update of a dependency.

/// A xoshiro256++ generator.
#[derive(Debug, Clone)]
pub(super) struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The state is four outputs of SplitMix64, as the authors of xoshiro advise: similar seeds give unrelated streams,
    /// and the state cannot be all zero.
    pub(super) fn new(seed: u64) -> Self {
        let mut mix = seed;
        Self { state: [(); 4].map(|()| split_mix(&mut mix)) }
    }

    fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `0.0..1.0`, from the upper 53 bits, which an f64 holds exactly.
    pub(super) fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A random seed: the standard library gets its hash keys from the operating system.
pub(super) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // 53 bits, so that every JSON reader gets the exact number.
    RandomState::new().hash_one(std::time::SystemTime::now()) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_gives_the_published_numbers() {
        let mut state = 1_234_567;
        let found = [(); 3].map(|()| split_mix(&mut state));
        assert_eq!(found, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn xoshiro_gives_the_published_numbers() {
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let found = [(); 6].map(|()| rng.next_u64());
        assert_eq!(
            found,
            [
                41_943_041,
                58_720_359,
                3_588_806_011_781_223,
                3_591_011_842_654_386,
                9_228_616_714_210_784_205,
                9_973_669_472_204_895_162
            ]
        );
    }

    #[test]
    fn floats_are_uniform_in_the_unit_interval() {
        let mut rng = Rng::new(0);
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let x = rng.next_f64();
            assert!((0.0..1.0).contains(&x));
            tenths[(x * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (850..1150).contains(n)), "{tenths:?}");
    }
}
