//! Errors of an erasure, and of reading the list of forgotten users.

use std::path::PathBuf;

use schemas::config::ConfigError;
use store::TableError;
use store::commit::CommitError;

/// An erasure that could not be finished. Its changes stay; running the same command again does the rest.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// Wrong usage.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The key cannot be used; without it, the list of forgotten users cannot be read.
    #[error(
        "the key {path} of table `forgotten` cannot be used; without it nobody knows who was forgotten, and their records \
         would come back. Copy it from the machine that made it, or say where it is by forget.key_file"
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file beside a model cannot be read or rewritten.
    #[error("cannot take the user out of {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Rows that cannot be filtered or cast.
    #[error("rows of table `{table}`")]
    Rows {
        /// The table.
        table: String,
        /// Why.
        source: arrow::error::ArrowError,
    },
    /// Other writers replaced the table at every attempt.
    #[error("table `{table}` was changed by other writers again and again; run the same command again")]
    Busy {
        /// The table.
        table: String,
    },
    /// Ctrl-C.
    #[error("stopped on request; the same command does the rest")]
    Interrupted,
}
