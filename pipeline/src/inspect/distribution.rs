//! The distribution of a number, in bins.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::html::number;

/// The distribution of whole numbers: quantiles, and bins that double in width.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// Numbers counted.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest.
    pub min: u64,
    /// Half of the numbers are no larger.
    pub median: u64,
    /// Nine tenths are no larger.
    pub p90: u64,
    /// 99 of 100 are no larger.
    pub p99: u64,
    /// Largest.
    pub max: u64,
    /// The bins 0, 1, 2, 3–4, 5–8, …, from the first to the last with a number in it.
    pub bins: Vec<Bin>,
}

/// Numbers from `from` to `to`, both included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// Smallest number of the bin.
    pub from: u64,
    /// Largest number of the bin.
    pub to: u64,
    /// Number of values in the bin.
    pub count: u64,
}

impl Bin {
    /// Its numbers, such as `3–4`.
    pub fn name(&self) -> String {
        let Self { from, to, .. } = *self;
        if from == to { number(from) } else { format!("{}–{}", number(from), number(to)) }
    }
}

/// Collects numbers; keeps one counter for each distinct one.
#[derive(Debug, Default)]
pub(super) struct Collector(BTreeMap<u64, u64>);

impl Collector {
    pub(super) fn add(&mut self, number: u64) {
        *self.0.entry(number).or_default() += 1;
    }

    pub(super) fn finish(self) -> Distribution {
        let count: u64 = self.0.values().sum();
        let (Some((&min, _)), Some((&max, _))) = (self.0.first_key_value(), self.0.last_key_value()) else {
            return Distribution::default();
        };
        let quantile = |share: f64| {
            let rank = (share * count as f64).ceil().max(1.0) as u64;
            let mut below = 0;
            let reached = |(&number, &n): (&u64, &u64)| {
                below += n;
                (below >= rank).then_some(number)
            };
            self.0.iter().find_map(reached).unwrap_or(max)
        };
        let mut bins: Vec<Bin> = Vec::new();
        let (mut from, mut to) = (0, 0);
        while from <= max {
            let inside = self.0.range(from..=to).map(|(_, n)| n).sum();
            if inside > 0 || !bins.is_empty() {
                bins.push(Bin { from, to, count: inside });
            }
            (from, to) = (to + 1, (to * 2).max(1));
        }
        let sum: f64 = self.0.iter().map(|(&number, &n)| number as f64 * n as f64).sum();
        Distribution {
            count,
            mean: sum / count as f64,
            min,
            median: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max,
            bins,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_bins() {
        let mut collector = Collector::default();
        (1..=100).for_each(|n| collector.add(n));
        let d = collector.finish();
        assert_eq!((d.count, d.min, d.median, d.p90, d.p99, d.max), (100, 1, 50, 90, 99, 100));
        assert_eq!(d.mean, 50.5);
        let bins: Vec<_> = d.bins.iter().map(|b| (b.from, b.to, b.count)).collect();
        let expected = [
            (1, 1, 1),
            (2, 2, 1),
            (3, 4, 2),
            (5, 8, 4),
            (9, 16, 8),
            (17, 32, 16),
            (33, 64, 32),
            (65, 128, 36),
        ];
        assert_eq!(bins, expected);
        assert_eq!(Collector::default().finish(), Distribution::default());
    }
}
