//! One record of any format: its values by field, and its bytes as they came.

use std::borrow::Cow;

use schemas::config::Format;
use schemas::tables::Reason;

use super::csv::CsvSource;
use super::error::IngestError;
use super::files::{ByteCount, InputFile};
use super::jsonl::JsonlSource;
use super::parquet::ParquetSource;

/// A value as a source has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// The source has no such column, or the JSON object no such key.
    Absent,
    /// No value.
    Null,
    Text(Cow<'a, str>),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// An instant in epoch milliseconds, from a typed column.
    Instant(i64),
    List(Vec<Cow<'a, str>>),
    /// Text that is not UTF-8.
    NotUtf8,
    /// Something else, in words.
    Other(&'static str),
}

impl Value<'_> {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Absent | Self::Null => "nothing",
            Self::Text(_) => "text",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::Instant(_) => "a time",
            Self::List(_) => "a list",
            Self::NotUtf8 => "text that is not UTF-8",
            Self::Other(kind) => kind,
        }
    }
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Rejection {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Whether a file without a wanted column is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing can be read without it.
    Required,
    /// The configuration names it.
    Named,
    /// Read where there is one.
    IfPresent,
}

/// A column to read. Its position in the list of wanted columns is its slot.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The key of the configuration that names it.
    pub(super) key: String,
    pub(super) column: String,
    pub(super) need: Need,
}

/// What [`RecordSource::advance`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A record; [`RecordSource::value`] has its values.
    Record,
    /// A record that cannot be taken apart.
    Rejected(Rejection),
    /// The end of the file.
    End,
}

/// A file, record by record.
pub(super) trait RecordSource {
    /// Moves to the next record.
    fn advance(&mut self) -> Result<Step, IngestError>;
    /// The value in `slot` of the current record.
    fn value(&self, slot: usize) -> Value<'_>;
    /// The bytes of the current record, no more of them than the configured limit.
    fn raw(&mut self) -> Result<Vec<u8>, IngestError>;
    /// Columns named in the configuration that no record of the file had; known at its end.
    fn never_seen(&self) -> Vec<usize> {
        Vec::new()
    }
}

/// Opens `file` to read the wanted columns.
pub(super) fn open(
    file: &InputFile,
    wanted: &[Wanted],
    max_record_bytes: usize,
    count: &ByteCount,
) -> Result<Box<dyn RecordSource>, IngestError> {
    Ok(match file.format {
        Format::Csv => Box::new(CsvSource::open(file, wanted, max_record_bytes, count)?),
        Format::Jsonl => Box::new(JsonlSource::open(file, wanted, max_record_bytes, count)?),
        Format::Parquet => Box::new(ParquetSource::open(file, wanted, max_record_bytes, count)?),
    })
}

/// Where each wanted column is among `present`; an error where a needed one is not.
pub(super) fn locate(
    file: &InputFile,
    wanted: &[Wanted],
    present: &[String],
) -> Result<Vec<Option<usize>>, IngestError> {
    wanted
        .iter()
        .map(|w| {
            let mut found = present.iter().enumerate().filter(|(_, name)| **name == w.column);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(IngestError::NotTheFormat {
                    path: file.source.clone(),
                    problem: format!("has more than one column `{}`", w.column),
                }),
                (Some((at, _)), None) => Ok(Some(at)),
                (None, _) if w.need == Need::IfPresent => Ok(None),
                (None, _) => Err(no_such_column(file, "column", w, present.to_vec())),
            }
        })
        .collect()
}

pub(super) fn no_such_column(
    file: &InputFile,
    unit: &'static str,
    wanted: &Wanted,
    present: Vec<String>,
) -> IngestError {
    IngestError::NoSuchColumn {
        path: file.source.clone(),
        unit,
        column: wanted.column.clone(),
        key: wanted.key.clone(),
        present,
    }
}

/// The record without its line end.
pub(super) fn trim_line_end(mut record: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = record {
        record = rest;
    }
    record
}
