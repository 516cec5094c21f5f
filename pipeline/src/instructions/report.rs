//! The report of a run.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstructionsReport {
    /// The table already described these versions at this time: nothing was written.
    pub unchanged: bool,
    /// The version of the table that holds the rows.
    pub version: u64,
    /// The version of `events` that was read.
    pub events_version: u64,
    /// The version of `items` that was read.
    pub items_version: u64,
    /// Hash of the settings that decided the rows.
    pub config_hash: String,
    /// The end of the window.
    pub as_of: DateTime<Utc>,
    /// Its length, such as `90d`.
    pub window: String,
    /// Why every user was computed; absent where only some were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// Rows of the table: users with an event in the window.
    pub users: u64,
    /// Rows that were computed by this run.
    pub users_recomputed: u64,
    /// Rows that were kept from the previous version.
    pub users_kept: u64,
    /// Users without an event in the window, hence without a row: in a full computation among all users of the log,
    /// otherwise among the users to be computed again.
    pub users_outside: u64,
    /// Rows without an instruction: no condition that these users met is retrievable. Absent if nothing was
    /// written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_without: Option<u64>,
    /// Instructions by attribute or derived condition. Absent where nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_attribute: Option<BTreeMap<String, u64>>,
    /// Wall time.
    pub seconds: f64,
}

impl fmt::Display for InstructionsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = format!(
            "events version {}, items version {}, {} up to {}",
            self.events_version,
            self.items_version,
            self.window,
            self.as_of.format("%Y-%m-%d %H:%M:%S%.f UTC")
        );
        if self.unchanged {
            return write!(
                f,
                "instructions  unchanged at version {}: the rows of {} users already describe {read}",
                self.version, self.users
            );
        }
        let line = |f: &mut fmt::Formatter<'_>, label: &str, value: u64, note: &str| {
            writeln!(f, "  {label:<28}{value:>14}{}{note}", if note.is_empty() { "" } else { "  " })
        };
        writeln!(f, "instructions  version {} from {read}", self.version)?;
        line(f, "users", self.users, "with an event in the window")?;
        line(f, "  computed", self.users_recomputed, self.full.as_deref().unwrap_or("what changed only"))?;
        line(f, "  kept", self.users_kept, "")?;
        if let Some(without) = self.users_without {
            line(f, "  without an instruction", without, "")?;
        }
        line(f, "users outside the window", self.users_outside, "no row")?;
        if let Some(by_attribute) = &self.by_attribute {
            line(f, "instructions", by_attribute.values().sum(), "")?;
            for (attribute, &count) in by_attribute {
                line(f, &format!("  {attribute}"), count, "")?;
            }
        }
        write!(f, "  {:<28}{:>14.2}", "seconds", self.seconds)
    }
}
