//! The report of a run, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::PathBuf;

use serde::Serialize;

use crate::DAY_MS;
use crate::day::LogRecord;

/// Records in the files by kind. After `pipeline ingest`: accepted = `events`,
/// duplicates = `duplicates`, dead letters = `bad`, for each reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LogCounts {
    /// Records: events + duplicates + bad.
    pub records: u64,
    /// Different usable events.
    pub events: u64,
    /// Events in the file of a later day than their own.
    pub late: u64,
    /// Second copies.
    pub duplicates: u64,
    /// Reason code → records that must be rejected for it.
    pub bad: BTreeMap<&'static str, u64>,
}

impl LogCounts {
    /// Counts a record in the file of the day that begins at `midnight_ms`; with `i64::MIN`, no record is late.
    pub(crate) fn record(&mut self, record: &LogRecord, midnight_ms: i64) {
        self.records += 1;
        if let Some(reason) = record.flaw {
            *self.bad.entry(reason.code()).or_default() += 1;
        } else if record.duplicate {
            self.duplicates += 1;
        } else {
            debug_assert!(
                midnight_ms == i64::MIN || record.event.ts < midnight_ms + DAY_MS,
                "nothing arrives before it happens"
            );
            self.events += 1;
            self.late += u64::from(record.event.ts < midnight_ms);
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.events += other.events;
        self.late += other.late;
        self.duplicates += other.duplicates;
        for (reason, n) in &other.bad {
            *self.bad.entry(reason).or_default() += n;
        }
    }
}

/// One run of `pipeline simulate`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Records in the files by kind.
    #[serde(flatten)]
    pub counts: LogCounts,
    /// Users of the log; the least active may have no event.
    pub users: u32,
    /// Items of the catalogue.
    pub items: u32,
    /// Files of events.
    pub files: u64,
    /// Bytes of all files, as stored.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// Records written in a second.
    pub records_per_second: f64,
    /// The configuration that reads the log.
    pub config: PathBuf,
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogCounts { records, events, late, duplicates, bad } = &self.counts;
        writeln!(
            f,
            "records      {records:>14}   in {} files, {:.1} MB",
            self.files,
            self.bytes as f64 / 1e6
        )?;
        writeln!(f, "events       {events:>14}   {late} of them late")?;
        writeln!(f, "duplicates   {duplicates:>14}")?;
        writeln!(f, "bad records  {:>14}", bad.values().sum::<u64>())?;
        for (reason, n) in bad {
            writeln!(f, "  {reason:<18} {n:>6}")?;
        }
        writeln!(f, "users {}, items {}", self.users, self.items)?;
        writeln!(f, "{:.1} s, {:.0} records/s", self.seconds, self.records_per_second)?;
        writeln!(f, "\nnext:")?;
        writeln!(f, "  pipeline ingest --config {}", self.config.display())?;
        write!(f, "  pipeline build-sequences --config {}", self.config.display())
    }
}
