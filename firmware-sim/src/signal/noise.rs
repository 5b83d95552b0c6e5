//! Random numbers of the generated series: from a seed, equal on every machine and in every release.

/// SplitMix64 (Steele, Lea, Flood 2014). Our own, because a library's generator may change its numbers between releases.
#[derive(Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    /// The numbers of one series and one seed.
    pub(crate) fn new(series: u64, seed: u64) -> Self {
        Self(series.rotate_left(32) ^ seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A whole number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        let span = high.abs_diff(low).saturating_add(1);
        low.saturating_add_unsigned(self.next() % span)
    }
}

/// A value that wanders around its mean, as a resting body's does.
#[derive(Debug)]
pub(crate) struct Walk {
    mean: i64,
    /// Sixteenths, so that the pull to the mean is not lost in rounding.
    sixteenths: i64,
    step: i64,
}

impl Walk {
    /// Starts at the mean; each step is at most `step` wide.
    pub(crate) const fn around(mean: i64, step: i64) -> Self {
        Self {
            mean,
            sixteenths: mean * 16,
            step,
        }
    }

    /// The next value.
    pub(crate) fn next(&mut self, noise: &mut Noise) -> i64 {
        let pull = (self.mean * 16 - self.sixteenths) / 16;
        self.sixteenths += pull + noise.between(-self.step * 16, self.step * 16);
        self.sixteenths / 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_publication() {
        let mut noise = Noise(1_234_567);
        assert_eq!(
            [noise.next(), noise.next()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]
        );
    }

    #[test]
    fn a_walk_stays_near_its_mean() {
        let (mut noise, mut walk) = (Noise::new(1, 2), Walk::around(1200, 20));
        assert!((0..100_000).all(|_| (1000..1400).contains(&walk.next(&mut noise))));
    }
}
