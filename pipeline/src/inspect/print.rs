//! The reports as text that reads without colour.

use std::fmt;

use terminal::shown::{Shown, fitted};

use super::{Contents, Distribution, Inspection, SpanDistribution, TableReport};
use super::{DeadLettersContents, EventsContents, InstructionsContents, ItemsContents};
use super::{SequencesContents, SftContents};

const BAR: usize = 32;

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.root)?;
        for table in &self.tables {
            write!(f, "\n{table}")?;
        }
        Ok(())
    }
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}  version {}, {} rows, {} shards, {}",
            self.table,
            self.version,
            self.rows,
            self.shards,
            bytes(self.bytes)
        )?;
        for column in &self.columns {
            let null = if column.nullable { ", may be null" } else { "" };
            writeln!(f, "  {:<18}{}{null}", column.name, column.data_type)?;
        }
        if !self.properties.is_empty() {
            let pairs: Vec<_> = self.properties.iter().map(|(k, v)| format!("{k} = {v}")).collect();
            writeln!(f, "  properties: {}", pairs.join(", "))?;
        }
        match &self.contents {
            Some(Contents::Events(contents)) => contents.fmt(f),
            Some(Contents::Items(contents)) => contents.fmt(f),
            Some(Contents::Sequences(contents)) => contents.fmt(f),
            Some(Contents::DeadLetters(contents)) => contents.fmt(f),
            Some(Contents::Instructions(contents)) => contents.fmt(f),
            Some(Contents::Sft(contents)) => contents.fmt(f),
            None => Ok(()),
        }
    }
}

impl fmt::Display for EventsContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  users {}, items {}, with a logged request {}",
            self.users, self.items, self.with_request
        )?;
        if let (Some(first), Some(last)) = (self.first, self.last) {
            let time = "%Y-%m-%d %H:%M:%S";
            writeln!(f, "  from {} to {} UTC", first.format(time), last.format(time))?;
        }
        let d = &self.per_day;
        if let Some(busiest) = self.busiest_day {
            writeln!(
                f,
                "  events a day: {} days with events, median {}, mean {:.1}, most {} on {busiest}",
                d.count, d.median, d.mean, d.max
            )?;
        }
        let most = self.actions.first().map_or(0, |action| action.count);
        writeln!(f, "  actions")?;
        self.actions.iter().try_for_each(|action| bar(f, &action.value, action.count, most, self.events))?;
        writeln!(f, "  events of the most popular of {} items", self.popularity.items)?;
        self.popularity.top.iter().try_for_each(|top| {
            let label = format!("top {}% ({})", 100.0 * top.of_items, top.items);
            bar(f, &label, top.events, self.events, self.events)
        })
    }
}

impl fmt::Display for ItemsContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  items {}, active {}, with a title {}, with a release date {}",
            self.items, self.active, self.with_title, self.with_release_ts
        )?;
        for attribute in &self.attributes {
            writeln!(
                f,
                "  {}: {} values, {} items without one",
                attribute.attribute, attribute.values, attribute.items_without
            )?;
            let most = attribute.top.first().map_or(0, |value| value.count);
            attribute.top.iter().try_for_each(|value| bar(f, &value.value, value.count, most, self.items))?;
        }
        Ok(())
    }
}

impl fmt::Display for SequencesContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  users {}", self.users)?;
        distribution(f, "events a user", &self.history_length)?;
        distribution(f, "positions a row", &self.row_length)?;
        distribution(f, "events a session", &self.session_length)?;
        distribution(f, "events a request batch", &self.request_size)?;
        spans(f, "time between events", &self.inter_event)?;
        if self.targets.total() > 0 {
            writeln!(
                f,
                "  tied in time with another event of their user: {:.1}% of the events; ties {}",
                100.0 * self.tied as f64 / self.targets.total() as f64,
                self.tie_policy
            )?;
        }
        let t = &self.targets;
        let targets = [
            ("pre-training", t.pretrain),
            ("instruction tuning", t.sft),
            ("validation", t.validation),
            ("test", t.test),
        ];
        writeln!(f, "  targets by role")?;
        bars(f, &targets)?;
        writeln!(
            f,
            "  hidden from a target: {:.2}% of the earlier positions of its row; {} targets see nothing",
            100.0 * self.hidden_share,
            self.nothing_visible
        )?;
        let labels = ["nothing", "up to 25%", "up to 50%", "up to 75%", "less than all", "all"];
        bars(f, &std::array::from_fn::<_, 6, _>(|i| (labels[i], self.hidden[i])))
    }
}

impl fmt::Display for SftContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  users {}", self.users)?;
        let e = &self.examples;
        writeln!(f, "  examples by role")?;
        bars(f, &[("instruction tuning", e.sft), ("validation", e.validation), ("test", e.test)])?;
        writeln!(
            f,
            "  values with examples: {}; the most frequent, with the active items that carry them",
            self.values
        )?;
        let most = self.top.first().map_or(0, |top| top.examples);
        self.top.iter().try_for_each(|top| {
            let pool = top.pool.map_or_else(String::new, |pool| format!(" ({pool})"));
            let name = fitted(&top.value, 22usize.saturating_sub(pool.len()));
            bar(f, &format!("{}{pool}", name.trim_end()), top.examples, most, e.total())
        })?;
        distribution(f, "positions of a history", &self.history_length)?;
        distribution(f, "visible positions", &self.visible_length)?;
        distribution(f, "visible positions that carry the value", &self.matching_length)?;
        writeln!(
            f,
            "  of the visible positions {:.2}% carry the value (mean over examples); {:.2}% of the examples see none",
            100.0 * self.match_rate.mean,
            100.0 * self.match_rate.without
        )?;
        writeln!(
            f,
            "  examples, with the newest places of the history: + carries the value, behind | is hidden"
        )?;
        self.shown.iter().try_for_each(|example| {
            let time =
                example.target_ts.map(|ts| ts.format("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default();
            writeln!(
                f,
                "    user {}, {}, {}: item {} at {time}, weight {:.3}, {} before it",
                fitted(&example.user, 12).trim_end(),
                example.role,
                Shown(&example.condition),
                example.target_item,
                example.weight,
                example.history
            )?;
            writeln!(f, "      {}", example.places)
        })
    }
}

impl fmt::Display for DeadLettersContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.reasons.iter().map(|reason| reason.count).sum();
        let most = self.reasons.first().map_or(0, |reason| reason.count);
        for reason in &self.reasons {
            bar(f, &reason.reason, reason.count, most, total)?;
            let (source, message) = (Shown(&reason.source), Shown(&reason.message));
            writeln!(f, "      {source} at {}: {message}", reason.position)?;
            writeln!(f, "      {}", Shown(&reason.value))?;
        }
        Ok(())
    }
}

impl fmt::Display for InstructionsContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let as_of = self.as_of.map_or_else(String::new, |time| format!(", as of {time}"));
        writeln!(f, "  users {}{as_of}", self.users)?;
        distribution(f, "instructions a user", &self.per_user)?;
        let total = self.attributes.iter().map(|attribute| attribute.count).sum();
        writeln!(f, "  instructions by attribute")?;
        self.attributes.iter().try_for_each(|one| bar(f, &one.value, one.count, total, total))?;
        writeln!(f, "  users with the most frequent conditions")?;
        self.top.iter().try_for_each(|one| bar(f, &one.value, one.count, self.users, self.users))
    }
}

fn distribution(f: &mut fmt::Formatter<'_>, label: &str, d: &Distribution) -> fmt::Result {
    writeln!(
        f,
        "  {label}: {} in all, mean {:.1}, median {}, p90 {}, p99 {}, from {} to {}",
        d.count, d.mean, d.median, d.p90, d.p99, d.min, d.max
    )?;
    let label = |from, to| if from == to { format!("{from}") } else { format!("{from}–{to}") };
    let most = d.bins.iter().map(|bin| bin.count).max().unwrap_or(0);
    d.bins.iter().try_for_each(|bin| bar(f, &label(bin.from, bin.to), bin.count, most, d.count))
}

fn spans(f: &mut fmt::Formatter<'_>, label: &str, d: &SpanDistribution) -> fmt::Result {
    let text = |ms: u64| duration(i64::try_from(ms).unwrap_or(i64::MAX));
    writeln!(
        f,
        "  {label}: {} in all, mean {}, median {}, p90 {}, p99 {}, from {} to {}",
        d.count,
        text(d.mean_ms as u64),
        text(d.median_ms),
        text(d.p90_ms),
        text(d.p99_ms),
        text(d.min_ms),
        text(d.max_ms)
    )?;
    let bins: Vec<_> = d.bins.iter().map(|bin| (bin.label.as_str(), bin.count)).collect();
    bars(f, &bins)
}

fn bars(f: &mut fmt::Formatter<'_>, values: &[(&str, u64)]) -> fmt::Result {
    let most = values.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let total = values.iter().map(|(_, count)| count).sum();
    values.iter().try_for_each(|(label, count)| bar(f, label, *count, most, total))
}

/// One bar whose length is `count` relative to `most`, with its share of `total`.
fn bar(f: &mut fmt::Formatter<'_>, label: &str, count: u64, most: u64, total: u64) -> fmt::Result {
    let eighths = (count as u128 * (BAR * 8) as u128).checked_div(most.into()).unwrap_or(0) as usize;
    let mut drawn = "█".repeat(eighths / 8);
    // A value above zero gets a visible bar.
    let rest = if count > 0 { (eighths % 8).max(usize::from(eighths == 0)) } else { 0 };
    drawn.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get(rest.wrapping_sub(1)));
    let share = if total == 0 { 0.0 } else { 100.0 * count as f64 / total as f64 };
    let line = format!("    {}{count:>12}  {share:>5.1}%  {drawn}", fitted(label, 22));
    writeln!(f, "{}", line.trim_end())
}

/// A span in its two largest units.
pub(super) fn duration(ms: i64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];
    let first = units.iter().position(|(_, unit)| ms >= *unit).unwrap_or(units.len() - 1);
    let (name, unit) = units[first];
    let mut text = format!("{} {name}", ms / unit);
    if let Some((name, smaller)) = units.get(first + 1)
        && ms % unit / smaller > 0
    {
        text.push_str(&format!(" {} {name}", ms % unit / smaller));
    }
    text
}

pub(super) fn bytes(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((name, shift)) => format!("{:.1} {name}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(duration(93_784_000), "1 d 2 h");
        assert_eq!(duration(1_800_000), "30 min");
        assert_eq!(duration(0), "0 ms");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(100), "100 bytes");
    }
}
