//! A line of results, and the means in it.

use serde::{Deserialize, Serialize};

use super::metrics::{ALL, Answer};
use super::per_metric::{self, PerMetric};
use super::protocol::Protocol;

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

impl Answer {
    /// Returns the first `N` metrics of this list.
    pub(super) fn values<const N: usize>(&self) -> PerMetric<f64, N> {
        PerMetric::from_fn(|key| self.value(key))
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{CC_10, HR_10, Key, NDCG_10};
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
