//! The report of a run, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use serde::Serialize;

use crate::source::RecordCounts;

/// The counts of one input file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// `events` or `items`.
    pub table: &'static str,
    /// The file, as the tables name it.
    pub source: String,
    /// Its records by outcome.
    #[serde(flatten)]
    pub counts: RecordCounts,
    /// Its records, where each may hold several events; the counts are those of events then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
    /// How its times were recognized; none where `ts_format` says it, or where they are written in several ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<&'static str>,
}

/// The catalogue after the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CatalogueReport {
    /// Items of this run's catalogue that were new.
    pub added: u64,
    /// Items of this run's catalogue whose title, release, activity or attributes changed.
    pub updated: u64,
    /// Items of this run's catalogue that equal the stored ones.
    pub unchanged: u64,
    /// Items that events name and no catalogue has; this run stored them with empty attributes.
    pub from_events: u64,
    /// All items.
    pub total: u64,
}

/// The newest version of each table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// The version of `events`; none where no events were read and none are stored.
    pub events: Option<u64>,
    /// The version of `items`.
    pub items: u64,
    /// The version of `dead_letters`.
    pub dead_letters: u64,
}

/// One run of `pipeline ingest`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IngestReport {
    /// Each file.
    pub files: Vec<FileReport>,
    /// All event files.
    pub events: RecordCounts,
    /// All catalogue files.
    pub items: RecordCounts,
    /// Reason → rejected records.
    pub dead_letters: BTreeMap<&'static str, u64>,
    /// The first rejected record of each reason, in words.
    #[serde(skip)]
    pub examples: String,
    /// The changes to `items`.
    pub catalogue: CatalogueReport,
    /// Rows of `events` after the run.
    pub events_stored: u64,
    /// The tables after the run.
    pub versions: Versions,
    /// Warnings; they did not stop the run.
    pub warnings: Vec<String>,
    /// Wall time.
    pub seconds: f64,
}

impl Display for IngestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.files.iter().map(|file| shown(&file.source)).collect();
        let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max(8);
        let row = |f: &mut fmt::Formatter<'_>, table: &str, name: &str, c: &RecordCounts| {
            let RecordCounts { read, accepted, duplicates, dead_letters, .. } = c;
            writeln!(
                f,
                "{table:<6}  {name:<width$}  {read:>12} {accepted:>12} {duplicates:>12} {dead_letters:>12}"
            )
        };
        writeln!(
            f,
            "{:<6}  {:<width$}  {:>12} {:>12} {:>12} {:>12}",
            "", "file", "read", "accepted", "duplicates", "dead letters"
        )?;
        for (file, name) in self.files.iter().zip(&names) {
            row(f, file.table, name, &file.counts)?;
        }
        for (table, counts) in [("events", &self.events), ("items", &self.items)] {
            if self.files.iter().filter(|file| file.table == table).count() > 1 {
                row(f, table, "all", counts)?;
            }
        }
        let records: Option<u64> =
            self.files.iter().filter_map(|file| file.records).reduce(u64::wrapping_add);
        if let Some(records) = records {
            writeln!(f, "records taken apart into events: {records}")?;
        }
        let times: BTreeSet<&str> = self.files.iter().filter_map(|file| file.times).collect();
        for times in times {
            writeln!(f, "times: read as {times}")?;
        }
        let forgotten = self.events.forgotten;
        if forgotten > 0 {
            writeln!(f, "events of users who were forgotten, not stored: {forgotten}")?;
        }
        let CatalogueReport { added, updated, unchanged, from_events, total } = self.catalogue;
        writeln!(
            f,
            "items: {total} ({added} added, {updated} updated, {unchanged} unchanged, {from_events} seen in events only)"
        )?;
        writeln!(f, "events: {}", self.events_stored)?;
        if !self.examples.is_empty() {
            writeln!(f, "dead letters:{}", self.examples)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        write!(f, "{:.1} s", self.seconds)
    }
}

/// The path, or its end if it is long.
fn shown(source: &str) -> String {
    const CHARS_MAX: usize = 48;
    let chars = source.chars().count();
    if chars <= CHARS_MAX {
        return source.into();
    }
    let tail: String = source.chars().skip(chars - CHARS_MAX + 1).collect();
    format!("…{tail}")
}
