use std::fmt;

use serde::Serialize;

use super::{HorizonMetrics, Metrics};
use crate::data::SequencesSource;

/// Results, and what they were measured on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// One entry for each model, protocol and filter.
    pub results: Vec<Metrics>,
    /// Whether both protocols show the same before every target, so that their numbers are the same.
    pub hides_nothing: bool,
    /// One curve for each protocol and filter, where the split holds out what it needs (Figure 3).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub horizon: Vec<HorizonMetrics>,
    /// The rows that were asked, with the order of ties and `Δτ`.
    pub source: SequencesSource,
    /// The rows that the model was trained on, where they are others: it may have learned what is held out here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<SequencesSource>,
}

impl fmt::Display for Report {
    /// As a table for people: what is compared stands together.
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
        let SequencesSource { sequences_version, tie_policy, delta_tau_ms, .. } = &self.source;
        writeln!(f, "sequences version {sequences_version}, ties {tie_policy}, delta_tau_ms {delta_tau_ms}")?;
        let results = &self.results;
        let width = results.iter().map(|m| m.model.len()).max().unwrap_or(0).max("model".len());
        let mut groups: Vec<(&str, super::Protocol, bool)> = Vec::new();
        for m in results {
            let group = (m.split.as_str(), m.protocol, m.filter_seen);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        // Headline first: seen items filtered.
        groups.sort_by_key(|&(_, protocol, filtered)| (!filtered, protocol.name() == "as-served"));
        if self.hides_nothing {
            groups.retain(|&(_, protocol, _)| protocol == super::Protocol::Standard);
            writeln!(f, "nothing is hidden before a target: as served, the numbers are the same")?;
        }
        for (split, protocol, filtered) in groups {
            let group: Vec<&Metrics> = results
                .iter()
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
            writeln!(f, "  {:width$}   HR@10   HR@20   HR@50  NDCG@10", "model")?;
            for m in group {
                writeln!(
                    f,
                    "  {:width$}  {:.4}  {:.4}  {:.4}   {:.4}",
                    m.model, m.hr_10, m.hr_20, m.hr_50, m.ndcg_10
                )?;
            }
        }
        let shown = |curve: &&HorizonMetrics| {
            curve.filter_seen && !(self.hides_nothing && curve.protocol == super::Protocol::AsServed)
        };
        for curve in self.horizon.iter().filter(shown) {
            let rates: Vec<String> = curve.hr_10.iter().map(|rate| format!("{rate:.4}")).collect();
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
        Ok(())
    }
}
