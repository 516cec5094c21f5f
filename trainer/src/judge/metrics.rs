use serde::{Deserialize, Serialize};

/// Which part of a user's history a prediction may build on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// All earlier items.
    Standard,
    /// As in production: what happened in the last `Δτ` is hidden.
    AsServed,
}

impl Protocol {
    /// Both, in the order of the tables.
    pub const ALL: [Self; 2] = [Self::Standard, Self::AsServed];

    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::AsServed => "as-served",
        }
    }
}

/// One line of the results. A mean over no target is none: `null` as JSON, a dash in tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The model, or `popularity` or `co-occurrence`.
    pub model: String,
    /// `validation` or `test`.
    pub split: String,
    /// What a prediction may build on.
    pub protocol: Protocol,
    /// Whether items that the user has seen are left out of the ranking.
    pub filter_seen: bool,
    /// The instructed attribute, where there is one.
    pub condition: Option<String>,
    /// Where the instruction came from: `target` or `instructions`.
    pub condition_from: Option<String>,
    /// Whether items that do not carry the condition are left out of the ranking.
    #[serde(default)]
    pub condition_filter: bool,
    /// Targets left out because their item has no value of the attribute.
    #[serde(default)]
    pub without_condition: usize,
    /// Targets in the means.
    pub targets: usize,
    /// Targets left out because nothing was visible.
    pub no_history: usize,
    /// Targets left out because their row had to leave events out.
    pub left_out: usize,
    /// Hit rate at 10 (Eq. 7).
    #[serde(rename = "hr@10")]
    pub hr_10: Option<f64>,
    /// Hit rate at 20.
    #[serde(rename = "hr@20")]
    pub hr_20: Option<f64>,
    /// Hit rate at 50.
    #[serde(rename = "hr@50")]
    pub hr_50: Option<f64>,
    /// Normalised discounted cumulative gain at 10.
    #[serde(rename = "ndcg@10")]
    pub ndcg_10: Option<f64>,
    /// Under a condition, the share of the first 10 items that carry it (Eq. 8).
    #[serde(rename = "cc@10", default, skip_serializing_if = "Option::is_none")]
    pub cc_10: Option<f64>,
    /// Of the first 20.
    #[serde(rename = "cc@20", default, skip_serializing_if = "Option::is_none")]
    pub cc_20: Option<f64>,
    /// Of the first 50.
    #[serde(rename = "cc@50", default, skip_serializing_if = "Option::is_none")]
    pub cc_50: Option<f64>,
}

impl Metrics {
    /// Of nothing yet.
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
            hr_10: None,
            hr_20: None,
            hr_50: None,
            ndcg_10: None,
            cc_10: None,
            cc_20: None,
            cc_50: None,
        }
    }
}

/// HR@10, HR@20, HR@50 (Eq. 7) and NDCG@10 of one target; without a rank it is a miss.
pub(crate) fn gains(rank: Option<u32>) -> [f64; 4] {
    let Some(rank) = rank else { return [0.0; 4] };
    let hit = |k: u32| f64::from(u8::from(rank <= k));
    [hit(10), hit(20), hit(50), hit(10) / f64::from(rank + 1).log2()]
}

/// The four means over ranks; a target without a rank is a miss. Nothing has no mean.
pub(super) fn means(ranks: impl Iterator<Item = Option<u32>>) -> (usize, [Option<f64>; 4]) {
    let (mut n, mut sums) = (0usize, [0f64; 4]);
    for rank in ranks {
        n += 1;
        for (sum, gain) in sums.iter_mut().zip(gains(rank)) {
            *sum += gain;
        }
    }
    (n, sums.map(|sum| mean(sum, n as f64)))
}

/// `sum / n`; nothing has no mean.
pub(super) fn mean(sum: f64, n: f64) -> Option<f64> {
    (n > 0.0).then(|| sum / n)
}

/// A rate with four decimals, or a dash of the same width where there is none.
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
        let [hr_10, hr_20, hr_50, ndcg] = found.map(Option::unwrap);
        assert_eq!(n, 5);
        assert!((hr_10 - 0.4).abs() < 1e-12 && (hr_20 - 0.6).abs() < 1e-12 && (hr_50 - 0.6).abs() < 1e-12);
        assert!((ndcg - (1.0 + 0.5) / 5.0).abs() < 1e-12);
        assert_eq!(means(std::iter::empty()).1, [None; 4]);
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
        assert_eq!(serde_json::from_value::<Metrics>(json).unwrap(), none);
    }
}
