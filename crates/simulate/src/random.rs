//! Random numbers that depend on nothing but what they are for: each is a hash of the seed, a purpose and a
//! place (user, day, session, …), so that any part of a log can be drawn alone and in any order.

use schemas::hash::mix64;

/// What a number is for; numbers of different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Item = 1,
    Activity,
    Taste,
    Favourite,
    Plan,
    Session,
    Late,
    EventId,
    RequestId,
    Bad,
    Duplicate,
}

/// The key of one purpose.
pub(crate) fn key(seed: u64, purpose: Purpose) -> u64 {
    mix64(mix64(seed, 0x5eed), purpose as u64)
}

/// `bits` as a number in `[0, 1)`.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A sequence of numbers that its key determines.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    key: u64,
    drawn: u64,
}

impl Random {
    /// The sequence of `place` among those of `key`.
    pub(crate) fn at(key: u64, place: u64) -> Self {
        Self { key: mix64(key, place), drawn: 0 }
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.drawn += 1;
        mix64(self.key, self.drawn)
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        unit(self.bits())
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Uniform in `low..high`; `low` where the range is empty.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.unit() * (high - low) as f64) as i64
    }

    /// Nearly normal with mean 0 and variance 1, and never beyond 3.47: four uniform numbers, added.
    pub(crate) fn bell(&mut self) -> f64 {
        let sum = self.unit() + self.unit() + self.unit() + self.unit();
        (sum - 2.0) * 3f64.sqrt()
    }

    /// Trials until the first that fails, each succeeding with `probability`; at most `max`.
    pub(crate) fn run_length(&mut self, probability: f64, max: usize) -> usize {
        let mut length = 1;
        while length < max && self.chance(probability) {
            length += 1;
        }
        length
    }

    /// Poisson by inversion, at most `max`.
    pub(crate) fn poisson(&mut self, mean: f64, max: u32) -> u32 {
        let target = self.unit();
        let mut term = (-mean).exp();
        let mut sum = term;
        let mut count = 0;
        while target >= sum && count < max {
            count += 1;
            term *= mean / f64::from(count);
            sum += term;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_right() {
        let mut random = Random::at(key(1, Purpose::Plan), 7);
        let n = 200_000;
        let mean = |values: &mut dyn FnMut() -> f64| (0..n).map(|_| values()).sum::<f64>() / f64::from(n);
        assert!((mean(&mut || random.unit()) - 0.5).abs() < 0.01);
        assert!(mean(&mut || random.bell()).abs() < 0.02);
        assert!((mean(&mut || random.bell().powi(2)) - 1.0).abs() < 0.02);
        assert!((mean(&mut || f64::from(random.poisson(0.3, 63))) - 0.3).abs() < 0.01);
        assert!((mean(&mut || f64::from(random.poisson(20.0, 63))) - 20.0).abs() < 0.1);
        assert!((mean(&mut || random.run_length(0.75, 1_000) as f64) - 4.0).abs() < 0.05);
    }

    #[test]
    fn purposes_and_places_are_independent() {
        let first = |seed, purpose, place| Random::at(key(seed, purpose), place).bits();
        let all = [
            first(1, Purpose::Plan, 1),
            first(2, Purpose::Plan, 1),
            first(1, Purpose::Session, 1),
            first(1, Purpose::Plan, 2),
        ];
        assert!((0..4).all(|a| (0..a).all(|b| all[a] != all[b])));
    }
}
