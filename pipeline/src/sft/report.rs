//! The report of a build.

use std::fmt;

use schemas::history::LogFilters;
use schemas::tables::properties;
use serde::Serialize;
use store::Snapshot;

use super::carriers::Carriers;
use super::counts::{ByRole, ExampleTally, LeftOut, MatchRate};
use crate::histories::FilterCounts;

/// Number of values that the report names.
const TOP: usize = 10;

/// The outcome of a build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SftReport {
    /// One entry for each condition; tables that existed already come first.
    pub tables: Vec<SftTable>,
    /// Wall time.
    pub seconds: f64,
}

/// One table `sft/<condition>`. Fields are `None` if they are known only to the run that built the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SftTable {
    /// The table.
    pub table: String,
    /// The attribute or derived condition.
    pub condition: String,
    /// The table already described these versions under this configuration: nothing was written.
    pub unchanged: bool,
    /// The version of the table that holds the examples.
    pub version: u64,
    /// The table's properties: versions, settings and their hashes.
    pub properties: std::collections::BTreeMap<String, String>,
    /// Examples.
    pub rows: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of the shards.
    pub bytes: u64,
    /// The counters of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<ExampleCounts>,
    /// Rows of `events`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_read: Option<u64>,
    /// Further copies of events, dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// Events whose action `sequences.actions` leaves out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filtered: Option<u64>,
    /// Events that the other filters of `[sequences]` take out; absent where none is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<FilterCounts>,
    /// The filters of the log.
    #[serde(skip)]
    pub log_filters: LogFilters,
    /// Items that only events name; the build has given them an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_items: Option<u64>,
    /// Bytes that the run wrote to scratch files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spilled_bytes: Option<u64>,
    /// Wall time of reading the log, once for all tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_reading: Option<f64>,
    /// Wall time of this table after the reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// Counts of users, targets, examples and values of one condition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExampleCounts {
    /// Users with at least one example.
    pub users: u64,
    /// Events of role 1, 2 and 3.
    pub targets: ByRole,
    /// Those of `targets` that carry no value of the condition, and so give no example.
    pub without_value: ByRole,
    /// Examples: one for each value of a target.
    pub examples: ByRole,
    /// Examples of role 1 that `[conditions]` leaves out.
    pub left_out: LeftOut,
    /// How well the visible histories fit.
    pub match_rate: MatchRate,
    /// Values of the condition in the catalogue.
    pub values: u64,
    /// Those of them that fewer than `conditions.min_pool` active items carry.
    pub values_below_min_pool: u64,
    /// The values with the largest pools.
    pub top: Vec<ValuePool>,
}

/// One value of a condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ValuePool {
    /// The value.
    pub value: String,
    /// Active items that carry it; for a derived condition, at the newest event's time. Absent if the catalogue version
    /// that the table was built from no longer exists.
    pub pool: Option<u64>,
    /// Its examples.
    pub examples: u64,
}

impl ExampleCounts {
    pub(super) fn of(counts: ExampleTally, carriers: &Carriers, min_pool: usize) -> Self {
        let examples = |place: usize| counts.by_value.get(place).copied().unwrap_or_default();
        let top = carriers.largest(TOP).map(|(value, pool, place)| ValuePool {
            value: value.into(),
            pool: Some(pool),
            examples: examples(place),
        });
        Self {
            top: top.collect(),
            users: counts.users,
            targets: counts.targets,
            without_value: counts.without_value,
            examples: counts.examples,
            left_out: counts.left_out,
            match_rate: counts.matched.summary(),
            values: carriers.names.len() as u64,
            values_below_min_pool: carriers.pools.iter().filter(|&&pool| pool < min_pool as u64).count()
                as u64,
        }
    }
}

impl SftTable {
    /// The report of a stored table, from its properties.
    pub(super) fn of(condition: &str, table: &Snapshot) -> Self {
        Self {
            table: table.name().into(),
            condition: condition.into(),
            unchanged: true,
            version: table.version(),
            properties: table.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            rows: table.rows(),
            shards: table.shards().len() as u64,
            bytes: table.shards().iter().map(|shard| shard.bytes).sum(),
            counts: None,
            events_read: None,
            duplicates: None,
            filtered: None,
            filters: None,
            log_filters: LogFilters::default(),
            new_items: None,
            spilled_bytes: None,
            seconds_reading: None,
            seconds: None,
        }
    }
}

impl fmt::Display for SftReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| writeln!(f, "{table}"))?;
        write!(f, "{:.2} seconds in all", self.seconds)
    }
}

impl fmt::Display for SftTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let property = |key: &str| self.properties.get(key).map_or("?", String::as_str);
        let read = format!(
            "events version {}, items version {}, delta_tau {}",
            property(properties::EVENTS_VERSION),
            property(properties::ITEMS_VERSION),
            match property(properties::DELTA_TAU_MS) {
                "off" => "off".to_owned(),
                ms => format!("{ms} ms"),
            }
        );
        let Some(counts) = &self.counts else {
            let (table, version, rows) = (&self.table, self.version, self.rows);
            return write!(
                f,
                "{table}  unchanged at version {version}: {rows} examples already describe {read}"
            );
        };
        let line = |f: &mut fmt::Formatter<'_>, label: &str, value: u64, note: &str| {
            writeln!(f, "  {label:<32}{value:>14}{}{note}", if note.is_empty() { "" } else { "  " })
        };
        writeln!(f, "{}  version {} from {read}", self.table, self.version)?;
        line(f, "examples", self.rows, &format!("{} shards, {} bytes", self.shards, self.bytes))?;
        for (label, examples, targets, without) in [
            ("instruction tuning", counts.examples.sft, counts.targets.sft, counts.without_value.sft),
            (
                "validation",
                counts.examples.validation,
                counts.targets.validation,
                counts.without_value.validation,
            ),
            ("test", counts.examples.test, counts.targets.test, counts.without_value.test),
        ] {
            let note = format!("of {targets} events, {without} without a value");
            line(f, &format!("  {label}"), examples, &note)?;
        }
        if counts.examples.sft == 0 {
            writeln!(f, "  nothing to train on: every event of role 1 is without a value or left out")?;
        }
        line(f, "users", counts.users, "")?;
        line(f, "left out of instruction tuning", counts.left_out.total(), "")?;
        line(f, "  by action or value", counts.left_out.by_event, "")?;
        line(f, "  by conditions.min_pool", counts.left_out.by_pool, "")?;
        line(f, "  by min_matching_history", counts.left_out.by_history, "")?;
        let MatchRate { mean, without } = counts.match_rate;
        writeln!(f, "  {:<32}{:>13.2}%", "visible history that matches", 100.0 * mean)?;
        writeln!(f, "  {:<32}{:>13.2}%", "examples that see no match", 100.0 * without)?;
        if let Some(filters) = &self.filters {
            line(f, "events filtered by action", self.filtered.unwrap_or_default(), "")?;
            for (label, events, note) in filters.lines(&self.log_filters) {
                line(f, &format!("events {label}"), events, &note)?;
            }
        }
        let below = counts.values_below_min_pool;
        line(f, "values", counts.values, &format!("{below} below conditions.min_pool"))?;
        for top in &counts.top {
            let (value, pool) = (terminal::shown::fitted(&top.value, 28), top.pool.unwrap_or_default());
            writeln!(f, "    {value}{pool:>14} active items, {} examples", top.examples)?;
        }
        write!(
            f,
            "  {:<32}{:>14.2}  and {:.2} to read {} events ({} duplicates, {} new items), {} bytes spilled",
            "seconds",
            self.seconds.unwrap_or_default(),
            self.seconds_reading.unwrap_or_default(),
            self.events_read.unwrap_or_default(),
            self.duplicates.unwrap_or_default(),
            self.new_items.unwrap_or_default(),
            self.spilled_bytes.unwrap_or_default()
        )
    }
}
