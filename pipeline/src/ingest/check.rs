//! `pipeline ingest --check`: parses the first records of the configured files and writes nothing.

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, SecondsFormat};
use schemas::config::{Config, ConfigError};
use schemas::tables::{EVENTS, ITEMS};
use serde::Serialize;

use super::catalogue::ItemMapping;
use super::error::IngestError;
use super::items::Item;
use crate::records::{Event, Fields, Forms, Mapping, Rejection, Times, Value, Wanted, shortened};
use crate::source::{
    Accepted, At, InputFile, ReadOptions, RecordCounts, SampleLimits, SourceError, Unpacking, Visit, resolve,
    sample,
};

/// How much of the files is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckLimits {
    /// Files of the log, and as many of the catalogue.
    pub files: usize,
    /// Records of each file; reading stops at the end of the block that has the last of them.
    pub records: u64,
    /// Bytes of text of each file.
    pub bytes: u64,
    /// Parsed rows that are shown of the first file of each kind.
    pub rows: usize,
}

impl Default for CheckLimits {
    fn default() -> Self {
        Self { files: 16, records: 20_000, bytes: 4 << 20, rows: 3 }
    }
}

/// What a run would make of the first records of its files.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// Files that were looked at, those of the log first.
    pub files: Vec<CheckedFile>,
    /// Files that were not, because there are more than the limit.
    pub unread_files: usize,
}

/// What a run would make of the first records of a file.
#[derive(Debug, Serialize)]
pub struct CheckedFile {
    /// Absolute path.
    pub path: String,
    /// `events` or `items`.
    pub table: &'static str,
    /// Records of the sample.
    pub counts: RecordCounts,
    /// Whether the sample is the whole file.
    pub is_whole: bool,
    /// The first parsed rows.
    pub rows: Vec<CheckedRow>,
    /// The first dead letters.
    pub dead_letters: Vec<CheckedDeadLetter>,
    /// Different events with the id of an earlier one in the sample: a run would drop them as duplicates.
    pub repeated_ids: u64,
    /// The question that implausible times raise.
    pub doubt: Option<String>,
    /// First and last time in the sample, in epoch milliseconds.
    #[serde(skip)]
    pub(crate) span: Option<(i64, i64)>,
}

/// A record beside what it becomes.
#[derive(Debug, Serialize)]
pub struct CheckedRow {
    /// Column and value, as the file has them.
    pub source: Vec<(String, String)>,
    /// Field and value of the table.
    pub parsed: Vec<(&'static str, String)>,
}

/// A record that a run would reject.
#[derive(Debug, Serialize)]
pub struct CheckedDeadLetter {
    /// Number of the record (or of the element, where records hold several), from 0.
    pub position: u64,
    /// Code of the reason.
    pub reason: &'static str,
    /// The reason in words.
    pub message: String,
    /// The record, shortened.
    pub record: String,
}

/// Parses the first records of the configured files. Writes nothing.
///
/// # Errors
///
/// [`IngestError::Config`] without files, [`IngestError::Source`] for a file that cannot be read as configured.
pub async fn check(config: &Config, limits: CheckLimits) -> Result<CheckReport, IngestError> {
    let event_files = resolve(&config.events.paths, config.events.format, &config.events.csv).await?;
    let item_files = resolve(&config.items.paths, config.items.format, &config.items.csv).await?;
    if event_files.is_empty() && item_files.is_empty() {
        let problem =
            "nothing to read; name files there or with --events, or a catalogue with --items".into();
        return Err(ConfigError::Invalid { key: "events.paths".into(), problem }.into());
    }
    let reading = ReadOptions {
        max_record_bytes: config.events.max_record_bytes,
        block_bytes: 256 << 10,
        unpacking: Unpacking {
            limit: config.events.max_unpacked_bytes,
            directory: terminal::scratch::directory(),
        },
        check_times: config.events.check_times,
    };
    let mut report = CheckReport { files: Vec::new(), unread_files: 0 };
    let mapping = Mapping::new(&config.events);
    for (at, file) in event_files.iter().take(limits.files).enumerate() {
        let rows = if at == 0 { limits.rows } else { 0 };
        let mut events = EventCheck { mapping: &mapping, rows, ..EventCheck::new(&mapping) };
        let sample_of =
            sample(file, &mapping.wanted, mapping.exploding(), &reading, sample_limits(limits), &mut events)?;
        let mut checked = CheckedFile::new(file, EVENTS, sample_of);
        checked.rows = events.found;
        checked.repeated_ids = events.repeated;
        checked.doubt = match config.events.check_times {
            true => events.times.question(&config.events.ts_format),
            false => None,
        };
        checked.span = events.span;
        report.files.push(checked);
    }
    let catalogue = ItemMapping::new(&config.items, config.events.max_record_bytes);
    for (at, file) in item_files.iter().take(limits.files).enumerate() {
        let rows = if at == 0 { limits.rows } else { 0 };
        let mut items = ItemCheck { mapping: &catalogue, rows, found: Vec::new() };
        let sample_of = sample(file, &catalogue.wanted, None, &reading, sample_limits(limits), &mut items)?;
        let mut checked = CheckedFile::new(file, ITEMS, sample_of);
        checked.rows = items.found;
        report.files.push(checked);
    }
    report.unread_files =
        event_files.len().saturating_sub(limits.files) + item_files.len().saturating_sub(limits.files);
    Ok(report)
}

fn sample_limits(limits: CheckLimits) -> SampleLimits {
    SampleLimits { records: limits.records, bytes: limits.bytes }
}

impl CheckedFile {
    fn new(file: &InputFile, table: &'static str, sample: crate::source::Sample) -> Self {
        let dead_letters = sample.rejected.into_iter().map(|(position, rejection, raw)| CheckedDeadLetter {
            position,
            reason: rejection.reason.code(),
            message: rejection.message,
            record: cut(&raw),
        });
        Self {
            path: file.source.clone(),
            table,
            counts: sample.counts,
            is_whole: sample.is_whole,
            rows: Vec::new(),
            dead_letters: dead_letters.collect(),
            repeated_ids: 0,
            doubt: None,
            span: None,
        }
    }
}

/// Parses events as a run does.
struct EventCheck<'a> {
    mapping: &'a Mapping,
    rows: usize,
    found: Vec<CheckedRow>,
    ids: HashMap<String, Vec<u8>>,
    repeated: u64,
    times: Times,
    span: Option<(i64, i64)>,
}

impl<'a> EventCheck<'a> {
    fn new(mapping: &'a Mapping) -> Self {
        let (found, ids, times) = (Vec::new(), HashMap::new(), Times::default());
        Self { mapping, rows: 0, found, ids, repeated: 0, times, span: None }
    }
}

impl Visit for EventCheck<'_> {
    type Error = SourceError;

    fn record(&mut self, record: &impl Fields, _at: At) -> Result<Result<Accepted, Rejection>, SourceError> {
        let event = match self.mapping.event(record, &mut Forms::default()) {
            Ok(event) => event,
            Err(rejection) => return Ok(Err(rejection)),
        };
        self.times.add(&[event.ts]);
        let (first, last) = self.span.unwrap_or((event.ts, event.ts));
        self.span = Some((first.min(event.ts), last.max(event.ts)));
        if let Some(id) = &event.event_id {
            let mut content = Vec::new();
            event.encode(&mut content);
            match self.ids.get(&**id) {
                Some(earlier) => self.repeated += u64::from(*earlier != content),
                None => drop(self.ids.insert(id.to_string(), content)),
            }
        }
        if self.found.len() < self.rows {
            self.found.push(CheckedRow {
                source: source_of(record, &self.mapping.wanted),
                parsed: fields_of(&event),
            });
        }
        Ok(Ok(Accepted::New))
    }
}

/// Parses items as a run does.
struct ItemCheck<'a> {
    mapping: &'a ItemMapping<'a>,
    rows: usize,
    found: Vec<CheckedRow>,
}

impl Visit for ItemCheck<'_> {
    type Error = SourceError;

    fn record(&mut self, record: &impl Fields, _at: At) -> Result<Result<Accepted, Rejection>, SourceError> {
        let (id, item) = match self.mapping.item(record, |_| None::<Item>) {
            Ok(item) => item,
            Err(rejection) => return Ok(Err(rejection)),
        };
        if self.found.len() < self.rows {
            let mut parsed = vec![("item_id", id.into_owned())];
            parsed.extend(item.title.map(|title| ("title", title)));
            parsed.extend(item.release_ts.map(|ms| ("release_ts", time_text(ms))));
            let attributes =
                item.attributes.iter().map(|(name, values)| format!("{name}={}", values.join("|")));
            parsed.extend(attributes.map(|attribute| ("attribute", attribute)));
            self.found.push(CheckedRow { source: source_of(record, &self.mapping.wanted), parsed });
        }
        Ok(Ok(Accepted::New))
    }
}

fn source_of(record: &impl Fields, wanted: &[Wanted]) -> Vec<(String, String)> {
    let values = wanted.iter().enumerate().map(|(slot, wanted)| (wanted, record.value(slot)));
    values
        .filter(|(_, value)| *value != Value::Absent)
        .map(|(wanted, value)| (wanted.column.clone(), shortened(&value.shown())))
        .collect()
}

fn fields_of(event: &Event<'_>) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("user_id", event.user_id.to_string()),
        ("item_id", event.item_id.to_string()),
        ("ts", time_text(event.ts)),
        ("action", event.action.to_string()),
    ];
    fields.extend(event.value.map(|value| ("value", value.to_string())));
    fields.extend(event.request_id.as_ref().map(|id| ("request_id", id.to_string())));
    fields.extend(event.request_ts.map(|ms| ("request_ts", time_text(ms))));
    fields.extend(event.event_id.as_ref().map(|id| ("event_id", id.to_string())));
    fields
}

/// The beginning of a record.
fn cut(text: &str) -> String {
    const CHARS_MAX: usize = 160;
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

/// The instant in RFC 3339.
fn time_text(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms)
        .map_or_else(|| format!("{ms} ms"), |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// Dead letters that are printed of each file.
const SHOWN_DEAD_LETTERS: usize = 5;

impl fmt::Display for CheckedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecordCounts { read, accepted, dead_letters, .. } = self.counts;
        let of = if self.is_whole { "all" } else { "the first" };
        write!(f, "{} ({}): {of} {read} records, {accepted} accepted, ", self.path, self.table)?;
        write!(f, "{dead_letters} dead letters")?;
        for row in &self.rows {
            let source = row.source.iter().map(|(column, value)| format!("{column}={value}"));
            let parsed = row.parsed.iter().map(|(field, value)| format!("{field}={value}"));
            let (source, parsed) = (source.collect::<Vec<_>>(), parsed.collect::<Vec<_>>());
            write!(f, "\n  {}\n    -> {}", source.join(", "), parsed.join(", "))?;
        }
        for dead in self.dead_letters.iter().take(SHOWN_DEAD_LETTERS) {
            let CheckedDeadLetter { position, reason, message, record } = dead;
            write!(f, "\n  dead letter at {position}: {reason}: {message}\n    {record}")?;
        }
        if self.repeated_ids > 0 {
            let n = self.repeated_ids;
            write!(f, "\n  {n} events have the id of another event: they would be dropped as duplicates")?;
        }
        match &self.doubt {
            Some(doubt) => write!(f, "\n  {doubt}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, file) in self.files.iter().enumerate() {
            write!(f, "{}{file}", if at > 0 { "\n" } else { "" })?;
        }
        if self.unread_files > 0 {
            write!(f, "\n{} more files were not looked at", self.unread_files)?;
        }
        write!(f, "\nnothing was written")
    }
}
