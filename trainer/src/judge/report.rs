//! The report of an evaluation, as JSON and as tables.

use std::fmt;

use serde::Serialize;

use super::{ALL, ConditionMetrics, Diversity, HorizonMetrics, METRICS, Metric, Metrics, OF_RANKS, rate};
use crate::data::SequencesSource;

/// Results of an evaluation, and the data that they were measured on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluateReport {
    /// One entry per model, protocol and filter.
    pub results: Vec<Metrics>,
    /// Whether both protocols show the same events before every target, and so give the same numbers.
    pub hides_nothing: bool,
    /// One curve per protocol and filter, if the split allows one (Figure 3).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub horizon: Vec<HorizonMetrics>,
    /// Metrics of the model per condition, the most common first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_condition: Vec<ConditionMetrics>,
    /// Diversity of lists, with and without each user's own instructions (Table 5).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub diversity: Vec<Diversity>,
    /// Share of events at the same time as another event of their user; `source.tie_policy` orders these.
    pub tied: Option<f64>,
    /// Rows that were evaluated, with their tie policy and `Δτ`.
    pub source: SequencesSource,
    /// Rows that the model was trained on, if others: it may have learned targets of this evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<SequencesSource>,
    /// Version of `events` up to which the model or an ancestor has learned, if newer than that of the evaluated rows and the
    /// split moves as the log grows: the model may have learned targets of this evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned_events: Option<u64>,
}

impl fmt::Display for EvaluateReport {
    /// Formats the results as tables, with comparable lines next to each other.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(trained_on) = &self.trained_on {
            writeln!(
                f,
                "warning: the model was trained on version {} of `sequences` (settings {}), and is asked version {} \
                 (settings {}): it may have learned what is held out here",
                trained_on.sequences_version,
                trained_on.config_hash,
                self.source.sequences_version,
                self.source.config_hash
            )?;
        }
        if let Some(learned) = self.learned_events {
            writeln!(
                f,
                "warning: the model has learned of `events` up to version {learned}, and is asked what version {} held out: it \
                 may have learned that since; run `pipeline build-sequences` and ask again",
                self.source.events_version
            )?;
        }
        let SequencesSource { sequences_version, tie_policy, delta_tau_ms, .. } = &self.source;
        let tied =
            self.tied.map_or_else(String::new, |tied| format!(" ({:.1} % of the events)", 100.0 * tied));
        writeln!(
            f,
            "sequences version {sequences_version}, ties {tie_policy}{tied}, delta_tau_ms {delta_tau_ms}"
        )?;
        let results: Vec<&Metrics> = self.results.iter().filter(|m| m.condition.is_none()).collect();
        let width = results.iter().map(|m| m.model.len()).max().unwrap_or(0).max("model".len());
        let mut groups: Vec<(&str, super::Protocol, bool)> = Vec::new();
        for m in &results {
            let group = (m.split.as_str(), m.protocol, m.filter_seen);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        // Headline first: seen items filtered, protocol `standard`.
        groups.sort_by_key(|&(_, protocol, filtered)| (!filtered, protocol.name() == "as-served"));
        if self.hides_nothing {
            groups.retain(|&(_, protocol, _)| protocol == super::Protocol::Standard);
            writeln!(f, "nothing is hidden before a target: as served, the numbers are the same")?;
        }
        for (split, protocol, filtered) in groups {
            let group: Vec<&Metrics> = results
                .iter()
                .copied()
                .filter(|m| (m.split.as_str(), m.protocol, m.filter_seen) == (split, protocol, filtered))
                .collect();
            let Some(first) = group.first() else { continue };
            writeln!(
                f,
                "{split}, {}, seen items {}: {} targets, {} without visible history, {} with events left out",
                protocol.name(),
                if filtered { "filtered" } else { "kept" },
                first.targets,
                first.no_history,
                first.left_out
            )?;
            writeln!(f, "  {:width$}{}", "model", labels(OF_RANKS))?;
            for m in group {
                writeln!(f, "  {:width$}{}", m.model, cells(m, OF_RANKS))?;
            }
        }
        let shown = |curve: &&HorizonMetrics| {
            curve.filter_seen && !(self.hides_nothing && curve.protocol == super::Protocol::AsServed)
        };
        for curve in self.horizon.iter().filter(shown) {
            let rates: Vec<String> = curve.hr_10.iter().map(|&value| rate(value)).collect();
            writeln!(
                f,
                "{}, {}, seen items filtered: HR@10 for the next {} events of {} users, by one prediction\n  {}",
                curve.split,
                curve.protocol.name(),
                rates.len(),
                curve.users,
                rates.join("  ")
            )?;
        }
        self.under_conditions(f)
    }
}

/// Returns the header of the first `metrics` columns, aligned with [`cells`].
fn labels(metrics: usize) -> String {
    METRICS[..metrics].iter().map(|metric| cell(metric, &metric.label())).collect()
}

/// Returns the means of one line, as columns.
fn cells(m: &Metrics, metrics: usize) -> String {
    m.means.iter().take(metrics).map(|(metric, &mean)| cell(metric, &rate(mean))).collect()
}

/// Pads `text` to the width of the column, that of its label or of a rate.
fn cell(metric: &Metric, text: &str) -> String {
    format!("  {text:>0$}", metric.label().len().max(6))
}

/// Returns the relative change from `before` to `after` in per cent, or a dash if `before` is missing or zero.
pub(crate) fn change(before: Option<f64>, after: Option<f64>) -> String {
    match before.zip(after) {
        Some((before, after)) if before > 0.0 => format!("{:+.1} %", 100.0 * (after / before - 1.0)),
        _ => "–".into(),
    }
}

/// Maximum conditions in the printed table.
const CONDITIONS: usize = 20;

impl EvaluateReport {
    /// Writes the results under conditions: the means, the diversity, then the metrics per condition.
    fn under_conditions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |protocol: super::Protocol| !(self.hides_nothing && protocol == super::Protocol::AsServed);
        let mut heading = None;
        for m in self.results.iter().filter(|m| m.condition.is_some() && shown(m.protocol)) {
            let of = (&m.condition, &m.condition_from, m.protocol);
            if heading.as_ref() != Some(&of) {
                writeln!(
                    f,
                    "{}, {}, under {} of the {}: {} targets, {} without a value",
                    m.split,
                    m.protocol.name(),
                    m.condition.as_deref().unwrap_or_default(),
                    if m.condition_from.as_deref() == Some("target") {
                        "target"
                    } else {
                        "user's instructions"
                    },
                    m.targets,
                    m.without_condition
                )?;
                let [a, b] = ["seen items", "condition"];
                writeln!(f, "  {a:10}  {b:9}{}", labels(ALL))?;
                heading = Some(of);
            }
            let filter = |filtered| if filtered { "filtered" } else { "kept" };
            writeln!(
                f,
                "  {:10}  {:9}{}",
                filter(m.filter_seen),
                if m.condition_filter { "filtered" } else { "asked for" },
                cells(m, ALL)
            )?;
        }
        let diversity: Vec<&Diversity> = self.diversity.iter().filter(|d| shown(d.protocol)).collect();
        if !diversity.is_empty() {
            writeln!(
                f,
                "different values among the first 20 items, without instructions and with each user's own, by activity"
            )?;
        }
        for Diversity { protocol, attribute, activity, targets, plain, instructed, .. } in diversity {
            writeln!(
                f,
                "  {attribute}, {}, {activity:6}  {plain:.3} → {instructed:.3} ({}) for {targets} targets",
                protocol.name(),
                change(Some(*plain), Some(*instructed))
            )?;
        }
        let rows: Vec<&ConditionMetrics> =
            self.by_condition.iter().filter(|row| shown(row.protocol)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let width = rows.iter().map(|row| row.condition.to_string().len()).max().unwrap_or(0);
        writeln!(f, "condition by condition, seen items filtered")?;
        writeln!(f, "  {:width$}  protocol   targets    pool   HR@10   CC@10  HR@10 filtered", "condition")?;
        for row in rows.iter().take(CONDITIONS) {
            writeln!(
                f,
                "  {:width$}  {:9}  {:>7.0}  {:>6}  {:.4}  {:.4}  {:.4}",
                row.condition.to_string(),
                row.protocol.name(),
                row.targets,
                row.pool,
                row.hr_10,
                row.cc_10,
                row.hr_10_filtered
            )?;
        }
        if rows.len() > CONDITIONS {
            writeln!(f, "  … {} more; --json has all", rows.len() - CONDITIONS)?;
        }
        Ok(())
    }
}
