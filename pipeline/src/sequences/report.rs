//! The report of a build.

use std::fmt;

use schemas::history::LogFilters;
use serde::Serialize;

use crate::histories::{Counts, RequestIntervals};

/// The outcome of a build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildReport {
    /// `sequences`, or `refresh`.
    pub table: &'static str,
    /// `refresh`: events committed after this version of `events` are fresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The table already described these versions under this configuration: nothing was written.
    pub unchanged: bool,
    /// The version of the table that holds the rows.
    pub version: u64,
    /// The version of `events` that was read.
    pub events_version: u64,
    /// The version of `items` that the indexes are from.
    pub items_version: u64,
    /// Hash of the settings that decided the rows.
    pub config_hash: String,
    /// The filters of the log.
    #[serde(skip)]
    pub filters: LogFilters,
    /// `file-order` or `shuffled`.
    pub tie_policy: String,
    /// `Δτ` as configured.
    pub delta_tau: String,
    /// `Δτ` in milliseconds; absent where it is off.
    pub delta_tau_ms: Option<i64>,
    /// The request intervals of the log, if it has any. A refresh measures only those of the users that it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_intervals: Option<RequestIntervals>,
    /// Rows of the table.
    pub rows: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of the shards.
    pub bytes: u64,
    /// The counters of the build; absent if nothing was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Share of a target's earlier positions in its row that `Δτ` and its request hide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_share: Option<f64>,
    /// Events that were decoded: all, or those that a refresh needs. For the others, a refresh reads only the users and, on dates
    /// near the new events, the ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_decoded: Option<u64>,
    /// Bytes that the build wrote to its scratch file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spilled_bytes: Option<u64>,
    /// Wall time until all events were in their buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_reading: Option<f64>,
    /// Wall time.
    pub seconds: f64,
    /// Events read per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<f64>,
}

impl fmt::Display for BuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.map_or_else(String::new, |version| format!(" after version {version}"));
        let measured = match (self.delta_tau.as_str(), self.delta_tau_ms) {
            ("auto", Some(ms)) => format!(" (measured: {ms} ms)"),
            _ => String::new(),
        };
        let read = format!(
            "events version {}{since}, items version {}, ties {}, delta_tau {}{measured}",
            self.events_version, self.items_version, self.tie_policy, self.delta_tau
        );
        let Some(counts) = &self.counts else {
            return write!(
                f,
                "{}  unchanged at version {}: {} rows already describe {read}",
                self.table, self.version, self.rows
            );
        };
        let line = |f: &mut fmt::Formatter<'_>, label: &str, value: u64, note: &str| {
            writeln!(f, "  {label:<28}{value:>14}{}{note}", if note.is_empty() { "" } else { "  " })
        };
        writeln!(f, "{}  version {} from {read}", self.table, self.version)?;
        line(f, "events read", counts.events, "")?;
        line(f, "  duplicates", counts.duplicates, "")?;
        line(f, "  filtered by action", counts.filtered, "")?;
        for (label, events, note) in counts.filters.unwrap_or_default().lines(&self.filters) {
            line(f, &format!("  {label}"), events, &note)?;
        }
        if self.since.is_some() {
            let decoded = format!("{} events decoded", self.events_decoded.unwrap_or_default());
            line(f, "  of users with nothing new", counts.other_users, &decoded)?;
        }
        line(f, "items given an index", counts.new_items, "")?;
        line(f, "users", counts.users, "")?;
        line(f, "  too few events to hold out", counts.users_too_few, "")?;
        line(f, "rows", counts.rows, &format!("{} shards, {} bytes", self.shards, self.bytes))?;
        line(f, "  leave events out", counts.rows_leave_out, "")?;
        line(f, "  with short context", counts.rows_short_context, "")?;
        line(f, "targets", counts.targets.total(), "")?;
        line(f, "  pre-training", counts.targets.pretrain, "")?;
        line(f, "  instruction tuning", counts.targets.sft, "")?;
        line(f, "  validation", counts.targets.validation, "")?;
        line(f, "  test", counts.targets.test, "")?;
        line(f, "  with nothing visible", counts.nothing_visible, "")?;
        writeln!(f, "  {:<28}{:>13.2}%", "earlier positions hidden", 100.0 * counts.hidden_share())?;
        if let Some(intervals) = &self.request_intervals {
            let ms = intervals.delta_tau_ms();
            writeln!(f, "  request intervals           {intervals}; they suggest delta_tau = \"{ms}ms\"")?;
        }
        write!(
            f,
            "  {:<28}{:>14.2}  {:.2} until all was read; {:.0} events/s, {} bytes spilled",
            "seconds",
            self.seconds,
            self.seconds_reading.unwrap_or_default(),
            self.events_per_second.unwrap_or_default(),
            self.spilled_bytes.unwrap_or_default()
        )
    }
}
