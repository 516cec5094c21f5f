//! What can stop a run of `pipeline ingest`.

use std::path::PathBuf;

use schemas::config::ConfigError;
use schemas::memory::MemorySize;
use schemas::tables::EVENTS;
use store::TableError;
use store::commit::CommitError;
use terminal::scratch;

use super::report::Counts;
use crate::forget::ForgetError;

/// A run that stopped. No table was changed, except where [`CommitError`] says so.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Nothing to read. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// It is not known who was forgotten.
    #[error(transparent)]
    Forgotten(#[from] ForgetError),
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
        /// What it is instead.
        problem: String,
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
    /// Times that cannot be meant.
    #[error(
        "{path}: {problem} nothing was committed; set events.ts_unit to the file's unit (or, where the file's own type \
         says it, write the file anew), or go on as it is with events.check_times = false"
    )]
    Times {
        /// The file.
        path: String,
        /// What is odd about them, as a question.
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
    /// Numbers that do not add up: a defect of this program, which commits nothing then.
    #[error(
        "{what}: {} records were read, and {} accepted + {} duplicates + {} dead letters + {} forgotten is another \
         number; this is a defect of the program, and no table was changed",
        counts.read, counts.accepted, counts.duplicates, counts.dead_letters, counts.forgotten
    )]
    LostCount {
        /// The file, or `events` or `items`.
        what: String,
        /// The numbers.
        counts: Counts,
    },
    /// Shards with another number of events than were accepted: a defect of this program.
    #[error(
        "{rows} events were written and {accepted} accepted; this is a defect of the program, and no table was changed"
    )]
    LostEvents {
        /// Rows of the new shards.
        rows: u64,
        /// Events that were accepted.
        accepted: u64,
    },
    /// Files without a single record.
    #[error("the interaction log is empty: no record in {}", paths.join(", "))]
    Empty {
        /// The files.
        paths: Vec<String>,
    },
    /// Mostly garbage.
    #[error(
        "{rejected} of {read} {what} records ({:.2} %) cannot be used, more than the allowed {:.2} % \
         (events.max_dead_letter_rate); nothing was committed{reasons}",
        100.0 * *rejected as f64 / *read as f64, 100.0 * allowed
    )]
    TooManyDeadLetters {
        /// `event` or `item`.
        what: &'static str,
        /// Records rejected.
        rejected: u64,
        /// Records read.
        read: u64,
        /// The largest allowed share.
        allowed: f64,
        /// One line a reason, with an example each.
        reasons: String,
    },
    /// More items than an index can tell apart.
    #[error("more than {} items", u32::MAX)]
    TooManyItems,
    /// A stored table with content that this program never writes.
    #[error("table `{table}`: {problem}")]
    Damaged {
        /// The table.
        table: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Records of people who were forgotten since may be among those that were read.
    #[error(
        "somebody was forgotten while this run read its files; no event of this run was stored; run the command again"
    )]
    ForgottenMeanwhile,
    /// Another writer has stored an id on a date that changes which events of this id are stored on others.
    #[error(
        "another writer has stored events meanwhile which change what is a duplicate across dates; no event of this run was \
         stored; run the command again"
    )]
    DecidedOtherwise,
    /// Ctrl-C.
    #[error("stopped on request; no table was changed")]
    Interrupted,
    /// A table that cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table that cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
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
    /// Columns that do not fit together: a defect of this program.
    #[error("rows of table `{table}` cannot be built")]
    Build {
        /// The table.
        table: &'static str,
        /// Why.
        source: arrow::error::ArrowError,
    },
}

impl IngestError {
    pub(super) fn read(path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Read { path: path.into(), source: source.into() }
    }

    pub(super) fn scratch(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Scratch { directory: scratch::directory(), source: source.into() }
    }
}

/// Events that do not fit their columns.
pub(super) fn build(source: arrow::error::ArrowError) -> IngestError {
    IngestError::Build { table: EVENTS, source }
}
