//! A record of any format: its values by field, its bytes as they came, and why it cannot be used.

use std::borrow::Cow;

use schemas::tables::Reason;

use super::error::IngestError;
use super::files::InputFile;

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

/// What [`Records::advance`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A record; [`Records::value`] has its values.
    Record,
    /// A record that cannot be taken apart.
    Rejected(Rejection),
    /// The end of the block.
    End,
}

/// The records of a block, one after the other.
pub(super) trait Records {
    /// Moves to the next record.
    fn advance(&mut self) -> Step;
    /// The value in `slot` of the current record.
    fn value(&self, slot: usize) -> Value<'_>;
    /// The bytes of the current record, no more of them than the configured limit.
    fn raw(&mut self) -> Result<Vec<u8>, IngestError>;
    /// After the end: the bytes of the block that have been read. What lies behind them is the beginning of
    /// a record that the next block ends.
    fn done(&self) -> usize;
}

/// What a record that is none of the rejected came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Accepted,
    Duplicate,
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
