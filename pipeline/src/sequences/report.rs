//! What a build says about itself.

use std::fmt;

use schemas::history::{Role, Window};
use serde::Serialize;

use super::intervals::RequestIntervals;

/// What was counted on the way from events to rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows of `events`.
    pub events: u64,
    /// Events that stand in the table once more.
    pub duplicates: u64,
    /// Events whose action `sequences.actions` leaves out.
    pub filtered: u64,
    /// Events of users who have no fresh one, passed over by a refresh.
    pub other_users: u64,
    /// Items that only events knew and that were given an index.
    pub new_items: u64,
    /// Users with at least one row.
    pub users: u64,
    /// Users with too few events for the split to hold anything out.
    pub users_too_few: u64,
    /// Rows of `sequences`.
    pub rows: u64,
    /// Rows that leave out events which none of their targets may see.
    pub rows_leave_out: u64,
    /// Rows in which held-out positions see less than the guaranteed context.
    pub rows_short_context: u64,
    /// Positions of all rows.
    pub positions: u64,
    /// Positions that a row owns; in a refresh, not all of them are targets.
    pub owned: u64,
    /// Targets by role.
    pub targets: Targets,
    /// Targets that see nothing; every user's first event is one.
    pub nothing_visible: u64,
    /// Earlier positions of the row, summed over the targets.
    pub earlier: u64,
    /// Those of [`earlier`](Self::earlier) that the target may not see.
    pub hidden: u64,
}

/// Owned positions by their role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Targets {
    /// Role 0.
    pub pretrain: u64,
    /// Role 1.
    pub sft: u64,
    /// Role 2.
    pub validation: u64,
    /// Role 3.
    pub test: u64,
}

impl Targets {
    /// Counts one target.
    pub fn count(&mut self, role: Role) {
        match role {
            Role::Pretrain => self.pretrain += 1,
            Role::Sft => self.sft += 1,
            Role::Validation => self.validation += 1,
            Role::Test => self.test += 1,
            Role::Context => {}
        }
    }

    /// All targets.
    pub fn total(&self) -> u64 {
        self.pretrain + self.sft + self.validation + self.test
    }
}

impl Counts {
    /// Adds what another pass counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.duplicates += other.duplicates;
        self.filtered += other.filtered;
        self.other_users += other.other_users;
        self.new_items += other.new_items;
        self.users += other.users;
        self.users_too_few += other.users_too_few;
        self.rows += other.rows;
        self.rows_leave_out += other.rows_leave_out;
        self.rows_short_context += other.rows_short_context;
        self.positions += other.positions;
        self.owned += other.owned;
        self.targets.pretrain += other.targets.pretrain;
        self.targets.sft += other.targets.sft;
        self.targets.validation += other.targets.validation;
        self.targets.test += other.targets.test;
        self.nothing_visible += other.nothing_visible;
        self.earlier += other.earlier;
        self.hidden += other.hidden;
    }

    /// Counts one row; `roles` and `visible` are those of the whole history.
    pub(super) fn row(&mut self, window: &Window, roles: &[Role], visible: &[u32]) {
        self.rows += 1;
        self.positions += window.positions.len() as u64;
        self.rows_leave_out += u64::from(window.leaves_out());
        self.rows_short_context += u64::from(window.short_context);
        for (k, &t) in window.positions.iter().enumerate().skip(window.target_from) {
            self.owned += 1;
            if roles[t as usize] == Role::Context {
                continue;
            }
            let seen = window.visible_len(visible[t as usize]);
            self.targets.count(roles[t as usize]);
            self.nothing_visible += u64::from(seen == 0);
            self.earlier += k as u64;
            self.hidden += k as u64 - u64::from(seen);
        }
    }

    /// Share of a target's earlier positions in its row that it may not see.
    pub fn hidden_share(&self) -> f64 {
        if self.earlier == 0 { 0.0 } else { self.hidden as f64 / self.earlier as f64 }
    }
}

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
    /// `file-order` or `shuffled`.
    pub tie_policy: String,
    /// `Δτ` as configured.
    pub delta_tau: String,
    /// `Δτ` in milliseconds; absent where it is off.
    pub delta_tau_ms: Option<i64>,
    /// The request intervals of the log, where it has any. A refresh measures those of the users it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_intervals: Option<RequestIntervals>,
    /// Rows of the table.
    pub rows: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of the shards.
    pub bytes: u64,
    /// What was counted; absent where nothing was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Share of a target's earlier positions in its row that `Δτ` and its request hide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_share: Option<f64>,
    /// Events that were decoded: all, or those that a refresh needs. Of the others it looks at their users alone, and of those of
    /// dates near the new events at their ids.
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
