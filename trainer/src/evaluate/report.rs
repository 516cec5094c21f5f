use std::fmt::Write;

use super::Metrics;

/// The results as a table for people; what is compared stands together.
pub fn table(results: &[Metrics]) -> String {
    let width = results.iter().map(|m| m.model.len()).max().unwrap_or(0).max("model".len());
    let mut text = String::new();
    let mut groups: Vec<(&str, super::Protocol, bool)> = Vec::new();
    for m in results {
        let group = (m.split.as_str(), m.protocol, m.filter_seen);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    // Headline first: seen items filtered.
    groups.sort_by_key(|&(_, protocol, filtered)| (!filtered, protocol.name() == "as-served"));
    for (split, protocol, filtered) in groups {
        let group: Vec<&Metrics> = results
            .iter()
            .filter(|m| (m.split.as_str(), m.protocol, m.filter_seen) == (split, protocol, filtered))
            .collect();
        let Some(first) = group.first() else { continue };
        let _ = writeln!(
            text,
            "{split}, {}, seen items {}: {} targets, {} without visible history, {} with events left out",
            protocol.name(),
            if filtered { "filtered" } else { "kept" },
            first.targets,
            first.no_history,
            first.left_out
        );
        let _ = writeln!(text, "  {:width$}   HR@10   HR@20   HR@50  NDCG@10", "model");
        for m in group {
            let _ = writeln!(
                text,
                "  {:width$}  {:.4}  {:.4}  {:.4}   {:.4}",
                m.model, m.hr_10, m.hr_20, m.hr_50, m.ndcg_10
            );
        }
    }
    text
}
