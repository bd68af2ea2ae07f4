//! Seeded randomness: one stream per subsystem, so that one more draw in one does not move the
//! others.

/// A xoshiro256** generator (Blackman and Vigna, 2018).
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    s: [u64; 4],
}

/// SplitMix64's output function, which also spreads seeds.
pub(crate) fn spread(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of one subsystem of a run; `index` tells several of a kind apart.
    pub(crate) fn stream(seed: u64, name: &str, index: u64) -> Rng {
        let mut h = spread(seed);
        for b in name.bytes() {
            h = spread(h ^ u64::from(b));
        }
        h = spread(h ^ index);
        let mut s = [0; 4];
        for x in &mut s {
            h = spread(h);
            *x = h;
        }
        Rng { s }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let result = self.s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = self.s[1] << 17;
        self.s[2] ^= self.s[0];
        self.s[3] ^= self.s[1];
        self.s[1] ^= self.s[2];
        self.s[0] ^= self.s[3];
        self.s[2] ^= t;
        self.s[3] = self.s[3].rotate_left(45);
        result
    }

    /// A number below `n`; 0 if `n` is 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True this often in a million.
    pub(crate) fn ppm(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// The index of one of these weights, each drawn as often as it weighs.
    pub(crate) fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut at = self.below(weights.iter().sum());
        for (i, w) in weights.iter().enumerate() {
            if at < *w {
                return i;
            }
            at -= w;
        }
        weights.len() - 1
    }

    /// A number in `low..=high` whose logarithm is uniform: many small ones, few large ones.
    pub(crate) fn heavy(&mut self, low: u64, high: u64) -> u64 {
        let low = low.max(1);
        let steps = u64::from((high.max(low) / low).ilog2());
        let top = (low << self.below(steps + 1)).saturating_mul(2).min(high);
        self.range(low, top.max(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, name, i| Rng::stream(seed, name, i).next();
        assert_eq!(draw(7, "network", 0), draw(7, "network", 0));
        assert_ne!(draw(7, "network", 0), draw(7, "network", 1));
        assert_ne!(draw(7, "network", 0), draw(7, "disk", 0));
        assert_ne!(draw(7, "network", 0), draw(8, "network", 0));
    }

    #[test]
    fn draws_stay_within_their_bounds() {
        let mut rng = Rng::stream(1, "test", 0);
        for _ in 0..10_000 {
            assert!((3..=9).contains(&rng.range(3, 9)));
            assert!((5..=5_000).contains(&rng.heavy(5, 5_000)));
            assert_eq!(rng.weighted(&[0, 4, 0]), 1);
            assert!(!rng.ppm(0) && rng.percent(100));
        }
    }
}
