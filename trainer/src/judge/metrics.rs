//! Metrics of ranked lists. [`METRICS`] is their single table: evaluation, validation records, comparison and the gate hold one
//! number per row of it ([`PerMetric`]).

use serde::{Deserialize, Serialize};

use super::per_metric::{self, PerMetric};

/// The part of a user's history that a prediction may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// All earlier events.
    Standard,
    /// As in production: events of the last `Δτ` are hidden.
    AsServed,
}

impl Protocol {
    /// Both protocols, in the order of the tables.
    pub const ALL: [Self; 2] = [Self::Standard, Self::AsServed];

    /// Returns the name used in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::AsServed => "as-served",
        }
    }
}

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

    /// Returns the first `N` metrics of this list.
    pub(super) fn values<const N: usize>(&self) -> PerMetric<f64, N> {
        PerMetric::from_fn(|key| self.value(key))
    }
}

/// One line of results. A mean over no targets is `None`: `null` in JSON, a dash in tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Name of the model, or `popularity` or `co-occurrence`.
    pub model: String,
    /// Split of the targets: `validation`, `test` or `prequential`.
    pub split: String,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Whether items that the user has seen are excluded from the ranking.
    pub filter_seen: bool,
    /// Instructed attribute; several are joined by `+`. `None` without conditions.
    pub condition: Option<String>,
    /// Source of the conditions: `target` or `instructions`.
    pub condition_from: Option<String>,
    /// Whether items that do not carry the condition are excluded from the ranking.
    #[serde(default)]
    pub condition_filter: bool,
    /// Number of targets without a condition: their item has no value of the attribute, or their user no instruction.
    #[serde(default)]
    pub without_condition: usize,
    /// Number of targets in the means.
    pub targets: usize,
    /// Number of targets excluded because no event was visible.
    pub no_history: usize,
    /// Number of targets excluded because their row omits events.
    pub left_out: usize,
    /// Means by metric name. Without a condition, metrics that need one are `None` and have no key.
    #[serde(flatten, with = "per_metric::by_name")]
    pub means: PerMetric<Option<f64>, ALL>,
}

impl Metrics {
    /// Returns a line without targets.
    pub(super) fn of(model: &str, split: &str, protocol: Protocol, filter_seen: bool) -> Self {
        Self {
            model: model.into(),
            split: split.into(),
            protocol,
            filter_seen,
            condition: None,
            condition_from: None,
            condition_filter: false,
            without_condition: 0,
            targets: 0,
            no_history: 0,
            left_out: 0,
            means: PerMetric::from_fn(|_| None),
        }
    }
}

/// Returns the metrics of one target from its rank, from 1; `None` is a miss.
pub(crate) fn gains(rank: Option<u32>) -> PerMetric<f64> {
    Answer { rank, ..Answer::default() }.values()
}

/// Returns the number of `ranks` and the means of their metrics; a target without a rank is a miss. Means over no ranks are
/// `None`.
pub(super) fn means(ranks: impl Iterator<Item = Option<u32>>) -> (usize, PerMetric<Option<f64>>) {
    let (mut n, mut sums) = (0usize, PerMetric::from_fn(|_| 0.0));
    for rank in ranks {
        n += 1;
        sums += gains(rank);
    }
    (n, sums.map(|sum| mean(sum, n as f64)))
}

/// Returns `sum / n`; `None` if `n` is 0.
pub(super) fn mean(sum: f64, n: f64) -> Option<f64> {
    (n > 0.0).then(|| sum / n)
}

/// Formats a rate with four decimals, or a dash of the same width for `None` and non-finite values.
pub(crate) fn rate(value: Option<f64>) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or_else(|| format!("{:>6}", "–"), |value| format!("{value:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_count_hits_and_discount_ranks() {
        let (n, found) = means([Some(1), Some(3), Some(15), Some(51), None].into_iter());
        let found = found.map(Option::unwrap);
        let near = |name, expected: f64| (found[Key::of(name)] - expected).abs() < 1e-12;
        assert_eq!(n, 5);
        assert!(near("hr@10", 0.4) && near("hr@20", 0.6) && near("hr@50", 0.6), "{found:?}");
        assert!(near("ndcg@10", (1.0 + 0.5) / 5.0), "{found:?}");
        assert_eq!(means(std::iter::empty()).1, PerMetric::from_fn(|_| None));
    }

    #[test]
    fn a_mean_over_no_target_is_a_dash_and_null() {
        assert_eq!(
            (rate(None), rate(Some(0.0)), rate(Some(f64::NAN))),
            ("     –".into(), "0.0000".into(), "     –".into())
        );
        let none = Metrics::of("m", "test", Protocol::Standard, true);
        let json = serde_json::to_value(&none).unwrap();
        for key in ["hr@10", "hr@20", "hr@50", "ndcg@10"] {
            assert!(json.as_object().unwrap().contains_key(key) && json[key].is_null(), "{json}");
        }
        assert!(!json.as_object().unwrap().contains_key("cc@10"), "{json}");
        assert_eq!(serde_json::from_value::<Metrics>(json).unwrap(), none);
    }

    #[test]
    fn a_name_says_how_many_places_are_read() {
        for (i, metric) in METRICS.iter().enumerate() {
            assert!(metric.name.ends_with(&format!("@{}", metric.places)), "{metric:?}");
            assert!(METRICS[..i].iter().all(|earlier| earlier.name != metric.name), "{metric:?}");
        }
    }

    /// A line written by an older version: same keys and order; missing keys have defaults.
    #[test]
    fn a_line_reads_and_writes_as_it_always_did() {
        let text = "{\"model\":\"m\",\"split\":\"test\",\"protocol\":\"as-served\",\"filter_seen\":true,\
                    \"condition\":\"genre\",\"condition_from\":\"target\",\"condition_filter\":false,\
                    \"without_condition\":2,\"targets\":3,\"no_history\":0,\"left_out\":1,\"hr@10\":0.1,\
                    \"hr@20\":0.30000000000000004,\"hr@50\":1.0,\"ndcg@10\":0.0625,\"cc@10\":0.5,\"cc@20\":0.25,\
                    \"cc@50\":0.125}";
        let line: Metrics = serde_json::from_str(text).unwrap();
        assert_eq!((line.means[HR_10], line.means[CC_10]), (Some(0.1), Some(0.5)));
        let (written, mut at) = (serde_json::to_string(&line).unwrap(), 0);
        for part in text.trim_matches(['{', '}']).split(',') {
            at += written[at..]
                .find(part)
                .unwrap_or_else(|| panic!("{part} is not there in its place: {written}"));
        }
        let old = text.replace(",\"condition_filter\":false,\"without_condition\":2", "");
        let old = old.split(",\"cc@10\"").next().unwrap().replace(",\"ndcg@10\":0.0625", "") + "}";
        let line: Metrics = serde_json::from_str(&old).unwrap();
        assert_eq!((line.means[HR_10], line.means[NDCG_10], line.means[CC_10]), (Some(0.1), None, None));
    }
}
