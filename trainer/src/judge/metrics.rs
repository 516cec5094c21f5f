//! Metrics of ranked lists. [`METRICS`] is their single table: evaluation, validation records, comparison and the gate hold one
//! number per row of it ([`PerMetric`](super::PerMetric)).

/// A metric of a ranked list; a row of [`METRICS`].
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Key in JSON and figures, such as `hr@10`.
    pub name: &'static str,
    /// Number of places, from the top of the list, that the metric reads.
    pub places: usize,
    measure: Measure,
}

#[derive(Debug, Clone, Copy)]
enum Measure {
    /// Gain of a target at a rank (from 1) within the places; a target at no such rank gains 0.
    Gain(fn(u32) -> f64),
    /// Share of the places whose item carries the condition; an empty place counts as not carrying it.
    Compliance,
}

/// Every metric, in the order of all outputs: metrics of ranks first, then those that need a condition. Adding a metric takes one
/// row here.
pub const METRICS: &[Metric] = &[
    // Hit rate (Eq. 7).
    Metric::of_rank("hr@10", 10, |_| 1.0),
    Metric::of_rank("hr@20", 20, |_| 1.0),
    Metric::of_rank("hr@50", 50, |_| 1.0),
    // Normalised discounted cumulative gain, with one relevant item.
    Metric::of_rank("ndcg@10", 10, |rank| 1.0 / f64::from(rank + 1).log2()),
    // Condition compliance (Eq. 8).
    Metric::compliance("cc@10", 10),
    Metric::compliance("cc@20", 20),
    Metric::compliance("cc@50", 50),
];

/// Number of metrics.
pub const ALL: usize = METRICS.len();

/// Number of metrics that need no condition.
pub const OF_RANKS: usize = of_ranks();

/// Length of the longest list that a metric reads.
pub(super) const LIST: usize = longest();

/// Hit rate at 10, the headline.
pub const HR_10: Key = Key::of("hr@10");
/// Normalised discounted cumulative gain at 10.
pub const NDCG_10: Key = Key::of("ndcg@10");
/// Condition compliance at 10.
pub const CC_10: Key = Key::of("cc@10");

impl Metric {
    const fn of_rank(name: &'static str, places: usize, gain: fn(u32) -> f64) -> Self {
        Self { name, places, measure: Measure::Gain(gain) }
    }

    const fn compliance(name: &'static str, places: usize) -> Self {
        Self { name, places, measure: Measure::Compliance }
    }

    /// Returns the name in tables, such as `HR@10`.
    pub fn label(&self) -> String {
        self.name.to_uppercase()
    }

    /// Returns the name of Parquet columns, scalars and fields in comparisons, such as `hr_10`.
    pub fn column(&self) -> String {
        self.name.replace('@', "_")
    }
}

const fn of_ranks() -> usize {
    let mut first = 0;
    while first < METRICS.len() && matches!(METRICS[first].measure, Measure::Gain(_)) {
        first += 1;
    }
    let mut rest = first;
    while rest < METRICS.len() {
        assert!(matches!(METRICS[rest].measure, Measure::Compliance), "metrics of ranks come first");
        rest += 1;
    }
    first
}

const fn longest() -> usize {
    let (mut longest, mut i) = (0, 0);
    while i < METRICS.len() {
        if METRICS[i].places > longest {
            longest = METRICS[i].places;
        }
        i += 1;
    }
    longest
}

/// Index of a metric in [`METRICS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub(super) usize);

impl Key {
    /// Returns the key of the metric called `name`.
    ///
    /// # Panics
    ///
    /// No metric has this name; in a constant, compilation fails.
    pub(super) const fn of(name: &str) -> Self {
        let mut i = 0;
        while i < METRICS.len() {
            if equal(METRICS[i].name.as_bytes(), name.as_bytes()) {
                return Self(i);
            }
            i += 1;
        }
        panic!("no metric has this name");
    }

    /// Returns the row of the table.
    pub fn metric(self) -> &'static Metric {
        &METRICS[self.0]
    }

    /// Returns the index in the table, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// The parts of one list that metrics read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Answer {
    /// Rank of the target in the list, from 1; `None` if absent.
    pub(super) rank: Option<u32>,
    /// For each metric of compliance, the number of its places whose item carries the condition.
    pub(super) compliant: [u32; ALL - OF_RANKS],
}

impl Answer {
    /// Builds an answer; `compliant(k)` returns how many of the first `k` items carry the condition.
    pub(super) fn new(rank: Option<u32>, compliant: impl Fn(usize) -> u32) -> Self {
        Self { rank, compliant: std::array::from_fn(|i| compliant(METRICS[OF_RANKS + i].places)) }
    }

    /// Returns one metric of this list.
    pub(super) fn value(&self, key: Key) -> f64 {
        let Metric { places, measure, .. } = key.metric();
        match measure {
            Measure::Gain(gain) => self.rank.filter(|&rank| rank as usize <= *places).map_or(0.0, gain),
            Measure::Compliance => f64::from(self.compliant[key.0 - OF_RANKS]) / *places as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_how_many_places_are_read() {
        for (i, metric) in METRICS.iter().enumerate() {
            assert!(metric.name.ends_with(&format!("@{}", metric.places)), "{metric:?}");
            assert!(METRICS[..i].iter().all(|earlier| earlier.name != metric.name), "{metric:?}");
        }
    }
}
