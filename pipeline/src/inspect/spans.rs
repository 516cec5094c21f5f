//! The distribution of times between events.

use std::collections::BTreeMap;

use serde::Serialize;

/// The lower ends of the bins in milliseconds, and their names: roughly logarithmic, at common units.
const EDGES: [(u64, &str); 12] = [
    (0, "same instant"),
    (1, "below 1 s"),
    (1_000, "1–10 s"),
    (10_000, "10–60 s"),
    (60_000, "1–10 min"),
    (600_000, "10–60 min"),
    (3_600_000, "1–6 h"),
    (21_600_000, "6–24 h"),
    (86_400_000, "1–7 d"),
    (604_800_000, "7–30 d"),
    (2_592_000_000, "30–365 d"),
    (31_536_000_000, "365 d or more"),
];

/// The distribution of spans of time. Quantiles are rounded down by at most 4 %.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SpanDistribution {
    /// Spans counted.
    pub count: u64,
    /// Arithmetic mean, in milliseconds.
    pub mean_ms: f64,
    /// Shortest, in milliseconds.
    pub min_ms: u64,
    /// Half of the spans are no longer, in milliseconds.
    pub median_ms: u64,
    /// Nine tenths are no longer, in milliseconds.
    pub p90_ms: u64,
    /// 99 of 100 are no longer, in milliseconds.
    pub p99_ms: u64,
    /// Longest, in milliseconds.
    pub max_ms: u64,
    /// From the first to the last bin with a span in it.
    pub bins: Vec<SpanBin>,
}

/// The spans from `from_ms` on, and shorter than the next bin's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpanBin {
    /// Shortest span of the bin, in milliseconds.
    pub from_ms: u64,
    /// The bin's name.
    pub label: String,
    /// Number of spans in the bin.
    pub count: u64,
}

/// Collects spans; keeps six significant bits of each, so there are at most a few thousand counters.
#[derive(Debug, Default)]
pub(super) struct SpanCollector {
    rounded: BTreeMap<u64, u64>,
    bins: [u64; EDGES.len()],
    sum: u128,
    bounds: Option<(u64, u64)>,
}

impl SpanCollector {
    pub(super) fn add(&mut self, ms: u64) {
        let shift = (58 - ms.leading_zeros().min(58)) as u64;
        *self.rounded.entry(ms >> shift << shift).or_default() += 1;
        self.bins[EDGES.partition_point(|&(from, _)| from <= ms) - 1] += 1;
        self.sum += u128::from(ms);
        self.bounds = Some(self.bounds.map_or((ms, ms), |(min, max)| (min.min(ms), max.max(ms))));
    }

    pub(super) fn finish(self) -> SpanDistribution {
        let Some((min_ms, max_ms)) = self.bounds else { return SpanDistribution::default() };
        let count: u64 = self.bins.iter().sum();
        let quantile = |share: f64| {
            let rank = (share * count as f64).ceil().max(1.0) as u64;
            let mut below = 0;
            let mut reached = self.rounded.iter().filter_map(|(&ms, &n)| {
                below += n;
                (below >= rank).then_some(ms)
            });
            reached.next().unwrap_or(max_ms).max(min_ms)
        };
        let filled = |bin: &usize| self.bins[*bin] > 0;
        let first = (0..EDGES.len()).find(filled).unwrap_or(0);
        let last = (0..EDGES.len()).rfind(filled).unwrap_or(0);
        SpanDistribution {
            count,
            mean_ms: self.sum as f64 / count as f64,
            min_ms,
            median_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            max_ms,
            bins: (first..=last)
                .map(|bin| SpanBin {
                    from_ms: EDGES[bin].0,
                    label: EDGES[bin].1.into(),
                    count: self.bins[bin],
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bins_have_names() {
        let mut collector = SpanCollector::default();
        [0, 999, 1_000, 90_000, 90_000].into_iter().for_each(|ms| collector.add(ms));
        let d = collector.finish();
        let bins: Vec<_> = d.bins.iter().map(|bin| (bin.label.as_str(), bin.count)).collect();
        let expected =
            [("same instant", 1), ("below 1 s", 1), ("1–10 s", 1), ("10–60 s", 0), ("1–10 min", 2)];
        assert_eq!(bins, expected);
        assert_eq!((d.min_ms, d.max_ms, d.mean_ms), (0, 90_000, 36_399.8));
        assert_eq!(SpanCollector::default().finish(), SpanDistribution::default());
    }

    proptest! {
        #[test]
        fn quantiles_are_close(mut spans in prop::collection::vec(0u64..1 << 45, 1..200)) {
            let mut collector = SpanCollector::default();
            spans.iter().for_each(|&ms| collector.add(ms));
            let d = collector.finish();
            spans.sort_unstable();
            let median = spans[(spans.len() - 1) / 2];
            prop_assert!(d.median_ms <= median && d.median_ms as f64 >= 0.96 * median as f64 - 1.0);
            prop_assert_eq!(d.bins.iter().map(|bin| bin.count).sum::<u64>(), spans.len() as u64);
        }
    }
}
