//! Errors of reading files.

use std::path::PathBuf;

use arrow::error::ArrowError;
use schemas::memory::MemorySize;
use terminal::scratch;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A path or pattern without a file.
    #[error("{path}: no such file")]
    NoSuchFile {
        /// As given.
        path: String,
    },
    /// A pattern that matches nothing.
    #[error("{pattern}: no file matches this pattern")]
    NoMatch {
        /// As given.
        pattern: String,
    },
    /// A file that is not what its name or the configuration says.
    #[error("{path}: {problem}")]
    NotTheFormat {
        /// The file.
        path: String,
        /// What the file is instead.
        problem: String,
    },
    /// A Delta table that cannot be read.
    #[error("cannot read the Delta table {path}")]
    Table {
        /// As given.
        path: String,
        /// Why.
        source: Box<store::TableError>,
    },
    /// A column that the configuration names and the file does not have.
    #[error("{path} has no {unit} `{column}`, which `{key}` names; it has: {}", present.join(", "))]
    NoSuchColumn {
        /// The file.
        path: String,
        /// `column` or `field`.
        unit: &'static str,
        /// The missing one.
        column: String,
        /// The configuration's key.
        key: String,
        /// Those that exist.
        present: Vec<String>,
    },
    /// A column of a type that no field can be read from.
    #[error("{path}: column `{column}` is {found}, which cannot be read as `{key}`")]
    ColumnType {
        /// The file.
        path: String,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// The configuration's key.
        key: String,
    },
    /// The file cannot be read to its end.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The times of the file's events are implausible.
    #[error(
        "{path}: {problem} nothing was committed; set events.ts_format to the file's unit (or, where the file's own type \
         says it, write the file anew), or go on as it is with events.check_times = false"
    )]
    Times {
        /// The file.
        path: String,
        /// The suspicion, as a question.
        problem: String,
    },
    /// A packed Parquet file that would fill the disk.
    #[error(
        "{path} unpacks to more than {limit}, the limit of events.max_unpacked_bytes; unpack it where there is \
         room and name the unpacked file, or raise the limit"
    )]
    Unpacked {
        /// The file.
        path: String,
        /// As configured.
        limit: MemorySize,
    },
    /// The temporary file cannot be written or read.
    #[error(
        "the temporary file of this run in {} cannot be used; make room there, or give more --memory; {}",
        directory.display(),
        scratch::HINT
    )]
    Scratch {
        /// The directory for temporary files.
        directory: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Columns of unequal lengths or types: a defect of this program.
    #[error("the records cannot be put into columns")]
    Columns(#[source] ArrowError),
}

impl SourceError {
    pub(crate) fn read(path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Read { path: path.into(), source: source.into() }
    }

    pub(crate) fn scratch(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Scratch { directory: scratch::directory(), source: source.into() }
    }
}
