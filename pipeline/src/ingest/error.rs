//! Errors of `pipeline ingest`.

use schemas::config::ConfigError;
use schemas::tables::EVENTS;
use store::TableError;
use store::commit::CommitError;
use terminal::Interrupt;

use crate::privacy::ForgetError;
use crate::source::{RecordCounts, SourceError};

/// A run that stopped. No table was changed, except where [`CommitError`] says so.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Nothing to read. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The list of forgotten users cannot be read.
    #[error(transparent)]
    Forgotten(#[from] ForgetError),
    /// A file that cannot be read, or the temporary file of the run.
    #[error(transparent)]
    Source(SourceError),
    /// The counts of records do not add up: a defect of this program; nothing is committed.
    #[error(
        "{what}: {} records were read, and {} accepted + {} duplicates + {} dead letters + {} forgotten is another \
         number; this is a defect of the program, and no table was changed",
        counts.read, counts.accepted, counts.duplicates, counts.dead_letters, counts.forgotten
    )]
    LostCount {
        /// The file, or `events` or `items`.
        what: String,
        /// The numbers.
        counts: RecordCounts,
    },
    /// The new shards do not have as many events as were accepted: a defect of this program.
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
    /// The share of rejected records exceeds `events.max_dead_letter_rate`.
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
    /// A user was forgotten during the run, so records of that user may be among those that were read.
    #[error(
        "somebody was forgotten while this run read its files; no event of this run was stored; run the command again"
    )]
    ForgottenMeanwhile,
    /// Another writer has stored an id on one date, which changes the decision on this id's events of other dates.
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
    /// Columns of unequal lengths or types: a defect of this program.
    #[error("rows of table `{table}` cannot be built")]
    Build {
        /// The table.
        table: &'static str,
        /// Why.
        source: arrow::error::ArrowError,
    },
}

impl From<SourceError> for IngestError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Columns(error) => build(error),
            error => Self::Source(error),
        }
    }
}

impl IngestError {
    pub(super) fn scratch(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Source(SourceError::scratch(source))
    }
}

/// Wraps an error of building `events` columns.
pub(super) fn build(source: arrow::error::ArrowError) -> IngestError {
    IngestError::Build { table: EVENTS, source }
}

/// Fails if the counts of the records of `what` do not add up: no record may be dropped silently.
pub(super) fn check_counts(counts: RecordCounts, what: &str) -> Result<(), IngestError> {
    if counts.is_complete() { Ok(()) } else { Err(IngestError::LostCount { what: what.into(), counts }) }
}

/// Fails after Ctrl-C.
pub(super) fn check_interrupt(interrupt: &Interrupt) -> Result<(), IngestError> {
    if interrupt.requested() { Err(IngestError::Interrupted) } else { Ok(()) }
}
