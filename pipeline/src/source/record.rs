//! The records of a file, whatever its format.

use super::error::SourceError;
use super::files::InputFile;
use crate::privacy::UserColumn;
use crate::records::{Fields, Need, Rejection, Vector, Wanted};

/// The result of [`Records::advance`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A record; its fields have values.
    Record,
    /// A record that cannot be parsed.
    Rejected(Rejection),
    /// The end of the block.
    End,
}

/// A cursor over the records of a block; its fields are those of the current record.
pub(crate) trait Records: Fields {
    /// Moves to the next record.
    fn advance(&mut self) -> Step;
    /// The number of records, if the format stores columns.
    fn rows(&self) -> Option<usize> {
        None
    }
    /// The values in `slot` of all records, where the format stores columns of a simple type.
    fn vector(&self, _slot: usize) -> Option<Vector> {
        None
    }
    /// The bytes of the current record, truncated to the configured limit.
    fn raw(&mut self) -> Raw;
    /// The column of the user, to be searched in a record that cannot be parsed.
    fn user_column(&self) -> UserColumn {
        UserColumn::Unknown
    }
    /// After the end: the number of bytes of the block that were read. The bytes after them begin a record that
    /// ends in the next block.
    fn done(&self) -> usize;
}

/// A rejected record as it came.
pub(crate) enum Raw {
    Bytes(Vec<u8>),
    /// A row of which some columns were not read; it is read again.
    Again,
}

/// The outcome of a record that was not rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    New,
    Duplicate,
}

/// The position of each wanted column among `present`; an error if a required one is missing.
pub(crate) fn locate(
    file: &InputFile,
    wanted: &[Wanted],
    present: &[String],
) -> Result<Vec<Option<usize>>, SourceError> {
    wanted
        .iter()
        .map(|w| {
            if w.need == Need::InPath {
                return Ok(None);
            }
            let mut found = present.iter().enumerate().filter(|(_, name)| **name == w.column);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(SourceError::NotTheFormat {
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

pub(crate) fn no_such_column(
    file: &InputFile,
    unit: &'static str,
    wanted: &Wanted,
    present: Vec<String>,
) -> SourceError {
    SourceError::NoSuchColumn {
        path: file.source.clone(),
        unit,
        column: wanted.column.clone(),
        key: wanted.key.clone(),
        present,
    }
}

/// The record without its line end. Only one line end is removed: further ones are content and count for the length.
pub(crate) fn trim_line_end(record: &[u8]) -> &[u8] {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    record.strip_suffix(b"\r").unwrap_or(record)
}
